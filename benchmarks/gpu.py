"""All that waits for a GPU in one run of under 8 minutes on one: agreement with the CPU, survival, and the rates.

make gpu                                       # with .venv's Python if it is there, else python3
make gpu BIN=/usr/bin GPU="--only step"        # with another Python, and words for this script
python benchmarks/gpu.py                       # without make; any Python that has the requirements
python benchmarks/gpu.py --only step --only loop
python benchmarks/gpu.py --device cpu          # a rehearsal in small: its figures say nothing

It needs no network, no data, no open_clip and no submitit. Each section (gpu_sections.py) is a process of its own with
a limit of seconds: one that fails, hangs or spoils the device leaves the others alone. Those that take no time run side
by side first. benchmarks/results/gpu.json is written again after every section. Exit code 0 if every section that ran
has passed, 1 if not, 2 without a GPU.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common
import utils

TOTAL = 465  # seconds for all sections together on a GPU
DATA = {"data": 60}
TOGETHER = {"runs": 150, "encoders": 120, "features": 90, "group": 60, "overflow": 60, "views": 60}
ALONE = {"step": 100, "loop": 150, "compile": 150}
LIMITS = DATA | TOGETHER | ALONE


class Bench:
    """The sections of one call, and its file."""

    def __init__(self, args, device):
        self.args, self.began = args, time.monotonic()
        self.deadline = self.began + TOTAL if device.type == "cuda" else float("inf")
        self.lock, self.running = threading.Lock(), set()
        self.cores = len(os.sched_getaffinity(0))
        self.at_once = max(1, min(3, self.cores // 4))
        self.record = {
            "command": " ".join(["python benchmarks/gpu.py", *sys.argv[1:]]),
            "rehearsal": device.type == "cpu",
            "run": utils.provenance(vars(args), device, 1),
            "cpu": f"{self.cores} cores, {common.processor()}",
            "sections": {},
        }

    def run(self, name: str) -> None:
        """One section in a process of its own, killed with all that it started when its time is over."""
        limit = min(LIMITS[name], self.deadline - time.monotonic()) if self.args.device != "cpu" else 900
        if limit < 10:
            return self.write(name, {"status": "not run: no time was left"})
        began, out = time.monotonic(), Path(self.args.folder) / f"{name}.json"
        words = [sys.executable, str(Path(__file__).with_name("gpu_sections.py")), name, str(out)]
        words += ["--device", self.args.device, "--folder", self.args.folder] + ["--quick"] * self.args.quick
        threads = self.cores // (self.at_once if name in TOGETHER else 1)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        log = out.with_suffix(".log")
        with open(log, "wb") as file:
            process = subprocess.Popen(
                words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment
            )
        self.running.add(process)
        try:
            process.wait(limit)
            ended = f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {limit:.0f} s"
        finally:
            kill(process)
            self.running.discard(process)
        try:
            found = json.loads(out.read_text())
        except (OSError, ValueError):
            found = {}
        if found.get("status") is None:  # it did not come to its end
            tail = log.read_text(errors="replace")[-4000:]
            found |= {"status": f"error: {ended}", "output": tail}
        return self.write(name, {**found, "seconds": round(time.monotonic() - began, 1)})

    def write(self, name: str, found: dict) -> None:
        """Add a section to the file, and print it."""
        with self.lock:
            self.record["sections"][name] = found
            self.record["seconds"] = round(time.monotonic() - self.began, 1)
            utils.write_json(self.args.out, self.record)
            print(f"\n{name}: {found['status']} ({found.get('seconds', 0):.0f} s)")
            for label, value in found.get("results", {}).items():
                print(f"  {label:58s} {shown(value)}")
            for label, good in found.get("checks", {}).items():
                if not good:
                    print(f"  FAILED: {label}")
            last = (found.get("traceback") or found.get("output") or "").strip().splitlines()[-12:]
            print("".join(f"  | {line}\n" for line in last), end="", flush=True)


def kill(process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def shown(value) -> str:
    """A result for the table: a number to four figures, several repeats as median and spread."""
    if isinstance(value, dict) and "median" in value:
        return f"{value['median']:.4g} ({value['least']:.4g} to {value['most']:.4g})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[*TOGETHER, *ALONE], help="may be given several times")
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", default=None, metavar="FILE", help="default: benchmarks/results/gpu.json")
    parser.add_argument("--folder", default=None, help="for made-up images, 3 GB (default: the system's temporary one)")
    args = parser.parse_args()
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu.py: error: torch sees no GPU here (--device cpu rehearses the script)", file=sys.stderr)
        return 2
    default = "benchmarks/results/gpu.json" if args.device == "cuda" else "runs/gpu_rehearsal.json"
    args.out = str(Path(args.out or common.REPOSITORY / default).absolute())
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="medslip_gpu_") as args.folder:
        bench = Bench(args, torch.device(args.device))
        print(f"{bench.record['run']['device']}; {bench.record['cpu']}; torch {torch.__version__}")
        try:
            for name in DATA:
                bench.run(name)
            with ThreadPoolExecutor(bench.at_once) as pool:
                try:
                    list(pool.map(bench.run, [name for name in TOGETHER if name in (args.only or TOGETHER)]))
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
                finally:
                    for process in list(bench.running):
                        kill(process)
            for name in ALONE:
                if name in (args.only or ALONE):
                    bench.run(name)
        finally:
            for process in list(bench.running):
                kill(process)
    statuses = {name: found["status"] for name, found in bench.record["sections"].items()}
    print("\n" + ", ".join(f"{name} {status}" for name, status in statuses.items()))
    print(f"{bench.record['seconds']:.0f} s in all; {args.out}")
    return int(not all(status == "passed" for status in statuses.values()))


if __name__ == "__main__":
    sys.exit(main())
