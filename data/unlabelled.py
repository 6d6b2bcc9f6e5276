"""Images that a user names, without labels: a folder, a table or tar shards; and their captions, if they are asked for.

An image's id is that of its row or sample; one without is called as its file, below the folder and without suffix.
"""

import os
import re
from array import array
from collections import Counter
from pathlib import Path

from data import shards, table_files
from data.buffers import Strings, read_lines
from data.images import SUFFIXES, has_dicom_mark
from data.locations import pread
from data.sets import Unlabelled
from data.table_rows import ROLES, Rows, some
from data.tables import unique
from utils import InputError, logger

PATTERN = re.compile(r"[*?\[{]")


def read_images(source: str, captions: str | None = None, **columns: str | None) -> Unlabelled:
    """The images of a folder and all folders below it, of a table, or of tar shards, in their order.

    `captions` None: none are wanted; "": those that the table or the shards have; else a file of `<id> <caption>`
    lines. `columns` name a table's image, id and caption, instead of those that are known (table_rows.ROLES). Raises
    InputError.
    """
    wanted, given = captions == "", {role: name for role, name in columns.items() if name}
    if is_table(source):
        found = of_table(source, wanted, given)
    elif given:
        raise InputError(f"--{next(iter(given))}-column: is for a table, and {source} is none: leave it out")
    elif os.path.isdir(source):
        found = of_folder(Path(source).expanduser().absolute())
        if not len(found) and any(name.endswith(shards.SUFFIXES) for name in os.listdir(source)):
            found = of_shards(source)
    elif "::" in source or source.endswith(shards.SUFFIXES):
        found = of_shards(source)
    else:
        raise InputError(f"{source}: neither a folder, a table (.csv, .tsv, .jsonl, .parquet) nor tar shards (.tar)")
    if not len(found) and not found.missing:
        raise InputError(f"{source}: holds no image: {', '.join(SUFFIXES)} files are looked for")
    if captions is None:
        found.captions = None
    elif captions:
        found.captions = matched(captions, found.ids)
    elif found.captions is None:
        raise InputError(f"--captions: {source} comes without captions: give a file of '<id> <caption>' lines")
    return found


def is_table(source: str) -> bool:
    """By its suffix."""
    return os.path.splitext(source.lower().removesuffix(".gz"))[1] in table_files.KINDS


def of_folder(folder: Path) -> Unlabelled:
    """Images by their suffix; a file whose suffix is none or a number, as DICOM files are often named, by its mark.

    Hidden files and folders are passed over.
    """
    names, others, seen = [], 0, set()
    for base, folders, files in os.walk(folder, followlinks=True):
        where = os.path.realpath(base)
        if where in seen:  # a link leads back
            folders.clear()
            continue
        seen.add(where)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = os.path.join(base, name)
            if name.startswith(".") or not is_image(path, os.path.splitext(name)[1].lower()):
                others += 1
                continue
            names.append(os.path.relpath(path, folder))
    names.sort()
    if others:
        logger.info(f"{folder}: {others:,} files that are no images")
    strange = next((name for name in names if re.search("[\0-\x1f\x7f\ud800-\udfff]", name)), None)
    if strange is not None:
        raise InputError(f"{folder}: the name {strange[:80]!a} is not one line of UTF-8: rename the file")
    stems = [stem if suffix.lower() in SUFFIXES else stem + suffix for stem, suffix in map(os.path.splitext, names)]
    counts, whole = Counter(stems), set(names)
    ids = [
        name if counts[stem] > 1 or (stem != name and stem in whole) else stem
        for name, stem in zip(names, stems, strict=True)
    ]
    return Unlabelled(Strings(ids), Strings(os.path.join(folder, name) for name in names))


def is_image(path: str, suffix: str) -> bool:
    if suffix in SUFFIXES:
        return True
    if (suffix and not suffix[1:].isdigit()) or not os.path.isfile(path) or os.path.basename(path) == "DICOMDIR":
        return False
    try:
        return has_dicom_mark(pread(path, 0, 132))
    except OSError:
        return False


def of_table(source: str, captions: bool, given: dict[str, str]) -> Unlabelled:
    """All rows of one table, or of those that a pattern means, whatever split they are of."""
    path = os.path.abspath(os.path.expanduser(source))
    entry = {"path": path, "name": source, **given}
    if not os.path.isfile(path):
        entry |= {"path": os.path.dirname(path), "train": os.path.basename(path)}
        if not PATTERN.search(os.path.basename(path)):
            raise InputError(f"{source}: no such file")
    else:
        check_columns(path, given)
    rows = Rows(entry, None, (), 0)
    if captions and "caption" not in rows.columns:
        raise InputError(f"{source}: no column of captions, only {some(rows.names)}: give --caption-column")
    column = [rows.columns["caption"]] if captions else []
    ids, images, texts, missing = Strings(), Strings(), Strings(), []
    numbers, written = array("q"), array("q")
    for block in rows.select(*column):
        cells = rows.convert(table_files.line, block.cells[0], block.numbers, column[0]) if captions else None
        of = [(i, image) for i, found in enumerate(block.images) for image in found]
        there = [(i, os.path.join(rows.root, image)) for i, image in of if image is not None]
        missing += [
            f"{rows.where(block.numbers[i])}: the image '{' '.join(block.written[i])[:120]}' is not there"
            for i, image in of if image is None
        ]  # fmt: skip
        ids.add([block.ids[i] for i, _ in there])
        images.add([image for _, image in there])
        texts.add([cells[i] for i, _ in there] if captions else [])
        numbers.extend(block.numbers[i] for i, _ in there)
        written.extend(hash(tuple(block.written[i])) for i, _ in there)
    ids = unique(ids, numbers, written, rows.where if "id" in rows.columns else None)
    return Unlabelled(ids, images, texts if captions else None, missing)


def check_columns(path: str, given: dict[str, str]) -> None:
    """Raise InputError for a column of images that is not there, in the command line's words."""
    names = table_files.names(path)
    for role, name in given.items():
        if name not in names:
            raise InputError(f"--{role}-column {name}: {path} has only {some(names)}")
    if "image" not in given and not any(name.lower() in ROLES["image"] for name in names):
        raise InputError(f"{path}: no column for the images among {some(names)}: give --image-column")


def of_shards(source: str) -> Unlabelled:
    """All samples of tar shards, named as shards.py says, or of those in a folder."""
    parts = [os.path.abspath(os.path.expanduser(part)) for part in source.split("::")]
    plain = [PATTERN.split(part)[0] for part in parts]  # up to the first brace or pattern
    root = os.path.commonpath([os.path.dirname(part) for part in plain])
    entry = {"path": root, "name": source, "train": "::".join(os.path.relpath(part, root) for part in parts)}
    found = shards.Samples(entry, "train")
    imageless = found.column("imageless")
    if len(imageless):
        logger.warning(f"{source}: {len(imageless):,} samples without an image left out, {imageless[0][:80]} first")
    captions = found.column("captions")
    images = Strings(os.path.join(root, file) for file in found.files)
    return Unlabelled(found.ids, images, captions if captions.lengths().any() else None)


def matched(file: str, ids: Strings) -> Strings:
    """The captions of a file of `<id> <caption>` lines, for these ids or what comes after their last slash; "" where
    there is none. Raises InputError if there is none for any."""
    names, texts = read_lines(Path(file).expanduser())
    places = {name: i for i, name in enumerate(names)}
    found = [places.get(key, places.get(key.rpartition("/")[2], -1)) for key in ids]
    count = sum(place >= 0 for place in found)
    if not count and len(ids):
        raise InputError(f"--captions {file}: none of its ids is that of an image, such as '{ids[0][:80]}'")
    logger.info(f"{file}: captions of {count:,} of {len(ids):,} images")
    return Strings(texts[place] if place >= 0 else "" for place in found)
