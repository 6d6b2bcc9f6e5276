"""Finding the images that a table names: with or without a suffix, in one folder or another."""

import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from data.roco import SUFFIXES

ENDINGS = tuple(dict.fromkeys((*SUFFIXES, ".dcm", ".dicom")))
FIELD = re.compile(r"\{([^{}:]+)(?::(\d+))?\}")


class Template:
    """A path with columns in braces: "p{subject_id:2}/{dicom_id}.jpg", where :2 takes the first two characters."""

    def __init__(self, template: str):
        words = FIELD.split(template)  # text, column, length, text, column, length, ..., text
        self.texts, self.columns = words[::3], words[1::3]
        self.lengths = [int(length) if length else None for length in words[2::3]]

    def fill(self, cells: Iterable[str]) -> str:
        """The path of a row, with the cells of `columns`; "" if one of them is empty."""
        found = self.texts[0]
        for cell, length, after in zip(cells, self.lengths, self.texts[1:], strict=True):
            if not cell:
                return ""
            found += cell[:length] + after
        return found


class Finder:
    """Finds images under any of the folders `bases`, the first that has one.

    A name without a suffix is completed. One that is nowhere is looked for without its first folder too: CheXpert's
    tables have "CheXpert-v1.0-small/train/..." for what lies in "train/...". Every folder is listed once.
    """

    def __init__(self, bases: Iterable[str]):
        self.bases, self.folders = list(dict.fromkeys(bases)), {}

    def __call__(self, names: Iterable[str]) -> dict[str, str]:
        """{name: path} of the names that were found."""
        left, found = dict.fromkeys(names), {}
        with ThreadPoolExecutor(16) as pool:
            for shorten in (False, True):
                for base in self.bases:
                    paths = {name: os.path.join(base, name.partition("/")[2] if shorten else name) for name in left}
                    new = {os.path.dirname(path) for path in paths.values()} - self.folders.keys()
                    self.folders |= zip(new, pool.map(listing, new), strict=True)
                    for name, path in paths.items():
                        file = self.complete(path)
                        if file is not None:
                            found[name] = file
                            del left[name]
                    if not left:
                        return found
        return found

    def complete(self, path: str) -> str | None:
        folder, name = os.path.split(path)
        files, endings = self.folders[folder]
        if name in files:
            return path
        return next((path + ending for ending in endings if name + ending in files), None)


def listing(folder: str) -> tuple[set[str], list[str]]:
    """The names of the files in a folder, and which suffixes of images are among them, in their order in ENDINGS."""
    try:
        with os.scandir(folder) as entries:
            names = {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):
        return set(), []
    there = {os.path.splitext(name)[1] for name in names}
    return names, sorted((one for one in there if one.lower() in ENDINGS), key=lambda one: ENDINGS.index(one.lower()))
