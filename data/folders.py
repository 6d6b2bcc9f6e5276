"""Labelled sets of the kinds that SLIP reads: a folder for each class, NumPy lists of files, torchvision's sets."""

import contextlib
import io
import os
from pathlib import Path

import numpy as np

from data.images import SUFFIXES
from data.sets import Labelled
from utils import InputError

SPECIAL = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "stl10": "STL10", "mnist": "MNIST"}


def image_folder(entry: dict, split: str) -> Labelled:
    """`path/<split>/<class>/**/image`, as torchvision's ImageFolder."""
    from torchvision.datasets import ImageFolder

    folder = Path(entry["path"], entry[split])
    try:
        data = ImageFolder(folder, is_valid_file=lambda path: path.lower().endswith(SUFFIXES))
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
    """The strings or whole numbers of a one-dimensional .npy file. Raises InputError naming the file."""
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # NumPy evaluates the header as Python, which fails in many ways
        cure = "save it as an array of strings or numbers" if "pickle" in str(error) else "it is damaged"
        raise InputError(f"{path}: not a plain NumPy array: {cure}") from None
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "USiu":
        what = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise InputError(f"{path}: expected one row of strings or whole numbers, not {what}")
    if array.dtype.kind == "U":  # NumPy does not check a file's code points, and Python's strings may not hold them all
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
