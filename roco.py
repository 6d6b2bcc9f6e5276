"""ROCO as its download script leaves it: captions and image files of a split, held as packed text.

Layout (Pelka et al., LABELS 2018; razorx89/roco-dataset): `{train,validation,test}/radiology/` with `captions.txt`
(`<id> <TAB> <caption>`), `keywords.txt`, `licences.txt` and `images/`. Images carry the ROCO id, or in Kaggle's copy
the PMC file name that `licences.txt` gives for the id.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from utils import InputError, logger

SPLITS = ("train", "validation", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp")

# Our subset rule: a pair belongs if its caption or its keywords match a pattern of the subset, and neither names
# another modality. The published subsets were hand-picked and never released; --metadata takes such a file.
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
SUBSETS = {"mammo": MAMMO, "mammo+xray": MAMMO + XRAY}


class Strings:
    """N strings as one byte buffer and N + 1 offsets: shared by worker processes, with no Python object a string."""

    def __init__(self, strings: Iterable[str]):
        buffer, ends = bytearray(), [0]
        for string in strings:
            buffer += string.encode("utf-8")
            ends.append(len(buffer))
        self.buffer = np.frombuffer(bytes(buffer), np.uint8)
        self.offsets = np.asarray(ends, np.int64)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.buffer[self.offsets[i] : self.offsets[i + 1]].tobytes().decode("utf-8")


@dataclass
class Pairs:
    """Image-caption pairs. `files` are relative to `root`; `missing` are ids with a caption and no image, and
    `unreadable` files that were left out."""

    root: str
    ids: Strings
    files: Strings
    captions: Strings
    missing: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, i: int) -> str:
        return os.path.join(self.root, self.files[i])

    def without(self, broken: set[str]) -> "Pairs":
        """The pairs whose image file is not in `broken` (paths)."""
        keep = [i for i in range(len(self)) if self.path(i) not in broken]
        ids, files, captions = (Strings(column[i] for i in keep) for column in (self.ids, self.files, self.captions))
        return Pairs(self.root, ids, files, captions, self.missing, self.counts, sorted(broken))


def read_pairs(root, split: str = "train", metadata=None, subset: str = "all", optional: bool = False) -> Pairs | None:
    """The pairs of a split, or of `metadata`, a file of `<id> <caption>` lines whose images may lie in any split.

    `subset` is "all", "mammo" or "mammo+xray". Captions without an image are left out and listed in `missing`. With
    `optional`, a split that is not there or has no pairs gives None. Raises InputError: no folder, no captions, a
    malformed or double id (with its row), no image for any caption, nothing left by the subset.
    """
    if split not in SPLITS:
        raise InputError(f"ROCO has no split '{split}', only {', '.join(SPLITS)}")
    root = data_folder(root)
    captions_file = Path(metadata).expanduser() if metadata else root / split / "radiology" / "captions.txt"
    if optional and not captions_file.exists():
        return None
    rows = read_lines(captions_file)
    if not rows:
        raise InputError(f"{captions_file}: holds no captions: expected '<id> <caption>' lines")
    images = list_images(root, SPLITS if metadata else (split,))
    counts = {"captions": len(rows)}
    if subset != "all":
        keywords = read_keywords(root, SPLITS if metadata else (split,))
        chosen = in_subset(subset)
        rows = {key: caption for key, caption in rows.items() if chosen(f"{caption} {keywords.get(key, '')}")}
        counts[subset] = len(rows)
        if not rows:
            return absent(f"{captions_file}: no caption belongs to --subset {subset}", optional)
    found = {key: images[key] for key in rows if key in images}
    missing = [key for key in rows if key not in images]
    if not found:
        return absent(
            f"{root / split / 'radiology' / 'images'}: no image for any of the {len(rows)} captions of {captions_file} "
            f"(the first is '{next(iter(rows))}'): download the images, or give their folder as --root",
            optional,
        )
    counts |= {"pairs": len(found), "without image": len(missing)}
    return Pairs(
        str(root), Strings(found), Strings(found.values()), Strings(rows[key] for key in found), missing, counts
    )


def absent(message: str, optional: bool) -> None:
    """A split without pairs: an error, or a warning where the split is optional."""
    if not optional:
        raise InputError(message)
    logger.warning(message)


def roco_table(root, split: str = "train", metadata=None, subset: str = "all") -> pd.DataFrame:
    """The pairs as a table [id, path, caption], for people and small sets. Raises InputError, see `read_pairs`."""
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


def read_lines(path: Path, noun: str = "caption") -> dict[str, str]:
    """`<id> <white space> <text>` lines -> {id: text}. Lines without text are left out, and counted in the log."""
    rows, empty = {}, 0
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    words = line.decode("utf-8-sig" if number == 1 else "utf-8").split(None, 1)
                except UnicodeDecodeError:
                    raise InputError(f"{path}, row {number}: not UTF-8 text") from None
                if not words:
                    continue
                key = words[0]
                if re.search(r"[/\\\0]", key) or key.startswith("."):
                    raise InputError(f"{path}, row {number}: '{key[:60]}' is not an id but a path: correct the row")
                if key in rows:
                    raise InputError(f"{path}, row {number}: the id '{key[:60]}' comes twice: remove one of the rows")
                if len(words) == 1 or not words[1].strip():
                    empty += 1
                    continue
                rows[key] = " ".join(words[1].split())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if empty:
        logger.info(f"{path}: {empty} rows without a {noun} left out")
    return rows


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


def read_keywords(root: Path, splits) -> dict[str, str]:
    keywords = {}
    for split in splits:
        path = root / split / "radiology" / "keywords.txt"
        if path.exists():
            keywords |= read_lines(path, "keyword")
        else:
            logger.info(f"{path}: not there; the subset is chosen by captions alone")
    return keywords


def in_subset(subset: str):
    """A predicate over "caption keywords" for "mammo" or "mammo+xray"; see the patterns above."""
    if subset not in SUBSETS:
        raise InputError(f"--subset {subset}: not one of all, {', '.join(SUBSETS)}")
    wanted = re.compile("|".join(SUBSETS[subset]), re.IGNORECASE)
    other = re.compile("|".join(OTHER_MODALITY), re.IGNORECASE)
    return lambda text: bool(wanted.search(text)) and not other.search(text)
