"""What the losses see of a sample: its views in the first epoch of a training, drawn again by the code that trains."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import datasets
import models
import utils
from data import augment, images, locations, views
from options import OBJECTIVES
from tools.report_page.pictures import as_image
from training.resume import fingerprint
from utils import InputError

SAMPLES = 3
EPOCH = 0


def sample_views(run: dict) -> list[dict]:
    """Of SAMPLES pairs of a training (runs.read_training), spread evenly: `id`, `caption`, `path` of the image, and
    `views` [(name, how it was drawn, picture)], the CLIP view first where there is one, then SimCLR's two.

    The views are those of data.views and data.augment for the run's seed and epoch 0, cut from the image file (a run
    may have cut them from a smaller copy in its cache). Raises InputError where the data cannot be read here, or is
    not what the run was trained on.
    """
    try:
        args = Namespace(**{"window": None, "metadata": None, "subset": "all", **run["args"]})
        pairs = read_pairs(args, Path(run["folder"]))
        needs = OBJECTIVES[args.objective]
        if fingerprint(pairs) != run["data"]["crc32"]:
            raise InputError(f"{pairs.root}: its pairs are not those that the run was trained on")
        chosen = np.unique(np.linspace(0, len(pairs) - 1, SAMPLES).round().astype(int)).tolist()
        drawn = views.TrainViews(images.Files(pairs.path, len(pairs)), None, args.objective, args.image_size, args.seed)
        batch = drawn.__getitems__([(EPOCH, i) for i in chosen])
        mean_std = models.pixel_statistics(args)
        pixels = augment.make_views(batch, *mean_std, torch.device("cpu"))
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{run['folder']}/config.json: does not say what the views depend on ({error})") from None
    names = ["CLIP"] * needs.text + ["SimCLR 1", "SimCLR 2"] * needs.views
    found = []
    for row, i in enumerate(chosen):
        image = images.read_image(pairs.path(i))
        pictures = [as_image(view[row], *mean_std) for view in pixels]
        words = [how_drawn(one, image) for one in batch["params"][row].numpy()]
        found.append({
            "id": pairs.ids[i], "caption": pairs.captions[i], "path": pairs.path(i),
            "views": list(zip(names, words, pictures, strict=True)),
        })  # fmt: skip
    return found


def read_pairs(args: Namespace, folder: Path):
    """The training pairs (sets.Pairs) of a run, without the images that it left out as unreadable."""
    entry = datasets.find_entry(args.catalog, args.dataset, args.root, args.window)
    pairs = datasets.paired_set(entry, "train", args.metadata, args.subset)
    named = folder / "unreadable_images_train.txt"
    left_out = set(utils.read_text(named).splitlines()) if named.exists() else set()
    return pairs.without({path for path in pairs.paths() if locations.show(path) in left_out}) if left_out else pairs


def how_drawn(row: np.ndarray, image: Image.Image) -> str:
    """A view's parameters (see data.views) in words, without those that change nothing in a gray image."""
    words = [f"{row[views.WIDTH] * row[views.HEIGHT] / (image.width * image.height):.0%} of the image"]
    names = ("brightness", "contrast", "saturation") if image.mode == "RGB" else ("brightness", "contrast")
    factors = zip(names, row[views.BRIGHTNESS :], strict=False)
    words += [f"{name} × {factor:.2f}" for name, factor in factors if factor != 1]
    if image.mode == "RGB":
        words += [f"hue {row[views.HUE]:+.2f}"] if row[views.HUE] else []
        words += ["made gray"] if row[views.GRAY] else []
    words += [f"blur of {row[views.SIGMA]:.1f} pixels"] if row[views.SIGMA] else []
    return ", ".join(words + (["flipped"] if row[views.FLIP] else []))
