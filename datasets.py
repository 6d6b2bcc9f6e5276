"""The catalog, and the labelled sets that a probe reads: CBIS-DDSM, image folders, file lists, torchvision's own.

Training pairs are read by roco.py; CBIS-DDSM's tables by cbis.py; both are re-exported here.
"""

import contextlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cbis import cbis_table
from images import Picture, as_picture, read_image, to_gray_or_rgb
from roco import Pairs, read_pairs, roco_table
from utils import InputError, read_text

__all__ = ["Labelled", "Pairs", "cbis_table", "find_entry", "labelled_set", "read_pairs", "roco_table"]

TYPES = {  # type: (keys an entry must have, keys it may have), beside "type"
    "roco": (("path",), ()),
    "cbis": (("path", "abnormality"), ("image",)),
    "imagefolder": (("path", "train", "test"), ()),
    "filelist": (("path", "train", "test"), ()),
    "special": (("path",), ()),
}
SPECIAL = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "stl10": "STL10", "mnist": "MNIST"}
CBIS_CLASSES = ["MALIGNANT", "BENIGN", "BENIGN_WITHOUT_CALLBACK"]


@dataclass
class Labelled:
    """N labelled images. `labels` index `classes`; `patients` is None where a set has none; `fit` as views.whole."""

    ids: list[str]
    labels: np.ndarray
    classes: list[str]
    patients: list[str] | None
    images: Sequence  # paths, or a torchvision dataset of (image, label)
    fit: str

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Picture:
        image = self.images[i]
        return as_picture(read_image(image) if isinstance(image, str) else to_gray_or_rgb(image[0]))

    def without(self, broken: set[str]) -> "Labelled":
        keep = [i for i, image in enumerate(self.images) if not isinstance(image, str) or image not in broken]
        patients = [self.patients[i] for i in keep] if self.patients else None
        ids, images = [self.ids[i] for i in keep], [self.images[i] for i in keep]
        return Labelled(ids, self.labels[keep], self.classes, patients, images, self.fit)


def find_entry(catalog: str, name: str, root: str | None = None) -> dict:
    """The catalog's entry `name`, checked; its path is made absolute (from the catalog's folder), or is `root`.

    Raises InputError for a file that is no catalog, an unknown name, type or key, or a key that is missing.
    """
    try:
        entries = json.loads(read_text(catalog))
    except json.JSONDecodeError as error:
        raise InputError(f"{catalog}, line {error.lineno}: not JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"{catalog}: not a catalog: {str(error)[:80]}") from None
    if not isinstance(entries, dict):
        raise InputError(f"{catalog}: not a catalog: expected an object of name: entry")
    if name not in entries:
        raise InputError(f"{catalog}: no entry '{name}', only {some(entries)}: correct --dataset or add it")
    entry = entries[name]
    where = f"{catalog}, entry '{name}'"
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise InputError(f"{where}: expected an object of strings")
    kind = entry.get("type")
    if kind not in TYPES:
        raise InputError(f"{where}: the type '{some([kind])}' is not one of {', '.join(TYPES)}")
    required, optional = TYPES[kind]
    absent = [key for key in required if key not in entry and not (key == "path" and root)]
    unknown = [key for key in entry if key not in ("type", "path", *required, *optional)]
    if absent or unknown:
        parts = [f"{word} {some(keys)}" for word, keys in (("lacks", absent), ("does not know", unknown)) if keys]
        raise InputError(f"{where}: type '{kind}' {' and '.join(parts)}")
    if kind == "special" and name not in SPECIAL:
        raise InputError(f"{where}: a special set is one of {', '.join(SPECIAL)}")
    path = Path(root) if root else Path(catalog).absolute().parent / Path(entry["path"]).expanduser()
    return {**entry, "name": name, "path": str(path.expanduser().absolute())}


def some(names) -> str:
    names = [repr(name)[1:-1][:60] for name in names]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def labelled_set(entry: dict, split: str) -> Labelled:
    """The "train" or "test" split of a catalog entry (see `find_entry`). Raises InputError."""
    if entry["type"] == "roco":
        raise InputError(f"--dataset {entry['name']}: has captions and no classes: a probe needs a labelled set")
    if not Path(entry["path"]).is_dir() and entry["type"] != "special":
        raise InputError(f"{entry['path']}: no such folder: correct the path of '{entry['name']}' or give --root")
    data = {"cbis": cbis_set, "imagefolder": image_folder, "filelist": file_list, "special": special_set}[
        entry["type"]
    ](entry, split)
    if len(data) == 0:
        raise InputError(f"{entry['path']}: no {split} image of '{entry['name']}'")
    return data


def cbis_set(entry: dict, split: str) -> Labelled:
    # "calcification+mass" pools the two tasks, which share patients across their splits: audit.py refuses it.
    tasks = ["calcification", "mass"] if entry["abnormality"] == "calcification+mass" else [entry["abnormality"]]
    table = pd.concat([cbis_table(entry["path"], task, split, entry.get("image", "crop")) for task in tasks])
    labels = np.array([CBIS_CLASSES.index(label) for label in table["label"]])
    # Squashed to a square, as the published rows: a centre crop would cut the lesion's margin.
    return Labelled(list(table["id"]), labels, CBIS_CLASSES, list(table["patient_id"]), list(table["path"]), "squash")


def image_folder(entry: dict, split: str) -> Labelled:
    """`path/<split>/<class>/**/image`, as torchvision's ImageFolder."""
    from torchvision.datasets import ImageFolder

    folder = Path(entry["path"], entry[split])
    try:
        data = ImageFolder(folder)
    except (OSError, FileNotFoundError) as error:
        raise InputError(f"{folder}: not a folder of one folder of images a class: {error}") from None
    paths = [path for path, _ in data.samples]
    ids = [os.path.relpath(path, folder) for path in paths]
    return Labelled(ids, np.array(data.targets), data.classes, None, paths, "center256")


def file_list(entry: dict, split: str) -> Labelled:
    """`path/<split>_images.npy` and `_labels.npy` as SLIP has them, and `_patients.npy` if there is one.

    Relative image paths are taken from `path`. The classes are the training split's labels, sorted.
    """
    root = Path(entry["path"])
    images = [str(name) for name in read_array(root / f"{entry[split]}_images.npy")]
    labels = read_array(root / f"{entry[split]}_labels.npy")
    seen = labels if split == "train" else read_array(root / f"{entry['train']}_labels.npy")
    if len(images) != len(labels):
        raise InputError(f"{root}/{entry[split]}_labels.npy: {len(labels)} labels for {len(images)} images")
    for row, name in enumerate(images):
        if "\0" in name or ".." in Path(name).parts:
            raise InputError(f"{root}/{entry[split]}_images.npy, row {row}: '{name[:80]}' leaves the data folder")
    values = sorted(set(seen), key=lambda value: (isinstance(value, str), value))
    numbers = {value: number for number, value in enumerate(values)}
    for row, label in enumerate(labels):
        if label not in numbers:
            raise InputError(
                f"{root}/{entry[split]}_labels.npy, row {row}: '{label}' is no class of the training split"
            )
    patients_file = root / f"{entry[split]}_patients.npy"
    patients = [str(one) for one in read_array(patients_file)] if patients_file.exists() else None
    if patients is not None and len(patients) != len(images):
        raise InputError(f"{patients_file}: {len(patients)} patients for {len(images)} images")
    paths = [str(root / name) for name in images]
    classes = [str(value) for value in values]
    return Labelled(images, np.array([numbers[label] for label in labels]), classes, patients, paths, "center256")


def read_array(path: Path) -> list:
    """The strings or whole numbers of a one-dimensional .npy file. Raises InputError."""
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # NumPy's reader of headers raises whatever Python's tokenizer and parser do
        cure = "save it as an array of strings or numbers" if "pickle" in str(error) else "it is damaged"
        raise InputError(f"{path}: not a plain NumPy array: {cure}") from None
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "USiu":
        what = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise InputError(f"{path}: expected one row of strings or whole numbers, not {what}")
    if array.dtype.kind == "U":  # NumPy does not look at the code points of a file, and Python then breaks on them
        codes = np.ascontiguousarray(array).view(f"{array.dtype.byteorder}u4") if array.dtype.itemsize else array[:0]
        damaged = bool(((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any()) if len(codes) else False
    else:
        damaged = array.dtype.kind == "S" and not all(value.isascii() for value in array.tolist())
    if damaged:
        raise InputError(f"{path}: holds strings that are no text: it is damaged")
    return [value.decode() if isinstance(value, bytes) else value for value in array.tolist()]


def special_set(entry: dict, split: str) -> Labelled:
    """CIFAR, STL-10 or MNIST through torchvision, downloaded into `path` if it is not there."""
    import torchvision.datasets as sets

    maker = getattr(sets, SPECIAL[entry["name"]])
    which = {"split": split} if entry["name"] == "stl10" else {"train": split == "train"}
    try:
        # torchvision prints its progress; it checks the files' MD5 sums before it reads them.
        with contextlib.redirect_stdout(io.StringIO()):
            data = maker(entry["path"], download=True, **which)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{entry['path']}: {entry['name']} is neither there nor to be downloaded ({error}): put "
            "torchvision's files there"
        ) from None
    labels = np.asarray(data.labels if entry["name"] == "stl10" else data.targets)
    ids = [f"{split}_{i:05d}" for i in range(len(data))]
    return Labelled(ids, labels, list(map(str, data.classes)), None, data, "center256")
