"""Peak memory, gradient and time of the losses in row blocks against the plain form, and against open_clip's.

python benchmarks/loss.py

Memory: each side in its own process, forward and backward at a global batch of 8,192; what its resident memory peaks
at, above that before. Time: in turn in one process, forward and backward.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common
import torch
import torch.nn.functional as F

import losses

FORMS = {"plain": 10**9, "blocks": 1}  # losses.BLOCK_FROM


def run(kind: str, form: str, batch: int) -> tuple[float, list[torch.Tensor]]:
    """Forward and backward -> the loss and the gradients of both embeddings."""
    losses.BLOCK_FROM = FORMS[form]
    torch.manual_seed(0)
    width = 512 if kind == "CLIP" else 256
    one, two = (torch.randn(batch, width, requires_grad=True) for _ in range(2))
    if kind == "CLIP":
        outputs = {"image_embed": one, "text_embed": two, "logit_scale": torch.tensor(14.0)}
        loss = losses.CLIPLoss()(outputs)["loss"]
    else:
        loss = losses.SimCLRLoss()({"aug1_embed": one, "aug2_embed": two})["loss"]
    loss.backward()
    return loss.item(), [one.grad, two.grad]


def open_clip_loss(batch: int) -> None:
    from open_clip.loss import ClipLoss

    torch.manual_seed(0)
    one, two = (torch.randn(batch, 512, requires_grad=True) for _ in range(2))
    ClipLoss()(F.normalize(one, dim=1), F.normalize(two, dim=1), torch.tensor(14.0)).backward()


def resident(name: str) -> float:
    """MiB of this process: "VmHWM", the peak, or "VmRSS"."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def peak(kind: str, form: str, batch: int) -> float:
    words = [sys.executable, __file__, "--peak", kind, form, str(batch)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", nargs=3, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        kind, form, batch = args.peak
        run(kind, form, 64)
        before = resident("VmRSS")
        run(kind, form, int(batch))
        print(max(0.0, resident("VmHWM") - before))
        return
    say = common.Record("loss", "open_clip_torch")
    for kind in ("CLIP", "SimCLR"):
        found = {form: [peak(kind, form, 8192) for _ in range(3)] for form in FORMS}
        share = common.spread(common.ratios(found["blocks"], found["plain"]), 3)
        sizes = ", ".join(f"{form} {statistics.median(values):.0f} MiB" for form, values in found.items())
        say(f"{kind}, 8,192: peak memory {sizes}; blocks / plain {share}")
        plain, blocks = (run(kind, form, 8192) for form in FORMS)
        apart = max(((a - b).norm() / a.norm()).item() for a, b in zip(plain[1], blocks[1], strict=True))
        say(f"  loss {plain[0]:.7f} and {blocks[0]:.7f}; relative difference of the gradients {apart:.1e}")
    for kind in ("CLIP", "SimCLR"):
        for batch in (1024, 8192):
            sides = {form: lambda form=form: run(kind, form, batch) for form in FORMS}  # noqa: B023
            if kind == "CLIP":
                sides["open_clip"] = lambda: open_clip_loss(batch)  # noqa: B023
            seconds = common.in_turn(sides, args.repeats)
            say(f"{kind}, {batch:,}: times as fast as the plain form, {args.repeats} repeats in turn")
            for name, values in seconds.items():
                against = common.spread(common.ratios(seconds["plain"], values))
                say(f"  {name:10s} {1e3 * statistics.median(values):8.1f} ms   {against}")
    say("Below 4,096 the plain form runs; the blocks at 1,024 are shown for comparison.")
    say.save()


if __name__ == "__main__":
    main()
