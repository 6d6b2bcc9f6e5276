"""tools/embed.py against the extraction of a probe, and a run of it that is killed against one that is not.

python benchmarks/embed.py --pairs /data/radiology_pairs
python benchmarks/embed.py --images 1000 --repeats 2      # made-up pictures

The images are those of a folder in ROCO's layout, or made up, under as many names as are asked for, and the encoder is
a small one with random weights, so that little hides what is not encoding. The probe's side is features.extract on a
list of the files, without a cache, after the look at every file that main_linear.py takes too. The other side is all
that tools/embed.py does once it has opened the model: it lists the folder, looks at every file, extracts, and writes
the parquet file. Both run in this process, in turn. Then two processes get SIGKILL at a random moment after one of
their saves, and a third ends.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common
import numpy as np
import torch
from input import make_files

import models
import options
from data import images
from data.sets import Labelled
from evaluation import features
from evaluation.encoder import open_encoder
from tools import embed
from training import signals

SCRIPT = common.REPOSITORY / "tools" / "embed.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", metavar="FOLDER", help="a tree in ROCO's layout, for its images")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--arch", default="resnet10t")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    say = common.Record("embed", "timm", "pyarrow", "pillow")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        link_images(args, folder / "images")
        save_run(args, folder / "checkpoint.pt")
        say(
            f"{args.arch} at {args.image_size} pixels, {args.images:,} images, batches of {args.batch_size}, "
            f"{args.workers} workers, {args.device}"
        )
        compare(args, folder, say)
        kill(args, folder, say)
    say.save()


def link_images(args, folder: Path) -> None:
    """As many hard links to the images, in folders of 1,000."""
    if args.pairs:
        found = sorted(one for one in Path(args.pairs).rglob("images/*") if one.suffix.lower() in images.SUFFIXES)
    else:
        folder.mkdir()
        found = [Path(one) for one in make_files(folder.parent, None, 64, 0.05)]
    for source in found:
        source.read_bytes()  # no side shall find them on the disk and the other in memory
    for number in range(args.images):
        source = found[number % len(found)]
        target = folder / f"{number // 1000:03d}" / f"{number:06d}{source.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system
            shutil.copyfile(source, target)


def save_run(args, path: Path) -> None:
    words = ["--arch", args.arch, "--objective", "simclr", "--image-size", str(args.image_size)]
    saved = options.parse(options.train_parser(), words)
    saved.normalize = "imagenet"
    torch.manual_seed(0)
    model = models.create_model(args.arch, None, image_size=args.image_size)
    torch.save({"model": model.state_dict(), "args": options.plain(saved)}, path)


def words_of(args, folder: Path, out: Path, *more: str) -> list[str]:
    words = ["--images", folder / "images", "--run", folder / "checkpoint.pt", "--out", out, "--device", args.device]
    words += ["--batch-size", args.batch_size, "--workers", args.workers, "--print-freq", 1_000_000, *more]
    return [str(word) for word in words]


def compare(args, folder: Path, say) -> None:
    """Say how fast both sides are."""
    ours = embed.make_parser().parse_args(words_of(args, folder, folder / "timed.parquet", "--overwrite"))
    encoder = open_encoder(folder / "checkpoint.pt", args.device, None, text=False)
    settings = embed.settle(ours, encoder)
    paths = sorted(str(path) for path in (folder / "images").rglob("*.*"))
    data = Labelled(paths, np.zeros(len(paths), np.int64), ["one"], None, paths, encoder.fit)
    embed.open_encoder = lambda *_, **__: encoder  # opened once, for both

    def probe():
        images.broken_files(data.images, False)
        with signals.StopRequest() as stop:
            features.extract(
                encoder.model, data, data, settings, encoder.device, encoder.dtype, folder / "features", stop
            )
        shutil.rmtree(folder / "features", ignore_errors=True)

    seconds = common.in_turn({"probe": probe, "embed": lambda: embed.main(ours)}, args.repeats, warmup=0)
    for name, values in seconds.items():
        say(f"  {name:6s} {common.spread([len(paths) / one for one in values], 0)} images/s")
    ratios = common.ratios(seconds["probe"], seconds["embed"])
    say(f"  rate of embed over the probe's, repeat by repeat: {common.spread(ratios, 3)}; the bar is 0.95")


def kill(args, folder: Path, say) -> None:
    """Say whether a run that was killed twice ends with the same file as one that was not."""
    whole, killed = folder / "whole.parquet", folder / "killed.parquet"
    batches = -(-args.images // args.batch_size)
    step = max(1, batches // 20)
    every, saves = ("--save-every", str(step)), -(-batches // step)
    subprocess.run([sys.executable, SCRIPT, *words_of(args, folder, whole, *every)], check=True, capture_output=True)
    part = Path(f"{killed}.partial") / "images" / "0_of_1"
    draw, saved = random.Random(0), 0
    for last in (saves // 2, saves - 1):
        target = draw.randrange(saved + 1, max(saved + 2, last))
        process = subprocess.Popen(
            [sys.executable, SCRIPT, *words_of(args, folder, killed, *every)], stdout=subprocess.DEVNULL
        )
        while (saved := len(list(part.glob("[0-9]*.pt")))) < target and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.random())  # up to a second after the save
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed: give more --images"
        saved = len(list(part.glob("[0-9]*.pt")))
        say(f"  killed after {saved} of {saves} saves")
    done = subprocess.run(
        [sys.executable, SCRIPT, *words_of(args, folder, killed, *every)], check=True, capture_output=True, text=True
    )
    going = next(line for line in done.stdout.splitlines() if line.startswith("going on"))
    same = whole.read_bytes() == killed.read_bytes()
    say(f"  {going.partition(' in ')[0]}; {killed.stat().st_size:,} bytes, equal to the undisturbed file: {same}")
    assert same


if __name__ == "__main__":
    main()
