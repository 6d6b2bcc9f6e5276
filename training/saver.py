"""Checkpoints that survive: copied and written by a thread of their own, renamed into place when whole.

`checkpoint.pt` is the latest, `checkpoint_previous.pt` the one before it, `checkpoint_best.pt` the best. Each is a zip
archive of torch.save, whose CRC-32 of every record checkpoints.read verifies.
"""

import contextlib
import os
import threading
import time
from pathlib import Path

import torch

import distributed
import utils
from utils import InputError, host_buffer, logger, mark, queued

LATEST, PREVIOUS, BEST = "checkpoint.pt", "checkpoint_previous.pt", "checkpoint_best.pt"
PATIENCE = 300.0  # seconds that a save waits for the one before it; a network disk may hang
LARGE = 1 << 20  # bytes; larger tensors are parameters or moments, which only the optimiser changes: copied later


class Saver:
    """Writes the checkpoints of one run, on rank 0; elsewhere it does nothing.

    `every` is (steps, seconds) between the saves that `due` asks for, either of them None; `best` the score of the
    checkpoint_best.pt that is in the folder. A save that fails is reported and tried again with the next one; `close`
    raises InputError if the last one failed.
    """

    def __init__(self, folder: Path, every: tuple, step: int = 0, best: float | None = None):
        self.folder, self.every = Path(folder), every
        self.active = distributed.rank() == 0
        self.buffers, self.later = {}, []
        self.copied = threading.Event()
        self.copied.set()
        self.thread, self.failure = None, None
        self.best = best
        self.saved_step, self.saved_at = step, time.monotonic()

    def due(self, step: int) -> bool:
        """Whether it is time for a save and the last one is written."""
        steps, seconds = self.every
        on_time = (steps and step - self.saved_step >= steps) or (
            seconds and time.monotonic() - self.saved_at >= seconds
        )
        return self.active and bool(on_time) and not self.writing()

    def writing(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def wait(self, seconds: float = PATIENCE) -> bool:
        """Wait for the writer -> whether it is done."""
        if self.thread is not None:
            self.thread.join(seconds)
        return not self.writing()

    def is_best(self, score: float | None) -> bool:
        """Whether a checkpoint with this score would become the best, once the writer is done."""
        if score is None:
            return False
        self.wait()
        return self.beats(score)

    def beats(self, score: float) -> bool:
        # A disk that is away may come back with the file: `self.best` stays as it is meanwhile.
        return self.best is None or score > self.best or not (self.folder / BEST).exists()

    def save(self, state: dict, score: float | None = None) -> None:
        """Start to write `state` in the background. Call `wait_for_copy` before parameters or moments change.

        `score` is that of an evaluation of just this state. The file's `best` is the score of the checkpoint_best.pt
        beside it.
        """
        if not self.active:
            return
        self.saved_step, self.saved_at = state["step"], time.monotonic()
        if not self.wait():
            self.failure = f"the disk of {self.folder} has not answered for {PATIENCE:.0f} s"
            logger.warning(f"{self.failure}: step {state['step']} is not saved; training goes on")
            return
        self.failure = None
        self.later = []
        copied = self.copy(state, ())
        self.copied.clear()
        # A daemon: a disk that hangs must not keep the process from ending.
        self.thread = threading.Thread(target=self.write, args=(copied, score, mark()), daemon=True)
        self.thread.start()

    def wait_for_copy(self) -> None:
        """Before the optimiser's update: until the writer has its own copy of the parameters and moments.

        They do not change in between, so that it copies them during the next forward and backward pass.
        """
        self.copied.wait()

    def copy(self, value, place: tuple):
        """Tensors into the buffer kept for their place in the state, containers anew, the rest as it is."""
        if isinstance(value, torch.Tensor):
            buffer = self.buffers.get(place)
            if buffer is None or description(buffer) != description(value):
                # With the strides too: the optimiser's moments must lie in memory as its parameters do.
                buffer = self.buffers[place] = host_buffer(value)
            if value.nbytes >= LARGE and not queued(value.device):
                self.later.append((buffer, value.detach()))
                return buffer
            # Queued behind the step that made it, where work is queued; the writer waits for it.
            return buffer.copy_(value.detach(), non_blocking=True)
        if isinstance(value, dict):
            return {key: self.copy(one, (*place, key)) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.copy(one, (*place, number)) for number, one in enumerate(value))
        return value

    def write(self, state: dict, score: float | None, arrived) -> None:
        """In the writer's thread."""
        try:
            for buffer, value in self.later:
                buffer.copy_(value)
            self.later = []
            self.copied.set()
            arrived.synchronize()
            better = score is not None and self.beats(score)
            kept = self.best if (self.folder / BEST).exists() else None
            state["best"] = score if better else kept
            with utils.atomic_file(self.folder / LATEST) as temporary:
                utils.write_tensors(state, temporary)
                if better:  # first, so that a run killed in between finds the same best epoch again
                    utils.save_copy(temporary, self.folder / BEST)
                    self.best = score
                with contextlib.suppress(FileNotFoundError):
                    keep_previous(self.folder / LATEST, self.folder / PREVIOUS)
        except Exception as error:  # whatever it is, the run's end must know that this step is not on the disk
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            self.failure = f"{self.folder / LATEST}: step {state['step']} could not be written ({reason})"
            logger.warning(f"{self.failure}; training goes on, and the next save tries again")
        finally:
            self.copied.set()

    def close(self) -> None:
        """Wait for the last save. Raises InputError if it could not be written."""
        if not self.wait():
            self.failure = f"the disk of {self.folder} has not answered for {PATIENCE:.0f} s"
        if self.failure:
            with contextlib.suppress(OSError):
                kept = (self.folder / LATEST).exists()
                self.failure += "; the checkpoint written before it is whole" if kept else "; there is none before it"
            raise InputError(
                f"{self.failure}: make room or give another --output-dir, then run the same command again to go on"
            )


def best_score(folder: Path) -> float | None:
    """The score that the folder's checkpoint_best.pt says it has; None without one, or if it was cut short."""
    path = Path(folder) / BEST
    if not path.exists():
        return None
    try:
        score = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["best"]
        if not isinstance(score, float):
            raise TypeError(f"its score is {score}")
    except Exception as error:  # zip, pickle and torch each have their own kinds
        logger.warning(f"{path}: damaged ({str(error).splitlines()[0]}): the next evaluation writes it anew")
        return None
    return score


def description(tensor: torch.Tensor) -> tuple:
    return tensor.shape, tensor.dtype, tensor.stride()


def keep_previous(latest: Path, previous: Path) -> None:
    """Make `previous` the file that is `latest`, which stays where it is if the disk has hard links."""
    if previous.exists() and os.path.samefile(latest, previous):  # killed before the last rename
        return
    try:
        with utils.atomic_file(previous) as temporary:
            os.link(latest, temporary)
    except FileNotFoundError:
        raise
    except OSError:
        os.replace(latest, previous)
