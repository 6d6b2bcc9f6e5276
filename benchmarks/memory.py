"""Peak memory of a training run as --update-freq grows, at a fixed micro-batch, with and without --grad-cache.

python benchmarks/memory.py --root phantoms/roco        # a tree of ROCO's layout with 512 pairs or more

Each figure is the peak resident memory of a real run of main.py of two steps, its own process; on the CPU that holds
everything. Baselines: --update-freq 1, and one large batch of as many pairs.
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def peak(root: str, words: list[str], steps: int = 2) -> float:
    """-> MiB."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(REPOSITORY / "main.py"), "--root", root, "--output-dir", out, "--device", "cpu"]
        child = os.fork()
        if child == 0:
            code = (
                f"import sys, runpy, options; options.sys.argv = {[*command[1:], *words]!r}; sys.path.insert(0, '.')\n"
            )
            code += "from data.batches import EpochBatches; rule = EpochBatches.steps\n"
            code += f"EpochBatches.steps = property(lambda self: min({steps}, rule.fget(self)))\n"
            code += "runpy.run_path('main.py', run_name='__main__')"
            done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
            used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            Path(out, "peak").write_text(f"{done.returncode} {used}")
            os._exit(0)
        os.waitpid(child, 0)
        code, used = Path(out, "peak").read_text().split()
    if int(code):
        sys.exit(f"{' '.join(words)}: exit code {code}")
    return int(used) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--arch", default="medclip_resnet")
    parser.add_argument("--micro-batch", type=int, default=8)
    args = parser.parse_args()
    model = (
        f"--arch {args.arch} --text-model tiny --pretrained none --amp off --workers 0 --epochs 1 --eval-freq 9".split()
    )
    print(f"{args.arch}, 224 pixels, slip, float32, micro-batch {args.micro_batch}: peak resident memory, MiB")
    for freq in (1, 4, 16):
        small = ["--batch-size", str(args.micro_batch), "--update-freq", str(freq)]
        cached = peak(args.root, [*model, *small])
        line = f"update-freq {freq:2d}: grad-cache {cached:6.0f}"
        if freq > 1:
            line += f", no-grad-cache {peak(args.root, [*model, *small, '--no-grad-cache']):6.0f}"
        if freq == 4:
            whole = str(freq * args.micro_batch)
            line += f", one batch of {whole} {peak(args.root, [*model, '--batch-size', whole]):6.0f}"
        print(line, flush=True)
    print(f"python {platform.python_version()}, torch {version('torch')}, {os.cpu_count()} CPU cores")


if __name__ == "__main__":
    main()
