"""The rows of a small CSV file that a data set comes with, checked one by one; data/table_files.py reads large ones."""

import csv
import os
import stat

from utils import InputError


def read_csv(source: str, required, optional=(), remedy: str = "restore the file") -> list[tuple[str, list[str]]]:
    """-> [("file, row number", [the wanted cells, stripped])]; an optional column that is absent gives empty cells.

    The header is row 1, as in a spreadsheet. Raises InputError for a file that is not CSV in UTF-8, a column that is
    not there, a row of another length, or no row at all; OSError for a file that cannot be opened.
    """
    if os.path.exists(source) and not os.path.isfile(source):
        raise InputError(f"{source} is not a file: {remedy}")
    try:
        with open(source, encoding="utf-8-sig", newline="") as stream:
            lines = list(csv.reader(stream, strict=True))  # which keeps line feeds within quoted cells
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{source} is not a CSV file in UTF-8 ({error}): {remedy}") from error

    def plain(names):  # "breast density" and "breast_density" are the same column
        return [name.strip().lower().replace("_", " ") for name in names]

    header = plain(lines[0]) if lines else []
    columns = [header.index(name) if name in header else None for name in plain((*required, *optional))]
    lacking = [name for name, column in zip(required, columns, strict=False) if column is None]
    if lacking:
        known = ", ".join(repr(name)[1:-1][:40] for name in lines[0][:20]) if lines else "no row"
        raise InputError(f"{source} lacks the column {lacking[0]!r}, it has {known}: {remedy}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        where = f"{source}, row {number}"
        if not any(map(str.strip, line)):
            continue
        if len(line) != len(header):
            raise InputError(f"{where} has {len(line)} cells, the header {len(header)}: {remedy}")
        rows.append((where, ["" if column is None else line[column].strip() for column in columns]))
    if not rows:
        raise InputError(f"{source} holds no row: {remedy}")
    return rows


def is_plain(name: str) -> bool:
    """Whether a cell is a plain name: as a part of a path it cannot lead out of the folder."""
    harmless = name.isascii() and name.isprintable() and not any(mark in name for mark in "/\\:")
    return harmless and name not in ("", ".", "..") and len(name) < 256


def is_there(path: str) -> bool:
    """Whether a path is that of a file that is not empty. Raises OSError if that cannot be told."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0
