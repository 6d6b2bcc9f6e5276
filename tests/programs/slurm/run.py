"""Disturb real Slurm jobs in every way that Slurm has, and compare what they end with.

python tests/programs/slurm/run.py --work /shared/folder --partition test --urgent urgent \\
    --node-down "COMMAND {node}" --node-up "COMMAND {node}"

Needs two free nodes and takes about twenty minutes. See README.md beside this file for what each case does. `--urgent`
is a partition whose jobs pre-empt the other's; the two node commands end and start a node's slurmd. A case whose option
is not given is left out. Exit code 1 if a job does not come back, or ends with another result.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[3]), str(Path(__file__).resolve().parents[2])]

import forked  # isort: skip  (before torch)
import torch
from conftest import picture

REPOSITORY = Path(__file__).resolve().parents[3]
TRAIN = "--arch test_efficientnet --text-model tiny --batch-size 4 --lr 1e-3 --save-every 20 --print-freq 5".split()
PROBE = "--arch vit_tiny_patch16_224 --pretrained none --device cpu --workers 0 --amp off --batch-size 8".split()


def call(*words, check=True) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if check and done.returncode:
        sys.exit(f"{' '.join(map(str, words))}: {done.stderr or done.stdout}")
    return done.stdout.strip()


class Jobs:
    def __init__(self, args):
        self.args, self.work = args, Path(args.work).resolve()
        self.work.mkdir(parents=True)
        self.roco = forked.make_data(self.work, 320, 8)
        self.images = self.work / "images"
        for split, count in (("train", args.images), ("val", 20)):
            for shift, name in ((0, "one"), (1, "two")):
                folder = self.images / split / name
                folder.mkdir(parents=True)
                for number in range(count):
                    picture(2 * number + shift + 100_000 * (split == "val")).save(folder / f"{number}.png")
        self.catalog = self.work / "catalog.json"
        entry = f'"path": "{self.images}", "type": "imagefolder", "train": "train", "test": "val"'
        self.catalog.write_text(f'{{"two": {{{entry}}}}}')

    def submit(self, name: str, probe: bool, minutes: int = 30) -> tuple[str, Path]:
        """-> the job's number and its folder."""
        out = self.work / name
        slurm = f"--nodes 2 --ngpus 1 --cpus-per-task 1 --mem-gb 4 --timeout {minutes} --partition".split()
        slurm += [self.args.partition, "--job-dir", out]
        if probe:
            words = ["run_with_submitit_linear.py", *PROBE, "--dataset", "two", "--catalog", self.catalog]
            words += ["--save-every", "5", "--print-freq", "5"]
        else:
            words = ["run_with_submitit.py", *forked.TINY, *TRAIN, "--root", self.roco, "--epochs", self.args.epochs]
        printed = call(sys.executable, *[REPOSITORY / words[0], *words[1:]], *slurm)
        return printed.split()[1].rstrip(":"), out

    def output(self, out: Path) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(out.glob("*_0_log.out")))

    def wait_for(self, out: Path, text: str, times: int = 1, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while self.output(out).count(text) < times:
            if time.monotonic() > deadline:
                sys.exit(f"{out}: '{text}' did not come\n{self.output(out)[-2000:]}")
            time.sleep(0.5)

    def wait_for_end(self, job: str, seconds: float = 900) -> int:
        """Until the job has left the queue -> how often it was restarted."""
        deadline, restarts = time.monotonic() + seconds, 0
        while time.monotonic() < deadline:
            shown = call("scontrol", "show", "job", job, check=False)
            fields = dict(word.split("=", 1) for word in shown.split() if "=" in word)
            restarts = max(restarts, int(fields.get("Restarts", 0)))
            if fields.get("JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", None):
                return restarts
            time.sleep(1)
        sys.exit(f"job {job} has not ended in {seconds} s")

    def node_of_rank(self, job: str, last: bool) -> str:
        names = call("scontrol", "show", "hostnames", call("squeue", "-h", "-j", job, "-o", "%N")).split()
        return names[-1 if last else 0]


def result(out: Path, probe: bool):
    """What a job ended with: its weights, or its predictions."""
    if probe:
        path = out / "predictions.csv"
        return path.read_text() if path.exists() else None
    path = out / "checkpoint.pt"
    return forked.read(path) if path.exists() else None


def same(one, two, epochs: int) -> bool:
    if one is None or two is None or isinstance(one, str):
        return one is not None and one == two
    return one["epoch"] == epochs and all(torch.equal(value, two["model"][key]) for key, value in one["model"].items())


def usr2(jobs, job, out):
    call("scancel", job, "--signal=USR2")


def preempt(jobs, job, out):
    words = f"--partition {jobs.args.urgent} --nodes 2 --exclusive --time 1 --output /dev/null --wrap".split()
    call("sbatch", *words, "sleep 5")


def time_limit(jobs, job, out):
    """Nothing to do: the job's limit of 3 minutes sends the signal after 60 s."""


def requeue(jobs, job, out):
    call("scontrol", "requeue", job)


def slurmd_dies(jobs, job, out):
    node = jobs.node_of_rank(job, last=True)
    call("bash", "-c", jobs.args.node_down.format(node=node))
    call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    time.sleep(5)
    call("bash", "-c", jobs.args.node_up.format(node=node))
    time.sleep(3)
    call("scontrol", "update", f"nodename={node}", "state=resume", check=False)


CASES = {  # name: what disturbs it, the option that it needs, minutes
    "USR2 to all tasks": (usr2, None, 30),
    "pre-emption": (preempt, "urgent", 30),
    "time limit": (time_limit, None, 3),
    "scontrol requeue": (requeue, None, 30),
    "slurmd dies": (slurmd_dies, "node_down", 30),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, help="a new folder that all nodes see")
    parser.add_argument("--partition", default="test")
    parser.add_argument("--urgent", default=None)
    parser.add_argument("--node-down", default=None, help=shlex.quote("command with {node}"))
    parser.add_argument("--node-up", default=None)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=400, help="a class, for the probe")
    parser.add_argument("--only", default=None, help="cases whose name holds this")
    args = parser.parse_args()
    jobs, good = Jobs(args), True
    for probe in (False, True):
        script = "main_linear.py" if probe else "main.py"
        job, out = jobs.submit(f"{script[:-3]}_undisturbed", probe)
        started = time.monotonic()
        jobs.wait_for_end(job)
        reference = result(out, probe)
        print(f"{script}, undisturbed: {time.monotonic() - started:.0f} s", flush=True)
        for number, (name, (disturb, option, minutes)) in enumerate(CASES.items()):
            wanted = args.only is None or args.only in name
            if not wanted or (option and getattr(args, option) is None) or (probe and name == "time limit"):
                continue
            job, out = jobs.submit(f"{script[:-3]}_{number}", probe, minutes)
            jobs.wait_for(out, "features 10/" if probe else "epoch 2 ")
            disturb(jobs, job, out)
            restarts = jobs.wait_for_end(job)
            turns = jobs.output(out).count("going on with ")
            passed = restarts > 0 and same(result(out, probe), reference, args.epochs)
            good &= passed
            print(
                f"{script}, {name}: restarts {restarts}, went on {turns} times, "
                f"{'the same result' if passed else 'NOT THE SAME'}",
                flush=True,
            )
    print("all came back and ended with the same result" if good else "NOT ALL ENDED WITH THE SAME RESULT")
    sys.exit(not good)


if __name__ == "__main__":
    main()
