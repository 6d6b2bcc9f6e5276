"""The rows of a split of a table: which files, columns and rows they are, and where their images lie."""

import os
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data import locations, parquet, splits, table_files
from data.table_images import ENDINGS, Finder, Template
from utils import InputError, logger

ROLES = {  # the names of columns that an entry need not name, in upper or lower case; the first that is there is taken
    "image": ("image", "filepath", "file_name", "image_path", "path", "filename", "id", "image_id", "dicom_id"),
    "caption": ("caption", "text", "title", "report"),
    "label": ("label",),
    "id": ("id", "image_id", "dicom_id"),
    "patient": ("patient", "patient_id", "subject_id"),
    "article": ("article", "pmcid"),
    "split": ("split",),
    "keywords": ("keywords",),
}
PATIENT = re.compile(r"(?:^|/)(patient\d+|p\d{8})(?=/)")  # in the paths of CheXpert and MIMIC-CXR


class Row(NamedTuple):
    number: int  # counted over all files, see Rows.where
    id: str
    written: tuple[str, ...]  # the names of its images, as the table has them
    images: list[str | None]  # their locations, relative to Rows.root where they are below it; None: not there
    patient: str
    article: str
    cells: tuple  # those of the columns that were asked for


class Rows:
    """The rows of one split of a catalog entry, in the order of its files. An iterable of Row.

    `held` are the names, the best first, of the split that is held out from training: as a file, or in the column of
    splits. Where there is none, a share of the training rows' patients is.
    """

    def __init__(self, entry: dict, split: str, held: tuple[str, ...], share: float, images: bool = True):
        """Without `images` they are not looked for. Raises InputError: a file or column is not there, a bad split."""
        self.entry, self.split, self.look = entry, split, images
        self.root = os.path.dirname(entry["path"]) if os.path.isfile(entry["path"]) else entry["path"]
        files = splits.find_tables(entry)
        by_file = next((name for name in held if name in files), None)
        self.files = files[split if split == "train" else by_file] if by_file else files.get("train") or files[""]
        self.template = Template(entry["images"]) if "{" in entry.get("images", "") else None
        self.names = table_files.names(self.files[0])
        self.columns = {role: name for role in ROLES if (name := self.column(role))}
        if self.template is None:
            self.need("image")
        self.from_elsewhere = table_files.kind(self.files[0]) == "parquet"  # such files are mostly downloaded
        self.starts, self.groups = [0], {}  # the first row of each file; {what rows were grouped by: hashes}
        self.value = self.share = None
        self.how = f"the rows of {', '.join(map(os.path.basename, self.files[:3]))}{', ...' * (len(self.files) > 3)}"
        if by_file:
            if "split" in entry:
                logger.warning(
                    f"entry '{entry['name']}': the column '{entry['split']}' has no effect beside split files"
                )
        elif "split" in self.columns:
            there = self.read_splits()
            by_value = next((name for name in held if name in there), None)
            self.value = by_value if split != "train" and by_value else "train"
            self.how += f" whose '{self.columns['split']}' is {self.value}"
            by_file = by_value
        if not by_file:
            self.share = splits.read_share(entry, share)
            self.held_out = splits.Share(self.share, entry.get("seed", "0"))

    def empty(self) -> bool:
        """Whether the split is that of a share of nothing."""
        return self.share == 0 and self.split != "train"

    def column(self, role: str) -> str | None:
        """The column that the entry names for a role, else the first of ROLES that is there."""
        if role not in self.entry:
            return next((name for known in ROLES[role] for name in self.names if name.lower() == known), None)
        return self.check(self.entry[role], role)

    def check(self, column: str, role: str) -> str:
        if self.names.count(column) != 1:
            what = "two columns" if column in self.names else "no column"
            raise InputError(
                f"{self.files[0]}: {what} '{column}', only {some(self.names)}: correct '{role}' or the file"
            )
        return column

    def need(self, role: str) -> str:
        """The column of a role. Raises InputError if there is none."""
        if role not in self.columns:
            raise InputError(
                f"{self.files[0]}: no column of its own for '{role}' ({', '.join(ROLES[role])}), only {some(self.names)}: "
                f"name one as '{role}' in the entry '{self.entry['name']}'"
            )
        return self.columns[role]

    def where(self, number: int) -> str:
        """The file and row of row `number`."""
        place = bisect_right(self.starts, number) - 1
        path = self.files[place]
        return f"{path}, row {number - self.starts[place] + table_files.first_row(path)}"

    def text(self, cell, number: int, column: str, form=table_files.line):
        """A cell of row `number` as a text, or whatever `form` makes of it. Raises InputError."""
        try:
            return form(cell)
        except ValueError as error:
            what = "is not UTF-8 text" if isinstance(error, UnicodeError) else f"has {error}"
            raise InputError(f"{self.where(number)}: the column '{column}' {what}: correct it") from None

    def blocks(self, columns: list[str]) -> Iterator[tuple[str, int, list[list]]]:
        """(file, number of the first row, the cells of each column) of each block of rows."""
        self.starts, done = [], 0
        for path in self.files:
            self.starts.append(done)
            if path != self.files[0]:
                names = table_files.names(path)
                for column in columns:
                    if column not in names:
                        raise InputError(f"{path}: no column '{column}', which {self.files[0]} has; only {some(names)}")
            for block in table_files.read(path, columns, self.columns.get("image")):
                yield path, done, block
                done += len(block[0])

    def read_splits(self) -> set[str]:
        """The splits that the column of splits names; an empty cell is of none."""
        column, known = self.columns["split"], {}
        for _, first, (cells,) in self.blocks([column]):
            for cell in set(map(str, cells)) - known.keys():
                number = first + list(map(str, cells)).index(cell)
                value = self.text(cells[number - first], number, column)
                known[cell] = splits.named(value)
                if value and not known[cell]:
                    raise InputError(
                        f"{self.where(number)}: the {column} '{value[:40]}' is none of train, validation and test: "
                        f"correct it, or name another column as 'split' in the entry '{self.entry['name']}'"
                    )
        if "train" not in known.values():
            raise InputError(f"{self.files[0]}: the column '{column}' says train in no row")
        return set(known.values())

    # The rows

    def select(self, *columns: str) -> Iterator[Row]:
        """The rows of the split, with their cells of `columns`."""
        for column in (*columns, *(self.template.columns if self.template else ())):
            self.check(column, "images" if column not in columns else "labels")
        own = {role: self.columns.get(role) for role in ("id", "patient", "article", "split")}
        own["image"] = None if self.template else self.columns["image"]
        template = self.template.columns if self.template else []
        asked = list(dict.fromkeys([*filter(None, own.values()), *template, *columns]))
        stored = stored_path = finder = None
        for path, first, block in self.blocks(asked):
            if path != stored_path:
                stored, stored_path, finder = self.stored(path, own["image"]), path, Finder(self.bases(path))
                start, name = first, os.path.relpath(path, self.root)
            size, cells = len(block[0]), dict(zip(asked, block, strict=True))
            kept, rows = [], zip(*(cells[own[role]] if own[role] else [None] * size for role in own), strict=True)
            fills = list(zip(*(cells[column] for column in template), strict=True)) if template else None
            for i, (key, patient, article, value, image) in enumerate(rows):
                number = first + i
                if self.value and splits.named(self.text(value, number, own["split"])) != self.value:
                    continue
                if fills is not None:
                    filled = self.template.fill(self.text(cell, number, "of images") for cell in fills[i])
                    written = [filled] if filled else []
                else:
                    written = self.text(image, number, own["image"], table_files.texts)
                for one in written:
                    self.check_path(one, number)
                key = self.text(key, number, own["id"])
                patient = self.text(patient, number, own["patient"])
                if not own["patient"] and written and (match := PATIENT.search(written[0])):
                    patient = match[1]
                article = self.text(article, number, own["article"])
                if not key:
                    stem, ending = os.path.splitext(written[0]) if written else (f"{name}_{number - start + 1}", "")
                    key = " ".join((stem if ending.lower() in (*ENDINGS, "") else stem + ending).split())
                if self.share is not None and not self.on_our_side(patient, article, written[0] if written else key):
                    continue
                kept.append((i, key, tuple(written), patient, article))
            found = self.find(finder, kept, stored, first - start)
            for i, key, written, patient, article in kept:
                if stored is not None and stored[first - start + i]:
                    base = os.path.basename(written[0]) if written else ""
                    images = [locations.make(name, row=f"{own['image']}:{first - start + i}", name=base)]
                else:
                    images = [found.get(one) for one in written] or [None]
                yield Row(first + i, key, written, images, patient, article, tuple(cells[one][i] for one in columns))

    def stored(self, path: str, column: str | None) -> np.ndarray | None:
        """Which rows of a file hold their image, (N,) bool; None: it has no column of stored images."""
        is_parquet = column is not None and table_files.kind(path) == "parquet"
        return parquet.stored(path, column) if is_parquet else None

    def check_path(self, written: str, number: int) -> None:
        """Raise InputError if the name of an image leads out of the folders, from a parquet file also if absolute."""
        leads_out = "\0" in written or (".." in written and ".." in re.split(r"[/\\]", written))
        if leads_out or (written.startswith("/") and self.from_elsewhere):
            raise InputError(f"{self.where(number)}: '{written[:80]}' leaves the data folder: correct the row")

    def on_our_side(self, patient: str, article: str, image: str) -> bool:
        """Whether a row is on this split's side of the share that is held out."""
        kind, group = ("patients", patient) if patient else ("articles", article) if article else ("images", image)
        self.groups.setdefault(kind, array("q")).append(hash(group))
        return self.held_out.holds_out(group) == (self.split != "train")

    def bases(self, path: str) -> list[str]:
        """The folders that images may lie in."""
        folder = os.path.dirname(path)
        given = [] if self.template else filter(None, map(str.strip, self.entry.get("images", "").split(",")))
        return [*(os.path.join(self.root, one) for one in given), folder, self.root, os.path.dirname(folder)]

    def find(self, finder: Finder, kept: list[tuple], stored: np.ndarray | None, offset: int) -> dict[str, str]:
        """{name: path relative to the root} of the images of rows that do not hold theirs."""
        if not self.look:
            return {}
        names = (one for i, _, written, *_ in kept if stored is None or not stored[offset + i] for one in written)
        inside = os.path.join(self.root, "")
        return {name: path.removeprefix(inside) for name, path in finder(names).items()}

    def notes(self) -> dict[str, str]:
        """For the log and the run: how the rows were chosen, known after the last of them."""
        if self.share is None:
            return {"split": self.how}
        counts = " and ".join(f"{len(np.unique(np.array(one))):,} {kind}" for kind, one in self.groups.items())
        side = "held out" if self.split != "train" else "left, the rest is held out"
        part = self.share if self.split != "train" else 1 - self.share
        seed = self.entry.get("seed", "0")
        return {"split": f"{self.how}: a share of {part:g} of its {counts}, by a hash with seed {seed}, {side}"}


def some(names: list[str]) -> str:
    return ", ".join(names[:30])[:600] + (f" and {len(names) - 30} more" if len(names) > 30 else "")
