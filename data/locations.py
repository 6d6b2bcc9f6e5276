"""Where the bytes of an image lie, and how it is to be shown.

A location is a string, so that every list of images is one of strings: the path of a file, and after it, where they are
needed, fields "\\0key=value". A path cannot hold "\\0".

    at=OFFSET+SIZE        the image is a stretch of the file: a member of a tar shard
    row=COLUMN:NUMBER     the image is a cell of a parquet file, its row counted over the whole file
    name=NAME             what the member or the row is called there
    window=CENTER/WIDTH   the window to show a DICOM file with, instead of its own
"""

import io
import os
import stat
from typing import NamedTuple

FIELDS = ("at", "row", "name", "window")


class Location(NamedTuple):
    path: str
    at: tuple[int, int] | None = None  # offset and size in bytes
    row: tuple[str, int] | None = None
    name: str = ""
    window: tuple[float, float] | None = None  # center and width


def make(path: str, **fields) -> str:
    """The location of the image at `path`, with the values of `fields` that are not empty."""
    assert fields.keys() <= set(FIELDS), fields
    return path + "".join(f"\0{key}={value}" for key, value in fields.items() if value)


def split(location: str) -> Location:
    if "\0" not in location:
        return Location(location)
    path, *words = location.split("\0")
    found = dict(word.split("=", 1) for word in words)
    if "at" in found:
        found["at"] = tuple(map(int, found["at"].split("+")))
    if "row" in found:
        column, _, number = found["row"].rpartition(":")
        found["row"] = column, int(number)
    if "window" in found:
        found["window"] = tuple(map(float, found["window"].split("/")))
    return Location(path, **found)


def show(location: str) -> str:
    """A location in words, for messages."""
    where = split(location)
    if where.row:
        return f"{where.path}, row {where.row[1] + 1}" + (f" ({where.name})" if where.name else "")
    return f"{where.path}, {where.name or 'byte ' + str(where.at[0])}" if where.at else where.path


def suffix(location: str) -> str:
    """The suffix of the image's own name, in lower case: ".jpg"."""
    where = split(location)
    return os.path.splitext(where.name or where.path)[1].lower()


def is_file(location: str) -> bool:
    """Whether the path is that of a regular file; reading a named pipe would wait for its writer."""
    return os.path.isfile(split(location).path)


def stretch(location: str) -> tuple[str, int, int]:
    """The path of a location, and the offset and size of the image in it. Raises OSError."""
    where = split(location)
    return (where.path, *where.at) if where.at else (where.path, 0, os.stat(where.path).st_size)


def read(location: str) -> bytes:
    """The bytes of the image. Raises OSError, EOFError if the file is too short for it."""
    where = split(location)
    if where.row:
        from data import parquet  # only for runs that need it

        return parquet.read(where.path, *where.row)
    path, offset, size = stretch(location)
    contents = pread(path, offset, size)
    if len(contents) < size:
        raise EOFError(f"the file ends {size - len(contents)} bytes before the image does")
    return contents


def ends(location: str, start: int = 8, end: int = 32) -> tuple[bytes, bytes]:
    """The first and the last bytes of the image. Raises OSError."""
    if split(location).row:
        contents = read(location)
        return contents[:start], contents[-end:]
    path, offset, size = stretch(location)
    end = min(end, size)
    with open(path, "rb", buffering=0) as file:
        return fill(file.fileno(), offset, min(start, size)), fill(file.fileno(), offset + size - end, end)


def pread(path: str, offset: int, size: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return fill(file.fileno(), offset, size)


def fill(number: int, offset: int, size: int) -> bytes:
    """A stretch of the file that is open under a number; shorter only where the file ends. Raises OSError."""
    parts = []
    while size > 0 and (part := os.pread(number, min(size, 1 << 30), offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return b"".join(parts)


def source(location: str) -> str | io.BytesIO:
    """What Pillow opens: the path of a file, or the bytes of an image within one. Raises OSError, EOFError."""
    where = split(location)
    return io.BytesIO(read(location)) if where.at or where.row else where.path


def stamp(location: str) -> tuple[int, int]:
    """The bytes of the image's file and its time of change in ns; -1, -1 if there is no such file."""
    try:
        found = os.stat(split(location).path)
    except OSError:
        return -1, -1
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else (-1, -1)
