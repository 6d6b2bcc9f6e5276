"""Tables on the disk, read in blocks of rows: CSV and TSV, JSON lines, parquet. A header is row 1."""

import csv
import gzip
import itertools
import json
import math
import os
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator

from data import parquet
from utils import InputError

KINDS = {
    ".csv": "text", ".tsv": "text", ".txt": "text", ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".parquet": "parquet",
}  # fmt: skip
BLOCK = 1 << 13  # rows that are held as Python objects at a time
FIRST_OBJECTS = 100  # objects of a JSON lines file whose keys are its columns


def kind(path: str) -> str:
    """ "text", "json" or "parquet". Raises InputError for another suffix."""
    found = KINDS.get(os.path.splitext(path.lower().removesuffix(".gz"))[1])
    if found is None or (found == "parquet" and path.lower().endswith(".gz")):
        raise InputError(
            f"{path}: not a table by its name: expected .csv, .tsv, .jsonl (or these with .gz) or .parquet"
        )
    return found


def first_row(path: str) -> int:
    """The number of the first row of data: 2 below a header."""
    return 2 if kind(path) == "text" else 1


def names(path: str) -> list[str]:
    """The names of the columns. Raises InputError if the file cannot be read or is empty."""
    form = kind(path)
    if form == "parquet":
        return parquet.names(path)
    if form == "text":
        with Text(path) as lines:
            return read_header(lines)[0]
    with Text(path) as lines:
        objects = itertools.islice(read_objects(lines), FIRST_OBJECTS)
        found = list(dict.fromkeys(key for one in objects for key in one))
    if not found:
        raise InputError(f"{path}: holds no rows")
    return found


def read(path: str, columns: list[str], images: str | None = None) -> Iterator[list[list]]:
    """The cells of `columns` in blocks of rows: a list for each column. A cell is a text, or what JSON or parquet has
    there; an empty line gives empty cells. `images` is as in parquet.blocks.

    Raises InputError with the first row that cannot be read.
    """
    form = kind(path)
    if form == "parquet":
        yield from parquet.blocks(path, columns, BLOCK, images)
        return
    with Text(path) as lines:
        if form == "text":
            header, rows = read_header(lines)
            places = [header.index(name) for name in columns]
            while block := list(itertools.islice(rows, BLOCK)):
                yield [[row[place] for row in block] for place in places]
        else:
            rows = read_objects(lines)
            while block := list(itertools.islice(rows, BLOCK)):
                yield [[row.get(name) for row in block] for name in columns]


class Text:
    """The lines of a UTF-8 file, opened if its name ends with ".gz". A context manager; errors name `row`, which its
    reader counts."""

    def __init__(self, path: str):
        self.path, self.row = path, 1

    def __enter__(self):
        if not os.path.isfile(self.path):
            raise InputError(f"{self.path}: no such file: correct its name in the catalog")
        self.file = (gzip.open if self.path.lower().endswith(".gz") else open)(self.path, "rb")
        return self

    def __exit__(self, kind, error, trace):
        self.file.close()
        if isinstance(error, InputError) or not isinstance(error, Exception):
            return
        where = f"{self.path}, row {self.row}"
        if isinstance(error, UnicodeDecodeError):
            raise InputError(f"{where}: not UTF-8 text: save the file as UTF-8") from None
        if isinstance(error, csv.Error):
            raise InputError(f"{where}: {error}: correct the quotes around its cells") from None
        if isinstance(error, (OSError, EOFError, zlib.error)):
            raise InputError(f"{self.path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None

    def __iter__(self) -> Iterator[str]:
        first = next(self.file, b"").removeprefix(BOM_UTF8)
        for line in itertools.chain([first], self.file):
            yield line.decode("utf-8")


def read_header(lines: Text) -> tuple[list[str], Iterator[list[str]]]:
    """-> the names of the columns, and an iterator over the rows, each with a cell for every column."""
    texts = iter(lines)
    first = next(texts)
    delimiter = "\t" if first.count("\t") > first.count(",") else ","  # open_clip's .csv has tabs
    reader = csv.reader(itertools.chain([first], texts), delimiter=delimiter, strict=True)
    header = [cell.strip() for cell in next(reader, [])]
    if not any(header):
        raise InputError(f"{lines.path}: is empty: expected the names of the columns in its first row")

    def rows():
        empty = [""] * len(header)
        for lines.row in itertools.count(2):
            row = next(reader, None)
            if row is None:
                return
            if len(row) != len(header) and row:
                raise InputError(
                    f"{lines.path}, row {lines.row}: {len(row)} cells for {len(header)} columns: quote a cell that "
                    f"holds a {'tab' if delimiter == chr(9) else 'comma'}"
                )
            yield row or empty

    return header, rows()


def read_objects(lines: Text) -> Iterator[dict]:
    """The objects of a file of JSON lines; an empty line gives an empty one."""
    for lines.row, string in enumerate(lines, 1):  # noqa: B020 (an attribute of it counts the rows)
        if not string.strip():
            yield {}
            continue
        try:
            found = json.loads(string)
            if "\\ud" in string.lower():
                json.dumps(found, ensure_ascii=False).encode("utf-8")  # half a surrogate pair is no text
        except (ValueError, RecursionError) as error:
            what = getattr(error, "msg", None) or "it is no text, or too long or deep"
            raise InputError(f"{lines.path}, row {lines.row}: not JSON ({what}): write one object a line") from None
        if not isinstance(found, dict):
            raise InputError(f"{lines.path}, row {lines.row}: not a JSON object: write one object a line")
        yield found


# Cells


def text(cell) -> str:
    """A cell as text, "" for an empty one. Raises ValueError if it is a list or such, or not UTF-8."""
    if isinstance(cell, str):
        return cell
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))  # pandas makes whole numbers of a column with gaps fractional
    if isinstance(cell, bytes):
        return cell.decode("utf-8")
    if isinstance(cell, (list, dict)):
        raise ValueError(f"{'a list' if isinstance(cell, list) else 'an object'} where one text is expected")
    return str(cell)


def line(cell) -> str:
    """A cell as one line of text: each run of white space is one space. Raises ValueError."""
    return " ".join((cell if isinstance(cell, str) else text(cell)).split())


def texts(cell) -> list[str]:
    """The texts of a cell that may hold a list, without white space around them or empty ones. Raises ValueError."""
    if isinstance(cell, list):
        return [one for one in map(str.strip, map(text, cell)) if one]
    found = (cell if isinstance(cell, str) else text(cell)).strip()
    return [found] if found else []


def lines(cell) -> list[str]:
    """As `texts`, each of them one line."""
    return [" ".join(one.split()) for one in texts(cell)]
