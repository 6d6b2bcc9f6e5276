"""What every benchmark needs: the two sides run in turn, their medians and spread, and a record of where it ran."""

import options  # noqa: F401  (before torch: it sets what OpenMP reads)

import os
import platform
import statistics
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def in_turn(sides: dict, repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """{name: function} -> {name: seconds of each repeat}; a repeat runs every side once, the first ones not counted."""
    seconds = {name: [] for name in sides}
    for number in range(warmup + repeats):
        for name, function in sides.items():
            started = time.perf_counter()
            function()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratios(baseline: list[float], ours: list[float]) -> list[float]:
    """How many times faster ours was, repeat by repeat."""
    return [one / other for one, other in zip(baseline, ours, strict=True)]


def spread(values: list[float], digits: int = 2) -> str:
    """ "median (least to most)"."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class Record:
    """Prints lines and keeps them in benchmarks/results/NAME.txt, under the command, the versions and the hardware."""

    def __init__(self, name: str, *packages: str):
        self.path = REPOSITORY / "benchmarks" / "results" / f"{name}.txt"
        versions = []
        for package in ("torch", *packages):
            try:
                versions.append(f"{package} {version(package)}")
            except PackageNotFoundError:
                versions.append(f"no {package}")
        words = " ".join(sys.argv[1:])
        self.lines = []
        self(f"$ python benchmarks/{Path(sys.argv[0]).name} {words}".rstrip())
        self(f"{time.strftime('%Y-%m-%d')}; python {platform.python_version()}, {', '.join(versions)}")
        self(f"{len(os.sched_getaffinity(0))} CPU cores ({processor()}); {gpu()}\n")

    def __call__(self, line: str = "") -> None:
        print(line, flush=True)
        self.lines.append(line)

    def save(self) -> None:
        self.path.write_text("\n".join(self.lines) + "\n")


def gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
