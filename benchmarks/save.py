"""How long a save holds the training thread, against a plain torch.save, in turn in one process.

Held is the call itself and the wait before the next update; the writer copies during the pass in between.

python benchmarks/save.py                 # medclip_vit with its text tower, projection head and AdamW's moments
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import options  # noqa: F401  (before torch: it sets what OpenMP reads)
import torch

import models
from training import saver


def backward(model) -> None:
    """What comes between a save and the next update: a forward and a backward pass, of two pairs."""
    ids = torch.randint(1000, (2, 32))
    image, text = model.encode_image(torch.randn(2, 3, 224, 224)), model.encode_text(ids, torch.ones_like(ids))
    (image.square().mean() + text.square().mean()).backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--arch", default="medclip_vit")
    args = parser.parse_args()
    model = models.create_model(args.arch, "slip")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = {"step": 1, "best": None, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        keeper = saver.Saver(Path(folder), (1, None))
        held, written, plain, slower = [], [], [], []
        for number in range(args.repeats + 1):
            started = time.perf_counter()
            torch.save(state, Path(folder) / f"plain_{number}.pt")
            seconds = time.perf_counter() - started
            size = os.path.getsize(Path(folder) / f"plain_{number}.pt")
            os.remove(Path(folder) / f"plain_{number}.pt")
            started = time.perf_counter()
            keeper.save(state)
            save = time.perf_counter() - started
            started_pass = time.perf_counter()
            backward(model)
            passes = time.perf_counter() - started_pass
            waited = time.perf_counter()
            keeper.wait_for_copy()
            save += time.perf_counter() - waited
            keeper.wait()
            until = time.perf_counter() - started
            started_pass = time.perf_counter()
            backward(model)
            alone = time.perf_counter() - started_pass
            if number == 0:
                print(f"first save, which also makes the buffers: held {save:.3f} s, torch.save {seconds:.3f} s")
                continue
            plain.append(seconds)
            held.append(save)
            written.append(until)
            slower.append(passes - alone)
        keeper.close()
    ratios = [one / other for one, other in zip(held, plain, strict=True)]
    print(f"{args.arch}, slip, AdamW: {size / 1e9:.2f} GB; {args.repeats} repeats in turn: median (least to most)")
    for name, values in (
        ("torch.save, s", plain),
        ("thread held by a save, s", held),
        ("until it is on the disk, s", written),
        ("next pass is slower by, s", slower),
        ("held / torch.save", ratios),
    ):
        print(f"{name:28s} {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    print(f"python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} CPU cores")


if __name__ == "__main__":
    main()
