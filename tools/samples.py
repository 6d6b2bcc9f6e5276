"""A few images and captions to try a trained model on: of its own data, of a folder, or drawn."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

import datasets
from data.images import SUFFIXES, to_gray_or_rgb
from tools.phantoms import are_phantoms, streams
from tools.phantoms.roco_layout import draw_pair, random_pair
from utils import InputError, logger

COUNT = 8  # images, and captions


class Samples(NamedTuple):
    images: list[Image.Image]  # mode "L" or "RGB"
    captions: list[str]  # from the shortest to the longest; none without a text tower or its tokenizer
    real: bool  # whether the images are; else they are phantoms
    source: str  # in words


def samples(encoder, folder: str | None = None) -> Samples:
    """COUNT images, of `folder` or of the validation split that the run had, and captions of that split.

    Where the run's data is not on this disk, phantoms take its place. Raises InputError for a folder without images.
    """
    with_text = can_tokenize(encoder)
    images = of_folder(encoder, folder) if folder else None
    if images and not with_text:
        return Samples(images, [], True, f"{Path(folder).name}/")
    try:
        found = of_run(encoder, with_text)
    except InputError as error:
        what = "captions are" if images else "images and captions are" if with_text else "images are"
        logger.warning(f"the run's data cannot be read ({error}): {what} drawn")
        found = drawn(with_text)
    if not images:
        return found
    return Samples(images, found.captions, True, f"images of {Path(folder).name}/, captions of {found.source}")


def can_tokenize(encoder) -> bool:
    if encoder.load_tokenizer is None:
        return False
    try:
        return encoder.tokenizer is not None
    except InputError as error:
        logger.warning(f"without a tokenizer no caption can be shown: {error}")
        return False


def of_folder(encoder, folder: str) -> list[Image.Image]:
    root = Path(folder).expanduser()
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES) if root.is_dir() else []
    found = read(encoder, map(str, spread(files)))
    if not found:
        raise InputError(f"--images {folder}: no image in this folder that can be read")
    return found


def of_run(encoder, with_text: bool) -> Samples:
    """Of the validation split, or without one of the training split. Raises InputError."""
    given = {name: getattr(encoder.args, name, None) for name in ("catalog", "dataset", "root", "window", "subset")}
    if not (given["catalog"] and given["dataset"]):
        raise InputError("its arguments do not say which it is")
    entry = datasets.find_entry(given["catalog"], given["dataset"], given["root"], given["window"])
    for split in ("validation", "train"):
        pairs = datasets.paired_set(entry, split, None, given["subset"] or "all", optional=split == "validation")
        if pairs is None or len(pairs) == 0:
            continue
        images = read(encoder, (pairs.path(int(i)) for i in spread(range(len(pairs)))))
        if images:
            captions = [pairs.captions[int(i)] for i in spread(range(len(pairs)), 8 * COUNT)] if with_text else []
            phantoms = are_phantoms(entry["path"])
            source = f"{entry['name']}, {split} split" + ", which are phantoms" * phantoms
            return Samples(images, of_all_lengths(captions), not phantoms, source)
    raise InputError("none of its images can be read")


def drawn(with_text: bool) -> Samples:
    """Pictures and captions of tools/phantoms, the same ones always."""
    images, captions = [], []
    for number in range(COUNT):
        rng, file = streams.generator(0, streams.ROCO_CAPTIONS, number), io.BytesIO()
        file.name = "drawn.jpg"  # Pillow takes the format from it
        spec = random_pair(rng)
        draw_pair(file, spec, rng)
        images.append(to_gray_or_rgb(Image.open(file)))
        captions.append(spec["caption"])
    return Samples(images, of_all_lengths(captions) if with_text else [], False, "phantoms, drawn for this")


def read(encoder, locations) -> list[Image.Image]:
    """COUNT of the images at most; those that cannot be read are named and left out."""
    found = []
    for location in locations:
        try:
            found.append(encoder.read(location))
        except InputError as error:
            logger.warning(str(error))
    return found[:COUNT]


def spread(values, count: int = 2 * COUNT) -> list:
    """`count` of the values, evenly spread, or all where there are fewer."""
    return [values[i] for i in np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).astype(int))]


def of_all_lengths(captions: list[str]) -> list[str]:
    return spread(sorted(captions, key=len), COUNT)
