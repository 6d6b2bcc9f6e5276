"""Time to the help, to an error in the arguments, and to the first training step.

python benchmarks/start.py

Baselines in turn: importing torch alone, and the packages that the step needs. The step is that of a small model on
made-up pairs, a process of its own, with a warm file cache.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common

from tools.phantoms import make_phantoms


def call(*words: str, code: int = 0) -> None:
    done = subprocess.run([sys.executable, *words], cwd=common.REPOSITORY, capture_output=True, text=True)
    if done.returncode != code:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    say = common.Record("start", "torchvision", "timm", "transformers")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "phantoms"
        make_phantoms(root, seed=0, pairs=48, validation_pairs=4, calc=(2, 2), mass=(2, 2), workers=2)
        train = ["main.py", "--root", str(root / "roco"), "--arch", "resnet10t", "--text-model", "tiny"]
        train += ["--pretrained", "none", "--image-size", "96", "--ssl-mlp-dim", "512", "--batch-size", "32"]
        train += ["--epochs", "1", "--eval-freq", "9", "--workers", "1", "--device", "cpu"]
        train += ["--output-dir", str(Path(temporary) / "out")]

        def one_step():
            call("-c", "import shutil, sys; shutil.rmtree(sys.argv[1], ignore_errors=True)", train[-1])
            call(*train)

        sides = {
            "import torch": lambda: call("-c", "import torch"),
            "import torch, torchvision, timm, transformers' AutoModel": lambda: call(
                "-c", "import torch, torchvision, timm; from transformers import AutoModel"
            ),
            "main.py --help": lambda: call("main.py", "--help"),
            "main.py with a wrong argument": lambda: call("main.py", "--batch-size", "many", code=2),
            "main_linear.py --help": lambda: call("main_linear.py", "--help"),
            "one step, its evaluation and its checkpoint": one_step,
        }
        seconds = common.in_turn(sides, args.repeats)
    say(f"seconds, {args.repeats} repeats in turn; and how many times import torch")
    for name, values in seconds.items():
        against = common.spread(common.ratios(values, seconds["import torch"]))
        say(f"  {name:58s} {statistics.median(values):6.2f}   {against}")
    say.save()


if __name__ == "__main__":
    main()
