"""Finding the images that a table names: with or without a suffix, in one folder or another."""

import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from data.images import SUFFIXES
from utils import InputError

FIELD = re.compile(r"\{([^{}:]+)(?::(\d+))?\}")


class Template:
    """A path with columns in braces: "p{subject_id:2}/{dicom_id}.jpg", where :2 takes the first two characters.

    Raises InputError for other braces.
    """

    def __init__(self, template: str):
        if any(brace in FIELD.sub("", template) for brace in "{}"):
            raise InputError(f"images: '{template[:80]}': expected columns in braces, {{NAME}} or {{NAME:2}}")
        words = FIELD.split(template)  # text, column, length, text, column, length, ..., text
        self.texts, self.columns = words[::3], words[1::3]
        self.lengths = [int(length) if length else None for length in words[2::3]]

    def fill(self, cells: tuple[str, ...]) -> str:
        """The path of a row, with the cells of `columns`; "" if one of them is empty."""
        if not all(cells):
            return ""
        fields = zip(cells, self.lengths, self.texts[1:], strict=True)
        return self.texts[0] + "".join(cell[:length] + after for cell, length, after in fields)


class Finder:
    """Finds images in any of the folders `bases`; the first that has one counts.

    A name without a suffix is completed. One that is nowhere is looked for without its first folder too: CheXpert's
    tables have "CheXpert-v1.0-small/train/..." for what lies in "train/...". Every folder is listed once.
    """

    def __init__(self, bases: Iterable[str]):
        self.bases, self.listings = list(dict.fromkeys(bases)), {}

    def __call__(self, names: Iterable[str]) -> dict[str, str]:
        """{name: path} of the names that were found."""
        found, left = {}, [(name, *name.rpartition("/")) for name in dict.fromkeys(names)]
        with ThreadPoolExecutor(16) as pool:
            for shorten in (False, True):
                for base in self.bases if left else ():
                    heads = {head + slash for _, head, slash, _ in left}
                    folders = {head: os.path.join(base, head.partition("/")[2] if shorten else head) for head in heads}
                    new = set(folders.values()) - self.listings.keys()
                    self.listings |= zip(new, pool.map(listing, new), strict=True)
                    there = {head: (folder, *self.listings[folder]) for head, folder in folders.items()}
                    others = []
                    for one in left:
                        name, head, slash, tail = one
                        folder, files, endings = there[head + slash]
                        if tail not in files:
                            tail = next((tail + ending for ending in endings if tail + ending in files), None)
                        if tail is None:
                            others.append(one)
                        else:
                            found[name] = folder + tail
                    left = others
        return found


def listing(folder: str) -> tuple[set[str], list[str]]:
    """The names of the files in a folder, and which suffixes of images are among them, in the order of SUFFIXES."""
    try:
        with os.scandir(folder) as entries:
            names = {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):
        return set(), []
    endings = {name[name.rfind(".") :] for name in names}
    places = {ending: SUFFIXES.index(ending.lower()) for ending in endings if ending.lower() in SUFFIXES}
    return names, sorted(places, key=places.get)
