"""The splits of a set: their names in tables and files, and a share of the patients where a set has no split."""

import glob
import hashlib
import os

from utils import InputError

NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "validate", "dev"),
    "test": ("test", "testing"),
}
CANONICAL = {name: split for split, names in NAMES.items() for name in names}


def named(value: str) -> str | None:
    """The split that a cell or a file name means: "val" is "validation". None if it is none."""
    return CANONICAL.get(value.strip().lower())


class Share:
    """Which groups (patients, articles, images) are held out: a share of them, by a hash of the seed and the group.

    So a group stays where it is when others are added, and all its rows are on one side.
    """

    def __init__(self, share: float, seed: str):
        self.limit, self.seed = round(share * 2**64), f"{seed}\n".encode()

    def holds_out(self, group: str) -> bool:
        digest = hashlib.blake2b(self.seed + group.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.limit


def read_share(entry: dict, default: float) -> float:
    """The entry's `share`, a number from 0 to below 1. Raises InputError."""
    text = entry.get("share", "")
    try:
        share = float(text) if text else default
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise InputError(f"entry '{entry['name']}': the share '{text[:40]}' is not a number from 0 to below 1")
    return share


# Files

ENDINGS = ("csv", "tsv", "jsonl", "parquet", "csv.gz", "tsv.gz", "jsonl.gz")


def find_tables(entry: dict) -> dict[str, list[str]]:
    """{split: its table's files} of an entry; {"": files} if the splits are not told apart by files.

    They are those that the entry names, else those in its folder that are called as Hugging Face's `datasets` expects
    or after the split. Raises InputError.
    """
    path = entry["path"]
    named_here = [split for split in NAMES if split in entry]
    if os.path.isfile(path):
        if named_here:
            raise InputError(f"{path}: is a file: give its folder as 'path', beside '{named_here[0]}'")
        return {"": [path]}
    if not os.path.isdir(path):
        raise InputError(f"{path}: no such folder or file: correct the path of '{entry['name']}' or give --root")
    if named_here:
        if "train" not in named_here:
            raise InputError(f"entry '{entry['name']}': names '{named_here[0]}' and not 'train'")
        return {split: matching(path, entry[split]) for split in named_here}
    found = {split: files for split, names in NAMES.items() if (files := usual_files(path, names))}
    if "train" in found:
        return found
    alone = usual_files(path, ())
    if not alone:
        raise InputError(
            f"{path}: no train.csv, metadata.csv or such in it: name the files of '{entry['name']}' as 'train'"
        )
    return {"": alone}


def matching(folder: str, pattern: str) -> list[str]:
    """The files that a name or a pattern (*) means, in order. Raises InputError if there is none."""
    path = os.path.join(folder, pattern)
    found = [path] if os.path.isfile(path) else sorted(glob.glob(os.path.join(glob.escape(folder), pattern)))
    if not found:
        raise InputError(f"{path}: no such file: correct its name in the catalog")
    return found


def usual_files(folder: str, names: tuple[str, ...]) -> list[str]:
    """The table of a split that is called one of `names`; without names, of a set that is not split by files."""
    folder = glob.escape(folder)
    for name in names:
        patterns = [f"data/{name}-*.parquet", f"{name}-*.parquet", f"{name}/*.parquet"]
        patterns += [f"{name}.{ending}" for ending in ENDINGS] + [f"{name}/metadata.{ending}" for ending in ENDINGS]
        for pattern in patterns:
            if found := sorted(glob.glob(os.path.join(folder, pattern))):
                return found
    return [path for ending in ENDINGS if not names for path in glob.glob(os.path.join(folder, f"metadata.{ending}"))][
        :1
    ]
