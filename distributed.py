"""How a process joins the others of its run, what it asks of them, and how it leaves them, with which exit code.

Two things make the end of a process difficult. A gloo thread that is alive while the interpreter is finalised can
abort the process (SIGABRT): a run that has finished therefore first drops the process group and everything that refers
to it. And a process that ends by an error breaks the others' connections: it therefore first tells them its error.

In a run of one process there is no process group, and every function here works without one.
"""

import atexit
import contextlib
import gc
import json
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

# Imported before there is a group: default arguments in this module keep a reference to the group of that moment.
import torch.distributed.nn.functional
from torch import nn
from torch.distributed import _functional_collectives as collectives
from torch.distributed.rendezvous import rendezvous

import utils
from utils import EXIT_INTERRUPTED, InputError, Interrupted, full_precision, logger

TIMEOUT = timedelta(minutes=60)  # of a collective: the others wait in one while rank 0 builds a cache
POLL = 0.3  # seconds between two looks for another rank's error
PATIENCE = 20.0  # seconds that a rank with an error waits until the others have read it


class Herald(threading.Thread):
    """A thread that tells the other ranks of this rank's error, and ends this process when another rank tells of one.

    It uses the key-value store of the rendezvous, since a collective would need ranks that may be blocked in another
    one. Nothing waits longer than PATIENCE for a store that does not answer.
    """

    def __init__(self, store: dist.Store, rank: int, world: int):
        super().__init__(daemon=True)
        self.original = store  # a reference to keep: on rank 0 this object may be the server of the store
        self.store, self.main_store = store.clone(), store.clone()  # one connection for each of the two threads
        for one in (self.store, self.main_store):
            one.set_timeout(timedelta(seconds=5))
        self.rank, self.world = rank, world
        # The thread that prints why this process ends takes `ending` and never gives it back. An error of the other
        # thread is then only a consequence (a broken connection), and that thread waits at `ending` until the end.
        self.stopped, self.ending = threading.Event(), threading.RLock()

    def run(self) -> None:
        with contextlib.suppress(RuntimeError):  # the process that held the store has left
            while not self.stopped.wait(POLL):
                if self.store.check(["error"]):
                    rank, code, line = json.loads(self.store.get("error"))
                    if rank != self.rank and self.ending.acquire(blocking=False):
                        say(f"rank {rank}: {line}")
                        within_patience(self.count_out, self.store)
                        end_now(code)

    def count_out(self, store: dist.Store) -> None:
        """Note that this rank is done with the store. Rank 0, which may serve it, waits for the others' notes."""
        store.add("told", 1)
        if self.rank:
            store.add("gone", 1)
        else:
            wait_for(store, "gone", self.world - 1)

    def stop(self) -> None:
        self.stopped.set()
        self.join(PATIENCE)
        within_patience(self.count_out, self.main_store)

    def tell(self, code: int, line: str) -> None:
        """Let every rank end with `code` and print `line`; return when all of them have read it."""

        def tell_all() -> None:
            self.main_store.compare_set("error", "", json.dumps([self.rank, code, line]))
            self.main_store.add("told", 1)
            wait_for(self.main_store, "told", self.world)  # first: the end of this rank breaks the others' collectives
            if self.rank:
                self.main_store.add("gone", 1)
            else:
                wait_for(self.main_store, "gone", self.world - 1)

        self.stopped.set()
        within_patience(tell_all)


def wait_for(store: dist.Store, key: str, count: int) -> None:
    while store.add(key, 0) < count:
        time.sleep(0.05)


def within_patience(function, *args) -> None:
    """Call `function(*args)` in a thread, and wait for it no longer than PATIENCE; a lost store is no error."""

    def call() -> None:
        with contextlib.suppress(RuntimeError):
            function(*args)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(PATIENCE)


herald: Herald | None = None
exit_code = 0  # the one that run_script is about to exit with


def init_distributed(device: str | None, backend: str | None, dist_url: str) -> torch.device:
    """Join the process group that torchrun or the Slurm launcher describes in the environment, if there is one.

    Returns this process's device: `device` if given, else its own GPU, else the CPU.
    """
    store = None
    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        store = meet(dist_url, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if device is None:
        device = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local_rank)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise InputError(f"--device {device}: {first_line}") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if store is not None:
        dist.init_process_group(
            backend or ("nccl" if device.type == "cuda" else "gloo"),
            store=store, rank=herald.rank, world_size=herald.world, timeout=TIMEOUT,
        )  # fmt: skip
    logger.setLevel(logging.ERROR if dist.is_initialized() and dist.get_rank() else logging.INFO)
    return device


def meet(dist_url: str, rank: int, world: int) -> dist.Store:
    """Find the other ranks, and start the Herald -> the group's store. From now on an error of one rank ends all."""
    global herald
    store, rank, world = next(rendezvous(dist_url, rank, world, timeout=TIMEOUT))
    store.set_timeout(TIMEOUT)
    herald = Herald(dist.PrefixStore("herald", store), rank, world)
    herald.start()
    return dist.PrefixStore("group", store)


def leave() -> None:
    """Leave the process group, on all ranks.

    The group ends, and joins its threads, when the last reference to it is gone. The caller must therefore hold no
    DistributedDataParallel and no handle of a collective any more.
    """
    global herald
    if dist.is_initialized():
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()  # what --compile has compiled holds the group
        gc.collect()  # a network is part of cycles
        dist.destroy_process_group()
        gc.collect()
    if herald is not None:
        herald.stop()
        herald = None


def group_threads() -> list[str]:
    """The names of this process's gloo threads; none are found where there is no /proc."""
    found = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):
            found.append(path.read_text().strip())
    return [name for name in found if "gloo" in name]


@atexit.register  # hooks are called last to first: this one after those of all that is imported later
def avoid_finalising() -> None:
    """End at once if gloo threads are still alive: something global holds the group, and finalising could abort."""
    if group_threads():
        end_now(exit_code)


def skip_exit_hooks() -> None:
    """Let the process end without the exit hooks that are registered by now: one of a library may hang."""
    atexit.register(lambda: end_now(exit_code))


def run_script(main, args) -> None:
    """Call `main(args)`, then leave the process group and exit.

    Exit codes: 0; 2 and one line on stderr for an `InputError`; 75 for `Interrupted`; 1 for any other exception. An
    error on one rank alone ends all ranks with its code and its line.
    """
    global exit_code
    logging.basicConfig(format="%(message)s", stream=sys.stdout, level=logging.WARNING, force=True)
    code, line = 0, ""
    try:
        main(args)
    except InputError as error:
        # An error in a loader's worker arrives as that process's whole traceback; its last line is the message.
        code, line = 2, str(error).strip().splitlines()[-1].removeprefix("utils.InputError: ")
    except Interrupted as stop:
        logger.info(f"{stop}: saved; the same command again goes on")
        code = EXIT_INTERRUPTED
    except SystemExit as stop:  # the launcher's, for a requeue
        code = stop.code or 0
    except KeyboardInterrupt:  # one that came before training/signals.py caught signals
        exit_code = 128 + signal.SIGINT
        if herald is None:
            raise
        code, line = 128 + signal.SIGINT, "interrupted"
    except Exception as error:
        exit_code = 1
        if herald is None:
            raise
        herald.ending.acquire()
        traceback.print_exc()
        code, line = 1, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    # After the try: only here is the exception gone, whose frames refer to the network.
    exit_code = code
    if line:
        fail(code, line)
    leave()
    if code:
        sys.exit(code)


def fail(code: int, line: str) -> None:
    """Print `line` and exit with `code`, on every rank, without waiting for collectives that are under way."""
    logging.shutdown()
    if herald is None:
        say(line)
        sys.exit(code)
    herald.ending.acquire()
    say(line)
    herald.tell(code, line)
    end_now(code)


def say(line: str) -> None:
    print(f"{Path(sys.argv[0]).name}: error: {line}", file=sys.stderr, flush=True)


def end_now(code: int) -> None:
    """End the process without finalising the interpreter, because threads of a collective may be alive."""
    for release in list(utils.before_end):
        with contextlib.suppress(Exception):
            release()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


# Collectives


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def on_rank0(function, *args, **kwargs):
    """Call `function` on rank 0 alone -> its result, on every rank. An `InputError` of it is raised on every rank.

    All that looks at files goes through here: the ranks might see different states of a shared disk.
    """
    if world_size() == 1:
        return function(*args, **kwargs)
    box = [None, None]
    if rank() == 0:
        try:
            box = [function(*args, **kwargs), None]
        except InputError as error:
            box = [None, error]
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return box[0]


def all_objects(value) -> list:
    """Every rank's `value`, in order."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather_rows(rows: torch.Tensor, total: int) -> torch.Tensor:
    """Each rank's rows (n, ...), those of `range(rank, total, world)` -> all (total, ...) in order, on every rank."""
    if world_size() == 1:
        return rows
    longest = math.ceil(total / world_size())
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten(0, 1)[:total]


# torch 2.15 has it under a new name.
_all_gather = getattr(collectives, "all_gather_single_autograd", None) or collectives.all_gather_tensor_autograd


def gather(rows: torch.Tensor) -> torch.Tensor:
    """(B, ...) on each rank -> (world * B, ...) on every rank.

    In the backward pass a rank's rows receive the sum of the gradients that the losses of all ranks have for them.
    """
    return _all_gather(rows.contiguous(), 0, dist.group.WORLD) if world_size() > 1 else rows


def mean_over_ranks(values: torch.Tensor) -> torch.Tensor:
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return values


# Batch norms over all devices

BatchNorm = nn.modules.batchnorm._BatchNorm


def global_batch_norm(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the batch norm `norm` makes of (n, C, ...) in train mode, with mean and variance taken over all ranks."""
    rows = full_precision(x)
    shape = [1, -1] + [1] * (x.dim() - 2)
    variance, mean = torch.var_mean(rows, [d for d in range(x.dim()) if d != 1], correction=0)
    # Every rank has as many values: all weigh the same where the variances are joined (Chan, Golub, LeVeque, 1979).
    means, variances = gather(torch.stack([mean, variance])[None]).unbind(1)
    mean = means.mean(0)
    variance = variances.mean(0) + (means - mean).square().mean(0)
    with torch.no_grad():
        count = rows.numel() // rows.shape[1] * world_size()
        norm.num_batches_tracked += 1
        momentum = norm.momentum if norm.momentum is not None else 1 / norm.num_batches_tracked.item()
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
        norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var.dtype), momentum)
    out = (rows - mean.reshape(shape)) * torch.rsqrt(variance + norm.eps).reshape(shape)
    if norm.affine:
        out = out * norm.weight.reshape(shape) + norm.bias.reshape(shape)
    return out.to(x.dtype)


class GlobalBatchNorm(BatchNorm):
    """A batch norm over all ranks, for the CPU: there DistributedDataParallel refuses torch's SyncBatchNorm."""

    def _check_input_dim(self, x):
        pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return global_batch_norm(self, x) if self.training else super().forward(x)


def synchronise(model: nn.Module, device: torch.device) -> nn.Module:
    """Make every batch norm of `model` take its statistics over all ranks -> the model, converted in place.

    torch's SyncBatchNorm trains on CUDA only. On the CPU differentiable collectives do the same: the statistics and
    the gradient are those of one process with the whole batch.
    """
    from timm.layers import BatchNormAct2d, convert_sync_batchnorm  # slow to import, and most tools need no model

    class GlobalBatchNormAct(BatchNormAct2d):
        """timm's batch norm with an activation in it, over all ranks."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.drop(global_batch_norm(self, x))) if self.training else super().forward(x)

    if device.type == "cuda":
        return convert_sync_batchnorm(model)  # timm's own keeps the activation that some of its norms hold
    for norm in batch_norms(model):
        norm.__class__ = GlobalBatchNormAct if isinstance(norm, BatchNormAct2d) else GlobalBatchNorm
    return model


def batch_norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, BatchNorm)]
