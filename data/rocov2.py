"""ROCOv2 as its archives unpack: tables of captions and of concepts, and a folder of images for each split.

Layout (Rueckert et al., Sci Data 2024, doi 10.1038/s41597-024-03496-6; Zenodo 10821435):

    ROOT/{train,valid,test}_captions.csv                       ID, Caption
    ROOT/{train,valid,test}_concepts.csv, _concepts_manual.csv ID, CUIs ("C0040405;C0817096")
    ROOT/cui_mapping.csv                                       CUI, Canonical name
    ROOT/license_information.csv                               ID, PMCID and others
    ROOT/train/ROCOv2_2023_train_000001.jpg                    or train_images/train/ or train_images/
"""

import os

from data import table_files
from data.roco import absent
from data.sets import Pairs
from data.tables import read_pairs
from utils import InputError, logger

FILES = {"train": "train", "validation": "valid", "test": "test"}


def rocov2_set(entry: dict, split: str, metadata=None, subset: str = "all", optional: bool = False) -> Pairs | None:
    """A split of a catalog entry of type "rocov2". Raises InputError.

    The names of an image's concepts are its keywords, for `subset`; `metadata` is refused.
    """
    root, name = entry["path"], FILES[split]
    captions = f"{name}_captions.csv"
    if not os.path.isdir(root):
        raise InputError(f"{root}: no such folder: correct the path of '{entry['name']}' or give --root")
    if not os.path.isfile(os.path.join(root, captions)):
        if optional:
            return None
        raise InputError(
            f"{root}: no {captions} in it: give the folder with ROCOv2's tables as --root or in the catalog"
        )
    folders = (name, f"{name}_images/{name}", f"{name}_images", f"images/{name}", "images")
    there = [one for one in folders if os.path.isdir(os.path.join(root, one))]
    if not there:
        return absent(f"{root}: no folder {', '.join(folders)} in it: unpack the images there", optional)
    table = {
        "name": entry["name"], "path": root, "train": "train_captions.csv", "image": "ID", "caption": "Caption",
        "id": "ID", "images": ",".join(there), "share": "0",
    }  # fmt: skip
    if split != "train":
        table["validation"] = captions
    articles = dict(read_columns(os.path.join(root, "license_information.csv"), "ID", "PMCID"))
    keywords = concepts(root, name) if subset != "all" else None
    return read_pairs(table, split, metadata, subset, optional, keywords, articles)


def concepts(root: str, name: str) -> dict[str, str]:
    """{ID: the names of its concepts} of a split."""
    known = dict(read_columns(os.path.join(root, "cui_mapping.csv"), "CUI", "Canonical name"))
    found = {}
    for file in (f"{name}_concepts.csv", f"{name}_concepts_manual.csv"):
        path = os.path.join(root, file)
        if not os.path.isfile(path):
            logger.info(f"{path}: not there; the subset is chosen without its concepts")
        for key, numbers in read_columns(path, "ID", "CUIs"):
            words = (known.get(one.strip(), "") for one in numbers.split(";"))
            found[key] = " ".join(filter(None, (found.get(key), *words)))
    return found


def read_columns(path: str, *columns: str):
    """The rows of two columns of a CSV file, as text; none if it is not there. Raises InputError."""
    if not os.path.isfile(path):
        return
    names = {name.lower(): name for name in table_files.names(path)}
    for column in columns:
        if column.lower() not in names:
            raise InputError(
                f"{path}: no column '{column}', only {', '.join(names.values())[:600]}: take it from the archive again"
            )
    for block in table_files.read(path, [names[column.lower()] for column in columns]):
        yield from zip(*(map(table_files.line, cells) for cells in block), strict=True)
