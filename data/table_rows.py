"""The rows of a split of a table: which files, columns and rows they are, and where their images lie."""

import itertools
import os
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from data import locations, parquet, splits, table_files
from data.images import SUFFIXES
from data.table_images import Finder, Template
from utils import InputError, logger

ROLES = {  # the names of columns that an entry need not name, in upper or lower case; the first that is there is taken
    "image": ("image", "filepath", "file_name", "image_path", "path", "filename", "id", "image_id", "dicom_id"),
    "caption": ("caption", "text", "title", "report"),
    "label": ("label",),
    "id": ("id", "image_id", "dicom_id"),
    "patient": ("patient", "patient_id", "patientid", "patient id", "subject", "subject_id"),
    "article": ("article", "pmcid"),
    "split": ("split",),
    "keywords": ("keywords",),
}
PATIENT = re.compile(r"(?:^|/)(patient\d+|p\d{8})(?=/)")  # in the paths of CheXpert and MIMIC-CXR


class Block(NamedTuple):
    """Rows, as a list of each of their parts."""

    numbers: list[int]  # counted over all files, see Rows.where
    ids: list[str]
    written: list[list[str]]  # the names of a row's images, as the table has them
    images: list[list[str | None]]  # their locations, relative to Rows.root where they are below it; None: not there
    patients: list[str]  # "" where it is unknown
    articles: list[str]
    cells: list[list]  # those of the columns that were asked for, one list a column


class Rows:
    """The rows of one split of a catalog entry, in the order of its files.

    `held` are the names, the best first, of the split that is held out from training: as a file, or in the column of
    splits. Where there is none, a share of the training rows' patients is.
    """

    def __init__(self, entry: dict, split: str | None, held: tuple[str, ...], share: float, images: bool = True):
        """`split` None takes all rows. Without `images` they are not looked for.

        Raises InputError: a file or column is not there, a bad split.
        """
        self.entry, self.split, self.look = entry, split, images
        self.root = os.path.dirname(entry["path"]) if os.path.isfile(entry["path"]) else entry["path"]
        self.inside = os.path.join(self.root, "")  # locations are relative to it
        files = splits.find_tables(entry)
        by_file = next((name for name in held if name in files), None)
        ours = by_file if by_file and split != "train" else "train"
        self.files = files.get(ours) or files[""]
        twice = next((one for one in files if one != ours and same_file(files[one], self.files)), None)
        self.template = Template(entry["images"]) if "{" in entry.get("images", "") else None
        given = [] if self.template else map(str.strip, entry.get("images", "").split(","))
        self.given = [os.path.join(self.root, one) for one in given if one]
        if absent := [one for one in self.given if not os.path.isdir(one)]:
            raise InputError(f"{absent[0]}: no such folder: correct 'images' in the entry '{entry['name']}'")
        self.names = table_files.names(self.files[0])
        self.columns = {role: name for role in ROLES if (name := self.column(role))}
        if self.template is None:
            self.need("image")
        self.from_elsewhere = table_files.kind(self.files[0]) == "parquet"  # such files are mostly downloaded
        self.starts, self.groups = [0], {}  # the first row of each file; {what rows were grouped by: hashes}
        self.value = self.share = None
        shown = ", ".join(file.removeprefix(self.inside) for file in self.files[:3])
        self.how = f"the rows of {shown}" + ", ..." * (len(self.files) > 3)
        if twice and "split" not in self.columns:
            raise InputError(
                f"entry '{entry['name']}': {os.path.basename(self.files[0])} is both '{ours}' and '{twice}', and has "
                "no column 'split' that tells its rows apart: name another file, or leave one out"
            )
        if by_file and not twice:
            if "split" in entry:
                logger.warning(
                    f"entry '{entry['name']}': the column '{entry['split']}' has no effect beside split files"
                )
        elif split and "split" in self.columns:
            self.known = self.read_splits()
            by_value = next((name for name in held if name in self.known.values()), None)
            self.value = by_value if split != "train" and by_value else "train"
            self.how += f" whose '{self.columns['split']}' is {self.value}"
            by_file = by_value
        share = splits.read_share(entry, share)
        if split and not by_file and (share or split != "train"):
            self.share, self.held_out = share, splits.Share(share, entry.get("seed", "0"))

    def empty(self) -> bool:
        """Whether the split is that of a share of nothing."""
        return self.share == 0

    def column(self, role: str) -> str | None:
        """The column that the entry names for a role, else the first of ROLES that is there."""
        there = (name for known in ROLES[role] for name in self.names if name.lower() == known)
        name = self.entry.get(role) or next(there, None)
        return name and self.check(name, role)

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
                f"{self.files[0]}: no column for '{role}' ({', '.join(ROLES[role])}), only {some(self.names)}: "
                f"name one as '{role}' in the entry '{self.entry['name']}'"
            )
        return self.columns[role]

    def where(self, number: int) -> str:
        """The file and row of row `number`."""
        place = bisect_right(self.starts, number) - 1
        path = self.files[place]
        return f"{path}, row {number - self.starts[place] + table_files.first_row(path)}"

    def convert(self, form: Callable, cells: list, numbers: list[int] | range, column: str) -> list:
        """The cells of these rows as what `form` makes of each. Raises InputError with the first that is refused."""
        made = []
        try:
            made.extend(map(form, cells))
        except ValueError as error:
            what = "is not UTF-8 text" if isinstance(error, UnicodeError) else f"has {error}"
            raise InputError(f"{self.where(numbers[len(made)])}: the column '{column}' {what}: correct it") from None
        return made

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

    def read_splits(self) -> dict[str, str | None]:
        """{cell of the column of splits: the split that it means}; an empty cell means none: such rows are counted."""
        column, known, without = self.columns["split"], {}, 0
        for _, first, (cells,) in self.blocks([column]):
            for i, cell in enumerate(map(str, cells)):
                if cell in known:
                    without += known[cell] is None
                    continue
                known[cell] = splits.named(cell)
                without += known[cell] is None
                if known[cell] is None and table_files.line(cell) not in ("", "None", "nan"):
                    raise InputError(
                        f"{self.where(first + i)}: the {column} '{cell[:40]}' is none of train, validation and test: "
                        f"correct it, or name another column as 'split' in the entry '{self.entry['name']}'"
                    )
        if "train" not in known.values():
            raise InputError(f"{self.files[0]}: the column '{column}' says train in no row")
        if without:
            logger.info(f"{self.files[0]}: {without} rows whose '{column}' is empty left out")
        return known

    # The rows

    def select(self, *columns: str) -> Iterator[Block]:
        """The rows of the split, with their cells of `columns`."""
        for column in columns:
            self.check(column, "labels")
        template = self.template.columns if self.template else []
        for column in template:
            self.check(column, "images")
        own = {role: self.columns.get(role) for role in ("id", "patient", "article", "split")}
        own["image"] = None if self.template else self.columns["image"]
        asked = list(dict.fromkeys([*filter(None, own.values()), *template, *columns]))
        current, finders = None, {}
        for path, first, block in self.blocks(asked):
            if path != current:
                current, start, bases = path, first, self.bases(path)
                finder = finders.setdefault(bases, Finder(bases))
                stored = self.stored(path, own["image"])
            cells = dict(zip(asked, block, strict=True))
            kept = range(len(block[0]))
            if self.value:
                kept = [i for i, cell in enumerate(map(str, cells[own["split"]])) if self.known[cell] == self.value]
            numbers = [first + i for i in kept]

            def read(column, form=table_files.line, cells=cells, kept=kept, numbers=numbers):
                if column is None:
                    return [""] * len(kept)
                return self.convert(form, [cells[column][i] for i in kept], numbers, column)

            if self.template:
                filled = map(self.template.fill, zip(*map(read, template), strict=True))
                written = [[one] if one else [] for one in filled]
            else:
                written = read(own["image"], table_files.texts)
            rows = [number - start for number in numbers]
            inside = [stored is not None and bool(stored[row]) for row in rows]
            outside = [[] if one else names for names, one in zip(written, inside, strict=True)]
            self.check_paths(outside, numbers)
            ids = [
                key or self.key(path, row, names)
                for key, row, names in zip(read(own["id"]), rows, written, strict=True)
            ]
            patients, articles = read(own["patient"]), read(own["article"])
            if not own["patient"]:
                patients = [match[1] if names and (match := PATIENT.search(names[0])) else "" for names in written]
            located = self.find(finder, outside)
            for i in itertools.compress(range(len(rows)), inside):
                name = os.path.basename(*written[i][:1] or [""]).replace("\0", "")
                located[i] = [
                    locations.make(path.removeprefix(self.inside), row=f"{own['image']}:{rows[i]}", name=name)
                ]
            found = Block(
                numbers, ids, written, located, patients, articles, [[cells[one][i] for i in kept] for one in columns]
            )
            yield found if self.share is None else self.our_side(found)

    def key(self, path: str, row: int, written: list[str]) -> str:
        """The id of a row without one: the name of its image without suffix, else that of the file and the row."""
        if not written:
            return f"{os.path.relpath(path, self.root)}_{row + 1}"
        stem, dot, ending = written[0].rpartition(".")
        return " ".join((stem if f"{dot}{ending}".lower() in SUFFIXES else written[0]).split())

    def stored(self, path: str, column: str | None) -> np.ndarray | None:
        """Which rows of a file hold their image, (N,) bool; None: it has no column of stored images."""
        return parquet.stored(path, column) if column and table_files.kind(path) == "parquet" else None

    def check_paths(self, written: list[list[str]], numbers: list[int]) -> None:
        """Raise InputError for an image whose name leads out of the folders, or from a parquet file is absolute."""
        joined = "\n" + "\n".join(itertools.chain.from_iterable(written))
        if not (".." in joined or "\0" in joined or (self.from_elsewhere and "\n/" in joined)):
            return
        for number, names in zip(numbers, written, strict=True):
            for name in names:
                leads_out = "\0" in name or ".." in re.split(r"[/\\]", name)
                if leads_out or (self.from_elsewhere and name.startswith("/")):
                    raise InputError(f"{self.where(number)}: '{name[:80]}' leaves the data folder: correct the row")

    def our_side(self, block: Block) -> Block:
        """The rows of a block on this split's side of the share that is held out."""
        groups = [
            ("patients", patient) if patient else ("articles", article) if article else ("images", (*names, key)[0])
            for patient, article, names, key in zip(
                block.patients, block.articles, block.written, block.ids, strict=True
            )
        ]
        ours = {group: self.held_out.holds_out(group[1]) == (self.split != "train") for group in set(groups)}
        for kind in {kind for kind, _ in ours}:
            hashes = array("q", (hash(group) for of, group in ours if of == kind))
            self.groups.setdefault(kind, array("q")).extend(hashes)
        keep = [ours[group] for group in groups]
        *parts, cells = ([*itertools.compress(part, keep)] for part in block[:-1]), block.cells
        return Block(*parts[0], [[*itertools.compress(one, keep)] for one in cells])

    def bases(self, path: str) -> tuple[str, ...]:
        """The folders that images may lie in."""
        folder = os.path.dirname(path)
        return *self.given, folder, self.root, os.path.dirname(folder)

    def find(self, finder: Finder, written: list[list[str]]) -> list[list[str | None]]:
        """The locations of the image files of each row; [None] for a row without one."""
        found = finder(itertools.chain.from_iterable(written)) if self.look else {}
        found = {name: path.removeprefix(self.inside) for name, path in found.items()}
        return [[found.get(name) for name in names] or [None] for names in written]

    def notes(self) -> dict[str, str]:
        """For the log and the run: how the rows were chosen, known after the last of them."""
        if self.share is None:
            return {"split": self.how}
        counts = " and ".join(f"{len(np.unique(np.array(one))):,} {kind}" for kind, one in self.groups.items())
        side = "held out" if self.split != "train" else "left, the rest is held out"
        part = self.share if self.split != "train" else 1 - self.share
        seed = self.entry.get("seed", "0")
        return {"split": f"{self.how}: a share of {part:g} of its {counts}, by a hash with seed {seed}, {side}"}


def same_file(some: list[str], others: list[str]) -> bool:
    """Whether two lists of paths have a file in common."""
    return not {*map(os.path.realpath, some)}.isdisjoint(map(os.path.realpath, others))


def some(names: list[str]) -> str:
    return ", ".join(names[:30])[:600] + (f" and {len(names) - 30} more" if len(names) > 30 else "")
