"""Kill runs of main.py, start them again until they end, and compare their weights with an undisturbed run's.

python tests/programs/kill.py                           # 50 runs get SIGKILL, 20 of two ranks SIGTERM to one
python tests/programs/kill.py --sigkill 1 --sigterm 0   # what the test suite does
python tests/programs/kill.py --seed 1                  # other moments; several at once do not disturb each other

SIGKILL comes at a random moment of the run; for every second run at the first moment after it at which a checkpoint's
temporary file is there. SIGTERM goes to one rank of two. The runs save at every step. Exit code 1 if weights differ.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import forked  # isort: skip  (before torch)
import utils

# Small steps, and 8 M parameters, so that a checkpoint of 99 MB is on its way most of the time.
STEPS, BATCH = 12, 4
WORDS = "--arch test_efficientnet --text-model tiny --epochs 3 --lr 1e-3 --save-every 1 --print-freq 1".split()
NOT_WAITED = os.WEXITED | os.WNOHANG | os.WNOWAIT


class Trials:
    def __init__(self, folder: Path, seed: int):
        self.folder, self.random, self.late = folder, random.Random(seed), 0
        words = [*forked.TINY, *WORDS, "--root", forked.make_data(folder, STEPS // 3 * BATCH, 8), "--workers", "1"]
        words[words.index("--ssl-mlp-dim") + 1] = "2048"
        self.words = words

    def start(self, out: Path, world: int) -> list[int]:
        batch = ["--batch-size", BATCH // world]
        return forked.start_ranks(world, [*self.words, *batch, "--output-dir", out], out.with_suffix(".log"))

    def finish(self, out: Path, world: int) -> None:
        """Run to the end."""
        codes = forked.wait(self.start(out, world))
        if any(codes):
            sys.exit(f"exit codes {codes}\n{out.with_suffix('.log').read_text()}")

    def undisturbed(self, world: int) -> Path:
        """-> its last checkpoint."""
        out = self.folder / f"whole_{world}"
        self.finish(out, world)
        return out / "checkpoint.pt"

    def wait_for_moment(self, out: Path, first: int, child: int) -> None:
        """Until the run has ended, or a random step of it, `first` or later, is done and a random moment more."""
        log, step = out.with_suffix(".log"), self.random.randrange(first, STEPS - 2)
        begun = f" {STEPS // 3} steps an epoch"
        while os.waitid(os.P_PID, child, NOT_WAITED) is None:
            text = log.read_text() if log.exists() else ""
            if begun in text and text.count(" samples/s  left ") >= step:
                break
            time.sleep(0.002)
        time.sleep(self.random.uniform(0, 0.2))

    def killed(self, number: int) -> tuple[Path, bool]:
        """A run killed once and finished -> its last checkpoint, and whether a temporary file was there."""
        out = self.folder / f"killed_{number}"
        while True:
            (child,) = self.start(out, 1)
            self.wait_for_moment(out, 0, child)
            while number % 2 and not temporaries(out) and os.waitid(os.P_PID, child, NOT_WAITED) is None:
                time.sleep(0.001)
            os.kill(child, signal.SIGKILL)
            if forked.wait([child]) == [-signal.SIGKILL]:
                break
            self.forget(out)  # it had ended
        found = temporaries(out)
        self.finish(out, 1)
        return out / "checkpoint.pt", found

    def terminated(self, number: int) -> tuple[Path, list[int]]:
        """A run of two ranks, SIGTERM to one of them -> its last checkpoint, and both exit codes before."""
        out = self.folder / f"terminated_{number}"
        while True:
            children = self.start(out, 2)
            self.wait_for_moment(out, 1, children[0])  # after a step, for which both ranks wait for signals
            os.kill(self.random.choice(children), signal.SIGTERM)
            codes = forked.wait(children)
            if (codes[0] and codes[1]) or set(codes) - {0, -signal.SIGTERM}:
                break
            self.forget(out)  # it was done when the signal came
            self.late += 1
        self.finish(out, 2)
        return out / "checkpoint.pt", codes

    def forget(self, out: Path) -> None:
        shutil.rmtree(out)
        out.with_suffix(".log").unlink()


def temporaries(out: Path) -> bool:
    return any(out.glob(".checkpoint.pt.*.tmp"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sigkill", type=int, default=50)
    parser.add_argument("--sigterm", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder), args.seed)
        same = with_file = 0
        if args.sigkill:
            whole = trials.undisturbed(1)
        for number in range(args.sigkill):
            checkpoint, found = trials.killed(number)
            same += forked.same_weights(whole, checkpoint)
            with_file += found
            shutil.rmtree(checkpoint.parent)
            print(f"SIGKILL {number + 1}: same weights {same}, with a temporary file {with_file}", flush=True)
        good &= same == args.sigkill
        same = stopped = 0
        if args.sigterm:
            whole = trials.undisturbed(2)
        for number in range(args.sigterm):
            checkpoint, codes = trials.terminated(number)
            same += forked.same_weights(whole, checkpoint)
            stopped += codes == [utils.EXIT_INTERRUPTED] * 2
            shutil.rmtree(checkpoint.parent)
            print(
                f"SIGTERM {number + 1}: same weights {same}, both ranks left with 75: {stopped} ({codes})", flush=True
            )
        good &= same == stopped == args.sigterm
    print(
        f"{args.sigkill} runs killed with SIGKILL, {with_file if args.sigkill else 0} with a temporary file; "
        f"{args.sigterm} with SIGTERM to one of two ranks (and {trials.late} that had ended when it came): "
        + ("all ended with the weights of an undisturbed run" if good else "NOT ALL ENDED WITH THE SAME WEIGHTS")
    )
    sys.exit(not good)


if __name__ == "__main__":
    main()
