"""The catalog: the name of a data set -> pairs to train on, or a labelled set to probe. The readers are in data/."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from data.cbis import cbis_table
from data.folders import SPECIAL
from data.roco import read_pairs, roco_table
from data.sets import Labelled, Pairs
from utils import InputError, logger, read_text, resolve

__all__ = ["Labelled", "Pairs", "cbis_table", "find_entry", "labelled_set", "paired_set", "read_pairs", "roco_table"]


WINDOW = re.compile(r"-?\d{1,6}(\.\d+)?/(?=.*[1-9])\d{1,6}(\.\d+)?")  # a width of 0 is none


class Type(NamedTuple):
    """A kind of data set: its readers, and the catalog keys of its entries beside "type" and "window".

    The readers are "module:function", imported when they are used, or None where the type has no captions or no
    classes; see `paired_set` and `labelled_set` for their arguments.
    """

    pairs: str | None
    labelled: str | None
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


TYPES = {  # docs/EXTENDING.md adds one
    "roco": Type("data.roco:roco_set", None, ("path",)),
    "cbis": Type(None, "data.cbis:cbis_set", ("path", "abnormality"), ("image",)),
    "vindr": Type(None, "data.vindr:vindr_set", ("path", "label")),
    "imagefolder": Type(None, "data.folders:image_folder", ("path", "train", "test")),
    "filelist": Type(None, "data.folders:file_list", ("path", "train", "test")),
    "webdataset": Type(
        "data.shards:paired_shards",
        "data.shards:labelled_shards",
        ("path", "train"),
        ("validation", "test", "id", "caption", "article", "patient", "label", "fit"),
    ),
    "special": Type(None, "data.folders:special_set", ("path",)),
    "table": Type(
        "data.tables:table_pairs",
        "data.tables:table_labelled",
        ("path",),
        (
            "train validation test image caption label labels id patient article split keywords images share seed "
            "uncertain blank fit"
        ).split(),
    ),
    "rocov2": Type("data.rocov2:rocov2_set", None, ("path",)),
}


def find_entry(catalog: str, name: str, root: str | None = None, window=None) -> dict:
    """The catalog's entry `name`, checked; its path is made absolute (from the catalog's folder), or is `root`.

    `window` (center, width) replaces the entry's, "CENTER/WIDTH", in which DICOM files are shown.

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
    known = TYPES[kind]
    absent = [key for key in known.required if key not in entry and not (key == "path" and root)]
    unknown = [key for key in entry if key not in ("type", "path", "window", *known.required, *known.optional)]
    if absent or unknown:
        parts = [f"{word} {some(keys)}" for word, keys in (("lacks", absent), ("does not know", unknown)) if keys]
        raise InputError(f"{where}: type '{kind}' {' and '.join(parts)}")
    if kind == "special" and name not in SPECIAL:
        raise InputError(f"{where}: a special set is one of {', '.join(SPECIAL)}")
    path = Path(root) if root else Path(catalog).absolute().parent / Path(entry["path"]).expanduser()
    window = "{:g}/{:g}".format(*window) if window else entry.get("window", "")
    if window and not WINDOW.fullmatch(window):
        raise InputError(f"{where}: the window '{window[:40]}' is not CENTER/WIDTH in numbers, such as 40/400")
    return {**entry, "name": name, "window": window, "path": str(path.expanduser().absolute())}


def some(names) -> str:
    names = [repr(name)[1:-1][:60] for name in names]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def paired_set(entry: dict, split: str, metadata=None, subset: str = "all", optional: bool = False) -> Pairs | None:
    """The "train" or "validation" split of a catalog entry (see `find_entry`) with captions.

    `metadata` and `subset` are main.py's; an `optional` split that is not there gives None. The type's reader takes the
    same. Raises InputError.
    """
    known = TYPES[entry["type"]]
    if known.pairs is None:
        fit = " or ".join(f"'{name}'" for name, other in TYPES.items() if other.pairs)
        raise InputError(f"--dataset {entry['name']}: type '{entry['type']}' has no captions; main.py takes type {fit}")
    pairs = resolve(known.pairs)(entry, split, metadata, subset, optional)
    window = entry.get("window", "")
    return replace(pairs, window=window, notes={**pairs.notes, "window": window}) if pairs and window else pairs


def labelled_set(entry: dict, split: str) -> Labelled:
    """The "train" or "test" split of a catalog entry (see `find_entry`) with classes. Raises InputError.

    The type's reader takes the same.
    """
    known = TYPES[entry["type"]]
    if known.labelled is None:
        raise InputError(f"--dataset {entry['name']}: has captions and no classes: a probe needs a labelled set")
    if not Path(entry["path"]).exists() and entry["type"] != "special":
        raise InputError(f"{entry['path']}: no such folder: correct the path of '{entry['name']}' or give --root")
    data = resolve(known.labelled)(entry, split)
    if len(data) == 0:
        raise InputError(f"{entry['path']}: no {split} image of '{entry['name']}'")
    if entry.get("window") and not isinstance(data.images[0], str):
        logger.warning(f"--dataset {entry['name']}: its images are no DICOM files: the window has no effect")
        return data
    return data.shown(entry["window"]) if entry.get("window") else data
