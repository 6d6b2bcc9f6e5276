"""Batches: which samples a rank takes, the processes that load them, and a loaded batch as a model's inputs."""

import contextlib
import os
import signal
import sys

import numpy as np
import torch

from data.augment import make_views
from distributed import world_size
from utils import queued


class EpochBatches(torch.utils.data.Sampler):
    """This rank's batches of an epoch, each a list of (epoch, sample) keys, in an order drawn from (seed, epoch).

    A step takes `batch_size * world * update_freq` samples; with the same product step t takes the same samples on any
    number of ranks. Samples that fill no step at the end of the order are left out.
    """

    def __init__(self, total: int, batch_size: int, update_freq: int, rank: int, world: int, seed: int):
        self.total, self.batch_size, self.rank, self.seed = total, batch_size, rank, seed
        self.share = batch_size * update_freq  # samples of a step on one rank
        self.global_batch = self.share * world  # samples of a step
        self.epoch = 0
        self.first_step = 0  # the step of this epoch at which a resumed run goes on

    @property
    def steps(self) -> int:
        """Optimiser steps an epoch."""
        return self.total // self.global_batch

    def __len__(self) -> int:
        return (self.steps - self.first_step) * (self.share // self.batch_size)

    def __iter__(self):
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.total)
        for step in range(self.first_step, self.steps):
            start = step * self.global_batch + self.rank * self.share
            for first in range(start, start + self.share, self.batch_size):
                yield [(self.epoch, int(i)) for i in order[first : first + self.batch_size]]


def as_is(batch):
    """The collate function: `__getitems__` of the data already returns whole batches."""
    return batch


@contextlib.contextmanager
def open_loader(dataset, batches, workers: int | None, device: torch.device):
    """A context manager: a DataLoader over `batches`, a batch sampler or a list of lists of indices.

    `workers` is the number of its processes, None for `default_workers`. They are kept from epoch to epoch, ignore the
    signals that end a run (the process that started them answers those), and are ended with the block.
    """
    workers = default_workers(world_size()) if workers is None else workers
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=as_is,
        pin_memory=queued(device),
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
        # Forked workers share the memory of the index and of the captions' tokens.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    try:
        yield loader
    finally:
        iterator = loader._iterator  # None without workers; there is no public way to end them
        if iterator is not None:
            iterator._shutdown_workers()
            for worker in iterator._workers:
                if worker.is_alive():
                    worker.kill()


def start_worker(number: int) -> None:
    """Called in a loader's process: ignore the signals that end a run, and die with the process that started it."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork, and a worker has one core
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(one, signal.SIG_IGN)
    if hasattr(torch.multiprocessing, "_prctl_pr_set_pdeathsig"):  # Linux
        torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)


def rank_batches(total: int, batch_size: int, rank: int, world: int) -> list[list[int]]:
    """A rank's part of range(total), every world-th index as distributed.gather_rows expects it, cut into batches."""
    share = list(range(rank, total, world))
    return [share[start : start + batch_size] for start in range(0, len(share), batch_size)]


def default_workers(world: int) -> int:
    """Loader processes of one rank: this machine's cores divided among its ranks, 8 at most."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    return max(1, min(8, len(os.sched_getaffinity(0)) // local))


def model_inputs(batch: dict, mean, std, device) -> dict:
    """A batch of data/views.py -> the arguments of MedSLIP.encode, on the device.

    Where there are captions, the first view belongs to them.
    """
    made = make_views(batch, mean, std, device)
    inputs = {}
    if "input_ids" in batch:
        inputs["image"] = made.pop(0)
        for name in ("input_ids", "attention_mask"):
            inputs[name] = [chunk.to(device, non_blocking=True) for chunk in batch[name]]
        inputs["text_order"] = batch["text_order"].to(device, non_blocking=True)
    if made:
        inputs["aug1"], inputs["aug2"] = made
    return inputs
