"""A linear probe that encodes once, against one that encodes at each of 100 epochs.

python benchmarks/probe.py

Both on made-up pictures of 0.7 megapixels with random labels and groups. Ours is measured whole: decode, encode the
training and the test split under autocast, then fit (one value of C; and the grid of probes.py with its
folds). The reference is SLIP's main_linear.py with its encoder frozen: every epoch decodes with Pillow, crops, flips
and encodes the training split under the same autocast, trains the layer by SGD, and encodes the test split.
It is EXTRAPOLATED from some measured batches to 100 epochs.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common
import numpy as np
import torch
from input import make_files
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision import transforms as T

from data import augment
from data import images
import models
from evaluation import probes
import utils
from data import views
from data.batches import open_loader, rank_batches

CPU = torch.device("cpu")
NORM = models.MEAN_STD["imagenet"]


class SlipImages(torch.utils.data.Dataset):
    def __init__(self, paths, train: bool):
        end = [T.ToTensor(), T.Normalize(*NORM)]
        start = [T.RandomResizedCrop(224), T.RandomHorizontalFlip()] if train else [T.Resize(256), T.CenterCrop(224)]
        self.paths, self.transform = paths, T.Compose(start + end)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return self.transform(Image.open(self.paths[i]).convert("RGB"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--train", type=int, default=1546, help="images, as CBIS-DDSM's calcifications")
    parser.add_argument("--test", type=int, default=326)
    parser.add_argument("--batches", type=int, default=3, help="of the reference, measured a repeat")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    say = common.Record("probe", "timm", "scikit-learn")
    model = models.create_model(args.arch, None).requires_grad_(False).eval()
    dtype = utils.amp_dtype(None, CPU)
    total = args.train + args.test
    rng = np.random.default_rng(0)
    labels, patients = rng.integers(0, 3, args.train), [str(i // 2) for i in range(args.train)]
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        some = make_files(Path(temporary), None, 64, 0.05)
        paths = [some[i % 64] for i in range(total)]

        def encode_all():
            files = images.Files(paths.__getitem__, total)
            data = views.WholeImages(files, None, 224, "center256")
            rows = []
            with open_loader(data, rank_batches(total, 128, 0, 1), 1, CPU) as loader:
                for batch in loader:
                    (pixels,) = augment.make_views(batch, *NORM, CPU)
                    with utils.autocast(CPU, dtype):
                        rows.append(model.encode_image(pixels, False).float())
            return torch.cat(rows).numpy()

        def reference() -> float:
            """Seconds an image, of the measured batches of training images."""
            loader = torch.utils.data.DataLoader(SlipImages(paths, True), 128, num_workers=1)
            layer = torch.nn.Linear(model.image_projection.in_features, 3)
            optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
            iterator = iter(loader)
            started = time.perf_counter()
            for _ in range(args.batches):
                pixels = next(iterator)
                with utils.autocast(CPU, dtype):
                    rows = model.encode_image(pixels, False)
                with torch.enable_grad():
                    torch.nn.functional.cross_entropy(layer(rows.float()), torch.zeros(128).long()).backward()
                optimizer.step()
                optimizer.zero_grad()
            return (time.perf_counter() - started) / (args.batches * 128)

        ours, theirs, single, grid = [], [], [], []
        for _ in range(args.repeats):
            theirs.append(reference())
            started = time.perf_counter()
            rows = encode_all()
            ours.append(time.perf_counter() - started)
        for _ in range(args.repeats):
            started = time.perf_counter()
            make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)).fit(rows[: args.train], labels)
            single.append(time.perf_counter() - started)
        started = time.perf_counter()
        data = SimpleNamespace(labels=labels, patients=patients, classes=["a", "b", "c"])
        probes.Logistic().fit(rows[: args.train], data, SimpleNamespace(dataset="made up", seed=0))
        grid.append(time.perf_counter() - started)
    whole = [100 * total * one for one in theirs]
    say(f"{args.arch}, {dtype}, {args.train} + {args.test} images, {args.repeats} repeats in turn")
    say(
        f"  reference: {1e3 * statistics.median(theirs):.1f} ms an image; 100 epochs, extrapolated: "
        f"{common.spread(whole, 0)} s"
    )
    say(
        f"  ours: encoding {common.spread(ours, 1)} s; a fit {common.spread(single, 1)} s; "
        f"the grid {grid[0]:.1f} s (once)"
    )
    fit = statistics.median(single)
    with_fit = [one / (other + fit) for one, other in zip(whole, ours, strict=True)]
    with_grid = [one / (other + grid[0]) for one, other in zip(whole, ours, strict=True)]
    say(
        f"  less time, with one fit: {common.spread(with_fit, 0)} times; "
        f"with the grid: {common.spread(with_grid, 0)} times"
    )
    say.save()


if __name__ == "__main__":
    main()
