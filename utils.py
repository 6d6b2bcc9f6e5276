"""Collectives, schedule, seeds, files and logging: nothing here knows what the images show."""

import contextlib
import json
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as collectives

from device import half_precision
from device import name as device_name

logger = logging.getLogger("medslip")


before_end = []  # functions that undo what must not outlive a process that ends at once: distributed.end_now
EXIT_INTERRUPTED = 75  # BSD's EX_TEMPFAIL: try again later


class InputError(ValueError):
    """Something a user gave is wrong. The scripts print it as one line and exit with code 2: distributed.run_script."""


class Interrupted(Exception):
    """A signal ended the run, and its state is saved. `signals` are those that came, on any rank."""

    def __init__(self, signals: list[signal.Signals]):
        super().__init__(", ".join(one.name for one in signals))
        self.signals = signals


# Collectives


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def on_rank0(function, *args, **kwargs):
    """Call `function` on rank 0 and return its result on every rank; so is an `InputError` that it raises.

    Whatever reads the file system goes through here: ranks on a shared disk may otherwise see different folders.
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
    """(n, ...) rows of `range(rank, total, world)` on each rank -> (total, ...) in order, on every rank."""
    if world_size() == 1:
        return rows
    longest = math.ceil(total / world_size())
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten(0, 1)[:total]


# torch 2.15 renamed it.
_all_gather = getattr(collectives, "all_gather_single_autograd", None) or collectives.all_gather_tensor_autograd


def gather(rows: torch.Tensor) -> torch.Tensor:
    """(B, ...) on each rank -> (world * B, ...) on every rank; the backward sums the gradients of all ranks' losses."""
    return _all_gather(rows.contiguous(), 0, dist.group.WORLD) if world_size() > 1 else rows


def mean_over_ranks(values: torch.Tensor) -> torch.Tensor:
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return values


# Schedule and seeds


def learning_rate(step: int, total: int, warmup: int, peak: float, start: float, end: float) -> float:
    """Linear warm-up from `start` to `peak`, then a cosine down to `end` (SLIP's schedule, per step)."""
    if step < warmup:
        return start + (peak - start) * step / max(1, warmup)
    progress = (step - warmup) / max(1, total - warmup)
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * progress))


def seed_step(*numbers: int) -> None:
    """Seed torch from (seed, step, micro-batch, rank): dropout then needs no generator state to resume."""
    state = 0
    for number in numbers:
        state = (state * 1_000_003 + number + 1) % (2**63 - 1)
    torch.manual_seed(state)


# Files


@contextlib.contextmanager
def atomic_file(path: Path):
    """A temporary path beside `path` that replaces it when the block ends well, and is removed when it does not.

    The file and its folder are synced, so that a machine that stops has the old file or the new one. Raises OSError.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # not every file system syncs a folder
            sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def remove_temporaries(folder: Path) -> None:
    """Remove what `atomic_file` left of a process that was killed."""
    for path in Path(folder).glob(".*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()


def write_tensors(contents: dict, path: Path) -> None:
    """torch.save to a file and sync it. Raises OSError."""
    try:
        with open(path, "wb") as file:  # three times as fast as by name, where torch writes in small pieces
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # how torch's archive writer tells of a full disk
        if isinstance(error.__cause__ or error.__context__, OSError):
            raise (error.__cause__ or error.__context__) from None
        raise OSError(str(error).splitlines()[0]) from None


def save_tensors(contents: dict, path: Path) -> None:
    """Write `contents` so that `path` holds either the old or the new file, whole.

    Raises InputError if the disk is full or cannot be written.
    """
    try:
        with atomic_file(path) as temporary:
            write_tensors(contents, temporary)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}): make room, then try again") from None


def save_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, atomically: a hard link, or a copy where the disk has none.

    Raises OSError.
    """
    with atomic_file(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically. Raises InputError if the folder cannot be written."""
    try:
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_text(path: Path) -> str:
    """A UTF-8 text file. Raises InputError naming the file if it is missing or is not text."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a UTF-8 text file (byte {error.start})") from None


def make_folder(path: str | Path) -> Path:
    """Create a folder for a run's output. Raises InputError if that cannot be done."""
    path = Path(path).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output-dir {path}: cannot be made: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise InputError(f"--output-dir {path}: cannot be written to")
    return path


def provenance(args: dict, device: torch.device) -> dict:
    """What someone needs to make a run again: every argument, package versions, git commit, device, world size."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": sys.version.split()[0]}
    for name in ("torch", "torchvision", "timm", "transformers", "numpy", "scikit-learn", "pandas", "pillow"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)

    def git(*words):
        command = ["git", "-C", str(Path(__file__).parent), *words]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    return {
        "args": args,
        "versions": versions,
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": bool(git("status", "--porcelain")),
        "device": device_name(device),
        "world_size": world_size(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


# Mixed precision


def amp_dtype(choice: str | None, device: torch.device) -> torch.dtype | None:
    """The autocast dtype: bf16 where the device has it, else fp16 on a GPU, else none. Raises InputError.

    `choice` is "bf16", "fp16", "off", or None for that default.
    """
    if choice is None:
        return half_precision(device)
    if choice == "fp16" and device.type == "cpu":
        raise InputError("--amp fp16 needs a GPU: on the CPU use --amp bf16 or --amp off")
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[choice]


def full_precision(x: torch.Tensor) -> torch.Tensor:
    """Half precision -> float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def autocast(device: torch.device, dtype: torch.dtype | None):
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


class Progress:
    """A bar on a terminal, plain lines in a log: step, losses, samples/s, and the time left.

    Call `step(samples, values)`; `values` is a function, called only when something is shown, so that no number is
    read back from the device in between.
    """

    def __init__(self, total: int, every: int, title: str, done: int = 0):
        self.total, self.every, self.title, self.count = total, every, title, done
        self.first, self.samples, self.start = done, 0, time.monotonic()
        self.bar = None
        if rank() == 0 and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, desc=title, leave=False, dynamic_ncols=True)

    @property
    def rate(self) -> float:
        return self.samples / max(1e-9, time.monotonic() - self.start)

    def step(self, samples: int, values) -> None:
        self.count += 1
        self.samples += samples
        shown = self.count % self.every == 0 or self.count == self.total
        if self.bar is not None:
            self.bar.update(1)
        if not shown:
            return
        text = "  ".join(f"{name} {value:.4g}" for name, value in values().items())
        if self.bar is not None:
            self.bar.set_postfix_str(f"{text}  {self.rate:.0f} samples/s")
        else:
            left = (time.monotonic() - self.start) / max(1, self.count - self.first) * (self.total - self.count)
            eta = str(timedelta(seconds=round(left)))
            logger.info(f"{self.title} {self.count}/{self.total}  {text}  {self.rate:.1f} samples/s  left {eta}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
