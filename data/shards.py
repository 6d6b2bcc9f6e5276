"""Tar shards as the webdataset library writes and groups them: pairs, or labelled images, read by their position.

Sources are named as there: `train/shard-{000000..000999}.tar`, joined by `::`. Members of a sample are an image, and
`.txt`, `.json` or `.cls`. See shard_index.py for what a sample is.
"""

import glob
import itertools
import os
import re
from pathlib import Path

import numpy as np

from data import shard_index
from data.buffers import Choices, Strings
from data.roco import in_subset
from data.sets import Labelled, Pairs, named_fit
from utils import InputError, logger

MOST_SHARDS = 1_000_000
SUFFIXES = (".tar", ".tar.gz", ".tgz")  # in a folder; compressed ones are refused when they are opened
KEYS = ("id", "caption", "article", "patient", "label")  # fields of the JSON; the entry may call them otherwise
RANGE = re.compile(r"(-?\d{1,12})\.\.(-?\d{1,12})(?:\.\.-?(\d{1,12}))?")
SHOWN = 20  # faults that are named in the log


def paired_shards(entry: dict, split: str, metadata=None, subset: str = "all", optional: bool = False) -> Pairs | None:
    """A split's pairs, in the order of the shards and of their members; see datasets.paired_set.

    Samples without an image or a caption are counted, and named in `missing`. Raises InputError if no pair is left, for
    a shard that is not there or damaged, and for a field that no sample has.
    """
    if metadata:
        raise InputError(f"--metadata {metadata}: type 'webdataset' has its captions in the shards: leave it out")
    if split not in entry and optional:
        return None
    found = Samples(entry, split)
    captions = found.column("captions")
    keep = captions.lengths() > 0
    missing = [*found.column("imageless"), *found.ids.take(~keep)]
    counts = {"samples": found.counts["samples"]}
    counts |= {"without image": len(found.column("imageless")), "without caption": int((~keep).sum())}
    if found.counts["placeholders"]:
        counts[f'with the caption "{shard_index.PLACEHOLDER}"'] = found.counts["placeholders"]
    if subset != "all":
        chosen = in_subset(subset)
        keep &= np.fromiter(map(chosen, captions), bool, len(captions))
        counts[subset] = int(keep.sum())
    if not keep.any():
        if optional and len(found.ids):
            logger.warning(f"{entry['path']}: no {split} pair" + (f" of --subset {subset}" if subset != "all" else ""))
            return None
        raise InputError(found.nothing("pair of an image and a caption", subset))
    articles = found.named("articles", "article")
    articles = articles and Choices.of(value or None for value in articles)
    ids, files, captions = (some.take(keep, reuse=True) for some in (found.ids, found.files, captions))
    counts["pairs"] = len(ids)
    files = Choices(files, np.arange(len(ids), dtype=np.int32))
    return Pairs(entry["path"], ids, files, captions, missing, counts, articles=articles and articles.take(keep))


def labelled_shards(entry: dict, split: str) -> Labelled:
    """A split's labelled images: by the JSON's label, by the number in `.cls`, or by both.

    The classes are those of the training split, in the order of their numbers, else sorted. Raises InputError as
    `paired_shards`, and for a label that is no class of the training split.
    """
    found = Samples(entry, split)
    training = found if split == "train" else Samples(entry, "train")
    if both := sorted(set(found.shards) & set(training.shards)) if split != "train" else ():
        raise InputError(f"--dataset {entry['name']}: {both[0]} is in 'train' and in '{split}': name other shards")
    classes = training.classes()
    numbers = {name: number for number, name in enumerate(classes)}
    named = list(found.labels())
    for name, key in zip(named, found.ids, strict=True):
        if name not in numbers:
            what = f"the label '{name[:60]}' is no class of the training split" if name else "no label"
            raise InputError(f"{entry['path']}: sample {key[:60]} of {split}: {what}")
    imageless = found.column("imageless")
    if len(imageless):
        logger.warning(f"{entry['path']}: {len(imageless):,} samples of {split} without an image, {imageless[0]} first")
    patients = found.named("patients", "patient")
    if patients is not None and not patients.lengths().all():
        logger.warning(f"{entry['path']}: some samples of {split} name no patient: patients are not told apart")
        patients = None
    images = [os.path.join(entry["path"], file) for file in found.files]
    labels = np.array([numbers[name] for name in named], np.int64)
    fit = named_fit(entry)
    return Labelled(list(found.ids), labels, classes, patients and list(patients), images, fit)


class Samples:
    """The samples of a split that have an image: `ids`, `files` (locations relative to the entry's path), columns.

    `counts` are those of the whole split. Raises InputError as `find_shards` and tar.Archive.
    """

    def __init__(self, entry: dict, split: str):
        self.entry, self.split = entry, split
        self.shards = shards = find_shards(entry, split)
        self.keys = {key: entry.get(key, key) for key in KEYS}
        paths = [Path(entry["path"], shard) for shard in shards]
        self.indices = shard_index.open_all(paths, self.keys)
        every = [one.head["counts"] for one in self.indices]
        self.counts = {name: sum(one[name] for one in every) for name in ("samples", "placeholders")}
        self.ids = unique(self.column("ids"), self.indices, shards)
        self.files = Strings()
        for index, shard in zip(self.indices, shards, strict=True):
            contents, lengths = index.columns["places"]
            start = shard.encode("utf-8")
            self.files.extend(bytes(contents).replace(b"\0at=", start + b"\0at="), lengths + len(start))
        self.say_faults(shards)

    def column(self, name: str) -> Strings:
        found = Strings()
        for index in self.indices:
            index.add(name, found)
        return found

    def named(self, name: str, key: str) -> Strings | None:
        """A column; None if it is empty. Raises InputError if it is and the entry's `key` names its field."""
        found = self.column(name)
        if found.lengths().any():
            return found
        if key in self.entry:
            seen = next((one.head["fields"] for one in self.indices if one.head["fields"]), [])
            raise InputError(
                f"{self.entry['path']}: no JSON of {self.split} has '{self.entry[key][:60]}', the entry's {key}: "
                + (f"the first has {', '.join(seen)}" if seen else "there is none")
            )
        return None

    def labels(self) -> Strings:
        """The label of each sample, or where there is none the number of its .cls."""
        named = self.column("labels")
        return named if named.lengths().any() else self.column("numbers")

    def classes(self) -> list[str]:
        pairs = sorted(set(zip(self.labels(), self.column("numbers"), strict=True)))
        if all(number.isdecimal() and len(number) < 19 for _, number in pairs):
            pairs.sort(key=lambda pair: int(pair[1]))
        for column in zip(*pairs, strict=True):
            if any(column) and len(set(column)) < len(column):
                raise InputError(
                    f"{self.entry['path']}: .cls and the label '{self.keys['label'][:60]}' of the JSON contradict each "
                    f"other in {self.split}: one number a label is expected"
                )
        if not pairs:
            raise InputError(self.nothing("image"))
        return [name for name, _ in pairs if name]

    def nothing(self, what: str, subset: str = "all") -> str:
        """The message for a split that has nothing to offer."""
        faults = self.column("faults")
        return f"{self.entry['path']}: no {what} in {self.counts['samples']:,} samples of {self.split}" + (
            f" belongs to --subset {subset}" if subset != "all"
            else f": the first thing left out is {faults[0]}" if len(faults)
            else ": a sample's members must follow each other, and what comes after a name's first dot is its suffix"
        )  # fmt: skip

    def say_faults(self, shards: list[str]) -> None:
        faults = (
            f"{os.path.join(self.entry['path'], shard)}, {what}"
            for index, shard in zip(self.indices, shards, strict=True)
            for what in index.add("faults", Strings())
        )
        for what in itertools.islice(faults, SHOWN):
            logger.warning(what)
        if more := sum(1 for _ in faults):
            logger.warning(f"{self.entry['path']}: {more:,} more of {self.split} left out so")


def unique(ids: Strings, indices, shards: list[str]) -> Strings:
    """The ids, those that come more than once in the split with their shard before them: `train/shard-000001/key`.

    One that comes again in the same shard also gets a number.
    """
    hashes = np.concatenate([index.hashes for index in indices])
    ordered = np.sort(hashes)
    shared = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(shared):
        return ids
    rows = np.flatnonzero(np.isin(hashes, shared))
    ends = np.cumsum([len(index.hashes) for index in indices])
    seen, found = {}, {}
    for row in rows.tolist():
        shard = shards[int(np.searchsorted(ends, row, "right"))]
        name = f"{shard.removesuffix('.tar')}/{ids[row]}"
        seen[name] = seen.get(name, 0) + 1
        found[row] = name if seen[name] == 1 else f"{name}#{seen[name]}"
    logger.warning(f"{len(rows):,} samples share their id with another: their shard's name is put before it")
    return Strings(found.get(row, key) for row, key in enumerate(ids))


def find_shards(entry: dict, split: str) -> list[str]:
    """The shards of a split, relative to the entry's path, in their order.

    Raises InputError for a split that the entry does not name, and for shards that are not there.
    """
    if split not in entry:
        raise InputError(f"--dataset {entry['name']}: its entry names no '{split}' shards: add the key \"{split}\"")
    root, shards = Path(entry["path"]), []
    for source in entry[split].split("::"):
        if re.match(r"[a-z0-9]+:", source) or "\0" in source:
            raise InputError(f"--dataset {entry['name']}: {source[:80]!a}: shards are read from the disk: give a path")
        names = expand(source)
        if any(mark in source for mark in "*?["):
            names = [name for one in names for name in sorted(glob.glob(one, root_dir=root))]
        elif len(names) == 1 and (root / names[0]).is_dir():
            folder = names[0]
            names = sorted(str(Path(folder, name)) for name in os.listdir(root / folder) if name.endswith(SUFFIXES))
        absent = [name for name in names if not os.path.exists(root / name)]
        if absent or not names:
            raise InputError(
                f"{root}: {len(absent)} of {len(names)} shards of {source[:80]!a} are not there"
                + (f", the first is {absent[0][:200]!a}" if absent else "")
                + ": download them, or correct the entry"
            )
        shards += names
    double = next((shard for shard, group in itertools.groupby(sorted(shards)) if len(list(group)) > 1), None)
    if double is not None:
        raise InputError(f"--dataset {entry['name']}: the shard {double} comes twice in '{split}': correct the entry")
    return shards


def expand(text: str) -> list[str]:
    """Bash's braces: `{000..099}` counts, with as many digits; `{a,b}` lists. Raises InputError for over a million."""
    start = text.find("{")
    if start < 0:
        return [text]
    depth, commas = 0, []
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if text[end] == "," and depth == 1:
            commas.append(end)
        if depth == 0 or depth > 9:
            break
    inner = text[start + 1 : end]
    if commas and depth == 0:
        words = [
            word for one, other in itertools.pairwise([start, *commas, end]) for word in expand(text[one + 1 : other])
        ]
    elif (match := RANGE.fullmatch(inner)) and depth == 0:
        first, last, step = int(match[1]), int(match[2]), int(match[3] or 1) or 1
        padded = any(re.match(r"-?0\d", word) for word in match.groups()[:2])
        width = max(map(len, match.groups()[:2])) if padded else 0
        numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
        words = [f"{number:0{width}d}" for number in numbers[: MOST_SHARDS + 1]]
    else:
        raise InputError(f"{text[:80]!a}: expected braces such as {{000000..000999}} or {{a,b}}")
    heads, tails = [text[:start] + word for word in words], expand(text[end + 1 :])
    if len(heads) * len(tails) > MOST_SHARDS:
        raise InputError(f"{text[:80]!a}: names over {MOST_SHARDS:,} shards: correct the range")
    return [head + tail for head in heads for tail in tails]
