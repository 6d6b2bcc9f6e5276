"""ROCO as its download script leaves it: the captions and image files of a split, held in byte buffers.

Layout (Pelka et al., LABELS 2018; razorx89/roco-dataset): `{train,validation,test}/radiology/` with `captions.txt`
(`<id> <TAB> <caption>`), `keywords.txt`, `licences.txt` and `images/`. Images carry the ROCO id, or in Kaggle's copy
the PMC file name that `licences.txt` gives for the id.
"""

import itertools
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from data.buffers import Choices, Strings, read_lines
from data.images import SUFFIXES
from data.sets import Pairs
from utils import InputError, logger

SPLITS = ("train", "validation", "test")

# Our rule for subsets: a pair belongs to one if its caption or its keywords match a pattern of it, and neither matches
# a pattern of another modality. The published subsets were picked by hand and never published; --metadata takes one.
MAMMO = (
    r"mammogra(m|ph|f)",
    r"\btomosynthesis\b",
    r"\bmlo\b",
    r"\b(cc|cranio-?caudal|medio-?lateral|medial-lateral)( oblique)? (view|projection|mammo|image)",
)
XRAY = (
    r"\bx[- ]?rays?\b",
    r"radiogra(m|ph|f)",
    r"roentgen",
    r"\bplain films?\b",
    r"\bchest films?\b",
    r"\borthopantomogra",
    r"\bcxr\b",
    r"\bskiagram",
)
OTHER_MODALITY = (
    r"ultraso(und|nic|nogra)",
    r"sonogra",
    r"echogra",
    r"echocardiogra",
    r"\bdoppler\b",
    r"\bmri?\b",
    r"magnetic resonance",
    r"\b(pet|cb)?-?ct\b",
    r"computed tomogra",
    r"\bpet\b",
    r"scintigra",
)
ARTICLE = re.compile(r"PMC\d+")
SUBSETS = {"mammo": MAMMO, "mammo+xray": MAMMO + XRAY}


def read_pairs(root, split: str = "train", metadata=None, subset: str = "all", optional: bool = False) -> Pairs | None:
    """The pairs of a split, or of `metadata`, a file of `<id> <caption>` lines whose images may lie in any split.

    `subset` is "all", "mammo" or "mammo+xray". Captions without an image are left out and listed in `missing`. With
    `optional`, a split that is not there or has no pairs gives None. Raises InputError if there is no such folder, no
    caption, no image of any caption or no pair of the subset, and for an id that is malformed or comes twice.
    """
    if split not in SPLITS:
        raise InputError(f"ROCO has no split '{split}', only {', '.join(SPLITS)}")
    root = data_folder(root)
    captions_file = Path(metadata).expanduser() if metadata else root / split / "radiology" / "captions.txt"
    if optional and not captions_file.exists():
        return None
    ids, captions = read_lines(captions_file)
    if not len(ids):
        raise InputError(f"{captions_file}: holds no captions: expected '<id> <caption>' lines")
    images = list_images(root, SPLITS if metadata else (split,))
    counts = {"captions": len(ids)}
    if subset != "all":
        keywords = read_keywords(root, SPLITS if metadata else (split,))
        chosen = in_subset(subset)
        rows = zip(ids, captions, strict=True)
        keep = np.fromiter((chosen(f"{text} {keywords.get(key, '')}") for key, text in rows), bool, len(ids))
        ids, captions = (column.take(keep, reuse=True) for column in (ids, captions))
        counts[subset] = len(ids)
        if not len(ids):
            return absent(f"{captions_file}: no caption belongs to --subset {subset}", optional)
    files = find_files(ids, images)
    keep = files.which >= 0
    if not keep.any():
        return absent(
            f"{root / split / 'radiology' / 'images'}: no image for any of the {len(ids)} captions of {captions_file} "
            f"(the first is '{ids[0]}'): download the images, or give their folder as --root",
            optional,
        )
    missing = []
    if not keep.all():
        missing = list(ids.take(~keep))
        ids, captions = (column.take(keep, reuse=True) for column in (ids, captions))
        files = files.take(keep)
    counts |= {"pairs": len(ids), "without image": len(missing)}
    return Pairs(str(root), ids, files, captions, missing, counts)


def roco_set(entry: dict, split: str, metadata=None, subset: str = "all", optional: bool = False) -> Pairs | None:
    """A split of a catalog entry, with the articles of its pairs; see `read_pairs`."""
    pairs = read_pairs(entry["path"], split, metadata, subset, optional)
    return pairs and replace(pairs, articles=articles(pairs.root, pairs.ids))


def find_files(ids: Strings, images: dict[str, str]) -> Choices:
    """The image file of each id, `which` being -1 where there is none."""
    number = {file: i for i, file in enumerate(dict.fromkeys(images.values()))}
    known = {key: number[file] for key, file in images.items()}
    which = np.fromiter(map(known.get, ids, itertools.repeat(-1)), np.int32, len(ids))
    return Choices(Strings(number), which)


def absent(message: str, optional: bool) -> None:
    """A split without pairs: an error, or a warning where the split is optional."""
    if not optional:
        raise InputError(message)
    logger.warning(message)


def roco_table(root, split: str = "train", metadata=None, subset: str = "all") -> pd.DataFrame:
    """The pairs as a table [id, path, caption]: to look at, and for small sets. Raises InputError as `read_pairs`."""
    pairs = read_pairs(root, split, metadata, subset)
    columns = {"id": list(pairs.ids), "path": [pairs.path(i) for i in range(len(pairs))]}
    return pd.DataFrame({**columns, "caption": list(pairs.captions)})


def data_folder(root) -> Path:
    """`root`, or the folder in it that holds the splits (the repository's `data`, Kaggle's `all_data`)."""
    if root is None:
        raise InputError("no data folder: give --root, or its path in the catalog")
    root = Path(root).expanduser().absolute()
    if not root.is_dir():
        raise InputError(f"{root}: no such folder: give the folder with train/radiology as --root or in the catalog")
    for folder in (root, root / "data", root / "all_data"):
        if any((folder / split / "radiology").is_dir() for split in SPLITS):
            return folder
    raise InputError(f"{root}: no train/radiology in it: ROCO's layout is {{train,validation,test}}/radiology/")


def list_images(root: Path, splits) -> dict[str, str]:
    """{ROCO id: image file relative to `root`}, by the file's own name or by the PMC name of `licences.txt`."""
    found = {}
    for split in splits:
        folder = root / split / "radiology" / "images"
        try:
            names = sorted(entry.name for entry in os.scandir(folder))
        except OSError:
            continue
        by_stem = {}
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in SUFFIXES:
                by_stem.setdefault(stem, os.path.join(split, "radiology", "images", name))
        found |= {stem: path for stem, path in by_stem.items() if stem not in found}
        for key, name in read_licences(root / split / "radiology" / "licences.txt").items():
            path = by_stem.get(os.path.splitext(name)[0])
            if path is not None:
                found.setdefault(key, path)
    return found


def read_licences(path: Path) -> dict[str, str]:
    """{ROCO id: PMC file name} of a `licences.txt`, empty if there is none."""
    if not path.exists():
        return {}
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            rows = [line.rstrip("\r\n").split(",") for line in file]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return {row[0]: row[1] for row in rows if len(row) >= 2}


def articles(root, ids) -> Choices | None:
    """The PubMed Central article (PMC4083729) of each ROCO id, by `licences.txt` or `dlinks.txt` of any split.

    None if they name none. Raises InputError for a file that cannot be read.
    """
    found = {}
    for split, name in itertools.product(SPLITS, ("licences.txt", "dlinks.txt")):
        path = Path(root) / split / "radiology" / name
        if not path.exists():
            continue
        try:
            with open(path, encoding="utf-8-sig", errors="replace") as file:
                for line in file:
                    key, match = re.split(r"[,\t]", line, maxsplit=1)[0], ARTICLE.search(line)
                    if match:
                        found.setdefault(key, match[0])
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    named = Choices.of(map(found.get, ids))
    return named if len(named.strings) else None


def read_keywords(root: Path, splits) -> dict[str, str]:
    keywords = {}
    for split in splits:
        path = root / split / "radiology" / "keywords.txt"
        if path.exists():
            keywords |= zip(*read_lines(path, "keyword"), strict=True)
        else:
            logger.info(f"{path}: not there; the subset is chosen by captions alone")
    return keywords


def in_subset(subset: str):
    """A function that says of the text "<caption> <keywords>" whether it belongs to "mammo" or "mammo+xray"."""
    if subset not in SUBSETS:
        raise InputError(f"--subset {subset}: not one of all, {', '.join(SUBSETS)}")
    wanted = re.compile("|".join(SUBSETS[subset]), re.IGNORECASE)
    other = re.compile("|".join(OTHER_MODALITY), re.IGNORECASE)
    return lambda text: bool(wanted.search(text)) and not other.search(text)
