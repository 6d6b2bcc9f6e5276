"""The data set of a run, read as the run would read it; the check goes on where the run would stop."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import datasets
import main_linear
from data import locations, roco
from data.buffers import split_lines
from data.sets import Labelled, Pairs
from tools.checks.section import Section, logged
from utils import InputError


@dataclass
class Split:
    """A split of N samples. `which` (N,) are the numbers of their images in `Subject.files`, None if they are no
    files."""

    name: str
    data: Pairs | Labelled
    which: np.ndarray | None

    def __len__(self) -> int:
        return len(self.data)

    @property
    def captions(self):
        return self.data.captions if isinstance(self.data, Pairs) else []


class Subject:
    """The splits of a run's data set, by name, and the locations of all their image files, each once."""

    def __init__(self, entry: dict | None = None):
        self.entry, self.splits, self.files = entry, {}, []
        self.numbers = {}
        self.cached = {}  # by split, whether a run would keep its pictures in a cache; disk.py finds out

    def add(self, name: str, data: Pairs | Labelled) -> None:
        self.splits[name] = Split(name, data, self.number(data))

    def number(self, data) -> np.ndarray | None:
        if isinstance(data, Pairs):
            used, which = np.unique(data.files.which, return_inverse=True)
            files = [data.located(data.files.strings[number]) for number in used]
        elif len(data) and isinstance(data.images[0], str):
            files, which = list(data.images), np.arange(len(data))
        else:
            return None
        for file in files:
            if file not in self.numbers:
                self.numbers[file] = len(self.files)
                self.files.append(file)
        return np.array([self.numbers[file] for file in files], np.int64)[which]

    def show(self, file: int) -> str:
        """An image file in words, its path from the entry's on."""
        return self.shorten(locations.show(self.files[file]))

    def shorten(self, text: str) -> str:
        return text.removeprefix(os.path.join(self.entry["path"], ""))

    def samples(self, file: int) -> Iterator[tuple[str, int]]:
        """(split, number) of every sample of an image file."""
        for name, split in self.splits.items():
            if split.which is not None:
                yield from ((name, int(i)) for i in np.flatnonzero(split.which == file))


def read(args, subject: Subject) -> Section:
    """Read the splits into `subject`, and say what is there, what is missing, and what a reader refuses."""
    section = Section("Data")
    with logged(section):
        subject.entry = entry = datasets.find_entry(args.catalog, args.dataset, args.root, args.window)
        section.say(f"{args.catalog}, entry '{entry['name']}': type {entry['type']}, {entry['path']}")
    if subject.entry is None:
        return section
    trains = hasattr(args, "objective")
    for split in ("train", "validation") if trains else ("train", "test"):
        with logged(section), tempfile.TemporaryDirectory() as folder:
            metadata = None
            if trains:
                metadata = args.metadata if split == "train" else None
                metadata = clean_captions(section, entry, split, metadata, Path(folder)) or metadata
                optional = split == "validation"
                data = datasets.paired_set(entry, split, metadata, args.subset, optional=optional)
            else:
                data = datasets.labelled_set(entry, split)
            if data is None:
                section.note("no validation split: nothing would be evaluated, and no best checkpoint kept")
            else:
                subject.add(split, data)
                describe(section, split, data)
    if not trains and len(subject.splits) == 2:
        train, test = (split.data for split in subject.splits.values())
        if train.classes != test.classes:
            section.fault(f"the classes of train and test differ: {train.classes} and {test.classes}")
    return section


def describe(section: Section, name: str, data: Pairs | Labelled) -> None:
    notes = "".join(f"; {what}: {text}" for what, text in data.notes.items())
    if isinstance(data, Pairs):
        counts = {"pairs": len(data), **{name: count for name, count in data.counts.items() if name != "pairs"}}
        section.say(f"{name}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items()) + notes)
        section.find(f"{name} captions without an image", data.missing, " (left out)")
        return
    patients = f" of {len(set(data.patients)):,} patients" if data.patients else ""
    named, lack = main_linear.count_labels(data)
    section.say(f"{name}: {len(data):,} images{patients}{named}{notes}")
    if name == "train" and lack:
        section.fault(f"the training split has {lack}")


# ROCO's reader stops at the first bad row of a captions file


def clean_captions(section: Section, entry: dict, split: str, metadata: str | None, folder: Path) -> Path | None:
    """Name every bad row of a captions file, and write one without them to `folder`; None where all rows are good."""
    if entry["type"] != "roco":
        return None
    try:
        file = Path(metadata) if metadata else roco.data_folder(entry["path"]) / split / "radiology" / "captions.txt"
        contents = file.read_bytes()
    except (InputError, OSError):
        return None  # the reader says it
    good, bad, empty = sort_rows(contents, file)
    section.find(f"{split} rows without a caption", empty, " (left out)")
    if not bad:
        return None
    section.find(f"bad rows of the {split} captions", bad, fault=True)
    clean = folder / "captions.txt"
    clean.write_text("".join(f"{key}\t{text}\n" for key, text in good), encoding="utf-8")
    return clean


def sort_rows(contents: bytes, file: Path) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """-> the good rows (id, text), what is wrong with each bad one, and the ids of those without a text."""
    lines, done = contents.split(b"\n"), 0
    good, bad, empty, seen = [], [], [], set()
    while done < len(lines):
        block = lines[done : done + 4096]
        keys, texts, failure = split_lines(b"\n".join([*block, b""]), file, done)
        for row, (key, text) in enumerate(zip(keys, texts, strict=True), done + 1):
            if key and not text:
                empty.append(key)
            elif key in seen:
                bad.append(f"{file}, row {row}: the id '{key[:60]}' comes twice")
            elif key:
                good.append((key, text))
                seen.add(key)
        if failure is not None:
            bad.append(failure)
        done += len(block) if failure is None else len(keys) + 1  # on after the row that failed
    return good, bad, empty
