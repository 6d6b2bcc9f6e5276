"""What every room needs: errors, logging, files, devices and precision. Nothing here knows what an image shows."""

import contextlib
import json
import logging
import os
import pkgutil
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

logger = logging.getLogger("medslip")

before_end = []  # functions that distributed.end_now calls before it ends the process at once: locks are released
EXIT_INTERRUPTED = 75  # BSD's EX_TEMPFAIL: try again later


class InputError(ValueError):
    """Something that a user gave is wrong. The scripts print it as one line and exit with code 2 (run_script)."""


def one_line(error: BaseException) -> str:
    """What another library's error says, on one line of 300 characters at most."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class Interrupted(Exception):
    """A signal ended the run, after its state was saved. `signals` are all that came, on any rank."""

    def __init__(self, signals: list[signal.Signals]):
        super().__init__(", ".join(one.name for one in signals))
        self.signals = signals


def resolve(name: str):
    """What a table's "module:name" names, imported. Raises InputError if there is none."""
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"'{name}' of a table cannot be imported ({error}): correct its line") from None


# Files


@contextlib.contextmanager
def atomic_file(path: Path):
    """A temporary path beside `path` that replaces it when the block ends well, and is removed when it does not.

    The file and its folder are synced: a machine that crashes is left with the old file or the new one. Raises OSError.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # not every file system can sync a folder
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
    """Remove the temporary files that `atomic_file` left behind when its process was killed."""
    for path in Path(folder).glob(".*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()


def write_tensors(contents: dict, path: Path) -> None:
    """torch.save to a file and sync it. Raises OSError."""
    try:
        with open(path, "wb") as file:  # three times as fast as a path, to which torch writes in small pieces
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # torch's archive writer reports a full disk so
        if isinstance(error.__cause__ or error.__context__, OSError):
            raise (error.__cause__ or error.__context__) from None
        raise OSError(str(error).splitlines()[0]) from None


def save_tensors(contents: dict, path: Path) -> None:
    """torch.save to `path`, which holds either the old or the new file, whole, at any time.

    Raises InputError if the disk is full or cannot be written.
    """
    try:
        with atomic_file(path) as temporary:
            write_tensors(contents, temporary)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}): make room, then try again") from None


def save_copy(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy where the disk has no hard links; atomically.

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


def output_folder(given: str | None, *names: str) -> Path:
    """--output-dir as an absolute path; without one, runs/ and the `names` joined, without separators of a path."""
    named = "_".join(re.sub(r"[^\w.-]+", "_", name) for name in names)
    return Path(given or f"runs/{named}").expanduser().absolute()


def make_folder(path: str | Path, flag: str = "--output-dir") -> Path:
    """Create a folder for a run's output, which `flag` asks for. Raises InputError if that cannot be done."""
    path = Path(path).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag} {path}: cannot be made: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise InputError(f"{flag} {path}: cannot be written to")
    return path


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for name in ("torch", "torchvision", "timm", "transformers", "numpy", "scikit-learn", "pandas", "pillow"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def provenance(args: dict, device: torch.device, world: int) -> dict:
    """What is needed to repeat a run: every argument, package versions, git commit, device, number of processes.

    The commit is None outside of a clone.
    """
    here = Path(__file__).parent

    def git(*words):
        if not (here / ".git").exists():  # installed, perhaps into a folder of another repository
            return None
        command = ["git", "-C", str(here), *words]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    return {
        "args": args,
        "versions": versions(),
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": bool(git("status", "--porcelain")),
        "device": device_name(device),
        "world_size": world,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


# Devices and precision. Work for a GPU is queued while the host goes on. The host has to wait as soon as it reads a
# number of the device or copies from memory that is not pinned, and must not free a buffer before its copy is done.


class Done:
    """A handle like `mark`'s for a device on which nothing is queued: there is nothing to wait for."""

    def synchronize(self) -> None:
        pass


def queued(device: torch.device) -> bool:
    """Whether the device's work is queued while the host goes on, as a GPU's is."""
    return device.type != "cpu"


def mark():
    """A handle whose `synchronize()` waits until all that is queued for this process's device by now is done."""
    if not torch.cuda.is_initialized():
        return Done()
    event = torch.cuda.Event()
    event.record()
    return event


def to_host(x: torch.Tensor) -> tuple:
    """Queue a copy of `x` to the host -> the copy, and the handle to `synchronize()` before the copy is read."""
    return x.to("cpu", non_blocking=True), mark()


def host_buffer(x: torch.Tensor) -> torch.Tensor:
    """An empty tensor on the host of the shape and strides of `x`; a copy to it can be queued (pinned memory)."""
    return torch.empty_like(x, device="cpu", pin_memory=queued(x.device))


def half_precision(device: torch.device) -> torch.dtype | None:
    """The half precision in which the device multiplies matrices fast; None on a CPU that has none."""
    if device.type == "cpu":
        has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if has_bf16 else None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def device_name(device: torch.device) -> str:
    """The device in words, for a run's records."""
    return f"cpu, {torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)


def amp_dtype(choice: str | None, device: torch.device) -> torch.dtype | None:
    """The autocast dtype of --amp "bf16", "fp16", "off", or None: the device's `half_precision`. Raises InputError."""
    if choice is None:
        return half_precision(device)
    if choice == "fp16" and device.type == "cpu":
        raise InputError("--amp fp16 needs a GPU: on the CPU use --amp bf16 or --amp off")
    known = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}
    if choice not in known:
        raise InputError(f"amp {choice!r}: not one of {', '.join(known)}")
    return known[choice]


def full_precision(x: torch.Tensor) -> torch.Tensor:
    """Half precision -> float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def autocast(device: torch.device, dtype: torch.dtype | None):
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
