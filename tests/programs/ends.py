"""How processes of several end: many times over, beside a job that keeps every core busy. Exit codes are counted.

python tests/programs/ends.py             # the counts below, about an hour on two cores
python tests/programs/ends.py --short     # few of each and no busy job: what the test suite does

--groups pairs of processes train on the losses over both (test_losses.compare) and end as an interpreter does; of
--alone pairs one process raises while the other waits for it in a collective; --writing is one process that ends by an
error while a checkpoint is being written. All are forked from a process that has imported torch; --spawns pairs do as
--groups in new interpreters. The others are `torchrun --nproc_per_node=2` runs: a training of one short epoch, a probe,
a training that one rank's SIGTERM interrupts, and one whose image file, cut short, one rank alone meets. Exit code 1 if
a process ends with another code than it should, or does not say why.
"""

import argparse
import collections
import contextlib
import ctypes
import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import forked  # isort: skip  (before torch)
import torch
import torch._dynamo  # what DistributedDataParallel imports: once, not in every pair
from conftest import REPOSITORY, make_roco, picture

import main as train
import options
import distributed
import test_losses
from utils import InputError

# torchrun says only which rank failed first: this notes every rank's process id and exit code.
WRAPPER = """#!/bin/sh
trap : TERM
"$@" 2>"$ENDS/error.$RANK" & child=$!
echo $child >"$ENDS/pid.$RANK.new" && mv "$ENDS/pid.$RANK.new" "$ENDS/pid.$RANK"
wait $child; code=$?
while kill -0 $child 2>/dev/null; do wait $child; code=$?; done
echo $code >"$ENDS/code.$RANK"
exit $code
"""
TRAIN = "--arch test_efficientnet --text-model tiny --batch-size 4 --cache none --save-every 1".split()
PROBE = "--dataset two --arch test_efficientnet --pretrained none --image-size 32 --device cpu --workers 0".split()


def busy() -> int:
    """Start a process that computes for ever -> its process id."""
    child = os.fork()
    if child == 0:
        while True:
            pass
    return child


def processes(count: int, folder: Path, function) -> tuple[list[int], list[str]]:
    """`function(rank, store)` in processes that finalise their interpreters -> exit codes, what they printed."""
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            output = os.open(folder / f"printed.{rank}", os.O_WRONLY | os.O_CREAT)
            os.dup2(output, 1)
            os.dup2(output, 2)
            code = 0
            try:
                function(rank, f"file://{folder}/store")
            except SystemExit as stop:
                code = stop.code
            except BaseException:
                traceback.print_exc()
                code = -1
            ctypes.pythonapi.Py_Exit(code)  # as the end of a script, but without leaving this program's own blocks
        children.append(child)
    return forked.wait(children), [read(folder / f"printed.{rank}") for rank in range(count)]


def one_fails(error: Exception, guilty: int, port: int):
    """-> for `processes`: rank `guilty` raises, when the other waits for it in a collective. Rank 0 holds the store."""

    def main(rank):
        distributed.init_distributed("cpu", "gloo", "env://")
        network = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
        if rank == guilty:
            raise error
        say = distributed.say
        distributed.say = lambda line: (time.sleep(0.3), say(line))  # as beside a busy job
        network(torch.ones(1, 2)).sum().backward()

    def script(rank, store):
        os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        distributed.run_script(main, rank)

    return script


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Runs:
    """torchrun runs in a folder, on data of their own."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        self.wrapper = folder / "wrapper.sh"
        self.wrapper.write_text(WRAPPER)
        self.wrapper.chmod(0o755)
        self.whole = make_roco(folder / "whole", train=32, validation=8, absent=0)
        self.broken = make_roco(folder / "broken", train=32, validation=8, absent=0)
        path = sorted((self.broken / "train" / "radiology" / "images").iterdir())[7]
        path.write_bytes(path.read_bytes()[:-200])  # its header is whole, so that the start finds nothing
        for split, number in (("train", 16), ("val", 8)):
            for name in ("one", "two"):
                (folder / "images" / split / name).mkdir(parents=True)
                for i in range(number):
                    picture(i + 50 * (name == "two")).save(folder / "images" / split / name / f"{i}.png")
        entry = f'"path": "{folder / "images"}", "type": "imagefolder", "train": "train", "test": "val"'
        (folder / "catalog.json").write_text(f'{{"two": {{{entry}}}}}')

    def run(self, script: str, words, disturb=lambda out, process: None) -> tuple[list[int], list[str], Path]:
        """-> both ranks' exit codes, the last line of each one's stderr, the run's folder."""
        self.count += 1
        out = self.folder / f"run_{self.count}"
        out.mkdir()
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d"]
        command += ["--rdzv-endpoint=localhost:0", "--no-python", self.wrapper, sys.executable, REPOSITORY / script]
        command += [*words, "--output-dir", out]
        environment = {**os.environ, "ENDS": str(out), "OMP_NUM_THREADS": "1"}
        with open(out / "printed.log", "w") as printed:
            process = subprocess.Popen([*map(str, command)], env=environment, stdout=printed, stderr=printed)
            disturb(out, process)
            process.wait()
        # torchrun kills the wrappers of the others 30 s after one has failed.
        codes = [int(read(out / f"code.{rank}") or -1) for rank in range(2)]
        return codes, [(read(out / f"error.{rank}").strip().splitlines() or [""])[-1] for rank in range(2)], out

    def training(self):
        words = [*forked.TINY, *TRAIN, "--root", self.whole, "--epochs", "1"]
        codes, lines, out = self.run("main.py", words)
        return codes == [0, 0] and (out / "checkpoint.pt").exists(), codes, lines

    def probe(self):
        codes, lines, out = self.run("main_linear.py", [*PROBE, "--catalog", self.folder / "catalog.json"])
        return codes == [0, 0] and (out / "results.json").exists(), codes, lines

    def interrupted(self):
        rank = self.count % 2

        def disturb(out, process):
            while not (out / "checkpoint.pt").exists() and process.poll() is None:
                time.sleep(0.01)
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(read(out / f"pid.{rank}")), signal.SIGTERM)

        words = [*forked.TINY, *TRAIN, "--root", self.whole, "--epochs", "500"]
        codes, lines, out = self.run("main.py", words, disturb)
        return codes == [75, 75] and "SIGTERM: saved" in read(out / "printed.log"), codes, lines

    def error(self):
        codes, lines, _ = self.run("main.py", [*forked.TINY, *TRAIN, "--root", self.broken, "--epochs", "1"])
        told = all("main.py: error: " in line and "ROCO_00007.jpg" in line for line in lines)
        return codes == [2, 2] and told, codes, lines


def read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {
        "groups": 300,
        "spawns": 300,
        "alone": 40,
        "writing": 20,
        "trainings": 60,
        "probes": 30,
        "interrupted": 20,
        "errors": 20,
    }
    for kind, count in kinds.items():
        parser.add_argument(f"--{kind}", type=int, default=count)
    parser.add_argument("--busy", type=int, default=len(os.sched_getaffinity(0)), help="processes beside them")
    parser.add_argument("--short", action="store_true")
    args = parser.parse_args()
    if args.short:
        vars(args).update(
            groups=3, spawns=0, alone=4, writing=1, trainings=0, probes=0, interrupted=0, errors=1, busy=0
        )
    torch.set_num_threads(1)
    rows = torch.randn(8, 10, generator=torch.Generator().manual_seed(1))
    expected = test_losses.expected_gradients(rows)
    gc.freeze()  # else each forked process copies the pages of all modules when it collects
    del sys.modules["__main__"].__file__  # so that a spawned process imports test_losses.py alone, as in the test
    others = [busy() for _ in range(args.busy)]
    good, started = True, time.monotonic()
    folder = Path(tempfile.mkdtemp())  # not a TemporaryDirectory, which every forked process would remove at its end
    try:
        runs = Runs(folder)

        def forks(function, expected: int, line: str = ""):
            codes, printed = processes(2, Path(tempfile.mkdtemp(dir=folder)), function)
            return codes == [expected] * 2 and all(line in one for one in printed), codes, printed

        def groups():
            return forks(lambda rank, store: test_losses.one_rank(rank, 2, store, rows, expected), 0)

        def spawns():
            store = f"file://{tempfile.mkdtemp(dir=folder)}/store"
            try:
                torch.multiprocessing.spawn(test_losses.one_rank, (2, store, rows, expected), nprocs=2)
            except torch.multiprocessing.ProcessException as error:
                return False, str(error).splitlines()[0], []
            return True, [0, 0], []

        def alone():
            failure = RuntimeError("a bug") if runs.count % 2 else InputError("a file")
            guilty, runs.count = runs.count // 2 % 2, runs.count + 1
            code = 2 if isinstance(failure, InputError) else 1
            passed, codes, printed = forks(one_fails(failure, guilty, free_port()), code, f"{failure}\n")
            echoes = ("Traceback", "onnection", "frame #")
            return passed and not any(one in printed[1 - guilty] for one in echoes), codes, printed

        def writing():
            """One process, whose checkpoint is being written when it meets the image that is cut short."""
            out = Path(tempfile.mkdtemp(dir=folder))
            words = [*forked.TINY, *TRAIN, "--root", runs.broken, "--epochs", "1", "--output-dir", out / "out"]
            words[words.index("--ssl-mlp-dim") + 1] = "2048"
            arguments = options.parse(options.train_parser(), [str(word) for word in words])
            codes, printed = processes(1, out, lambda rank, store: distributed.run_script(train.main, arguments))
            return codes == [2] and "ROCO_00007.jpg" in printed[0], codes, printed

        trials = {
            "groups": groups, "spawns": spawns, "alone": alone, "writing": writing,
            "trainings": runs.training, "probes": runs.probe, "interrupted": runs.interrupted, "errors": runs.error,
        }  # fmt: skip
        for name, trial in trials.items():
            found = collections.Counter()
            for number in range(getattr(args, name)):
                passed, codes, lines = trial()
                found[str(codes)] += 1
                if not passed:
                    good = False
                    print(f"{name} {number}: exit codes {codes}, last lines {lines}", flush=True)
            if found:
                print(f"{name}: exit codes: {dict(found)}", flush=True)
    finally:
        for child in others:
            os.kill(child, signal.SIGKILL)
        shutil.rmtree(folder)
    print(f"torch {torch.__version__}, {args.busy} busy processes beside, {time.monotonic() - started:.0f} s")
    print("every process ended as it should" if good else "NOT EVERY PROCESS ENDED AS IT SHOULD")
    sys.exit(not good)


if __name__ == "__main__":
    main()
