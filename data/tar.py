"""Where the members of a tar archive lie, read from its headers by position: ustar, pax and GNU's format.

The formats are POSIX.1-2017 (pax, with ustar) and the GNU tar manual, "Basic Tar Format". Nothing is unpacked.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data import locations
from utils import InputError

BLOCK = 512
ZEROS = bytes(BLOCK)
WINDOW = 1 << 14  # bytes read at a time: a header, the short texts after it, and the next header
LONGEST = 1 << 20  # bytes of an extended header; names take some hundred
COMPRESSED = {b"\x1f\x8b": "gunzip", b"\xfd7zXZ": "unxz", b"BZh": "bunzip2", b"\x28\xb5\x2f\xfd": "unzstd"}
EXTENDED = b"xXgLK"  # headers that say something about the next one
FILES = b"\x0007"
KINDS = {49: "a hard link", 50: "a link", 51: "a device", 52: "a device", 53: "a folder", 54: "a pipe"}  # "1" to "6"
NO_DATA = bytes(KINDS)


class Member(NamedTuple):
    name: bytes
    offset: int
    size: int
    kind: str  # "" for a file, else what it is


class Archive:
    """An archive that is open for reading: a context manager. `faults` are what was passed over.

    Raises InputError for a file that is not there, is empty, compressed or no archive, and, from `members`, for one
    that is cut short or damaged, that holds a sparse member, or a name that leads out of it.
    """

    def __init__(self, path: str | Path):
        self.path, self.faults = str(path), []
        self.begin, self.window = 0, b""

    def __enter__(self):
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                raise InputError(f"{self.path}: not a file: a shard is a tar archive")
            self.number = os.open(self.path, os.O_RDONLY)
            found = os.fstat(self.number)
        except OSError as error:
            raise InputError(f"{self.path}: the shard cannot be read: {error.strerror}") from None
        self.size, self.modified = found.st_size, found.st_mtime_ns
        return self

    def __exit__(self, *_):
        os.close(self.number)

    def get(self, offset: int, size: int) -> bytes:
        """A stretch of the file, which is shorter at its end. Raises InputError."""
        at = offset - self.begin
        if not 0 <= at <= at + size <= len(self.window):
            try:
                self.window = locations.fill(self.number, offset, max(size, WINDOW))
            except OSError as error:
                raise InputError(f"{self.path}: the shard cannot be read: {error.strerror}") from None
            self.begin, at = offset, 0
        return self.window[at : at + size]

    def damaged(self, what: str) -> InputError:
        return InputError(f"{self.path}: {what}: download or pack the shard again")

    def members(self) -> Iterator[Member]:
        """Every member in the archive's order. An archive may end without blocks of zeros, as GNU tar takes it."""
        offset, names, records, shared = 0, [], {}, {}
        while offset < max(1, self.size) or names or records:
            header = self.get(offset, BLOCK)
            if header == ZEROS and not (names or records):
                if self.get(offset, 1 << 16).strip(b"\0"):
                    self.faults.append(f"what follows the archive's end at byte {offset}: tars joined by cat?")
                return
            self.check(header, offset)
            kind, size, offset = header[156], self.field(header[124:136], offset), offset + BLOCK
            if kind in EXTENDED:
                contents = self.get(offset, size) if size <= LONGEST else b""
                if len(contents) < size or size > self.size - offset:
                    raise self.damaged(f"cut short, or damaged, in the long header at byte {offset - BLOCK}")
                if kind in b"xX":
                    records = self.records(contents, offset)
                elif kind in b"g":
                    shared |= self.records(contents, offset)
                elif kind in b"L":
                    names = [contents.partition(b"\0")[0]]
            else:
                found = {**shared, **records} if shared else records
                name = names[0] if names else found.get(b"path") or plain_name(header)
                size = self.whole(found[b"size"], offset) if b"size" in found else size
                self.check_member(name, kind, found)
                if kind in NO_DATA:
                    size = 0
                end = offset + (size + BLOCK - 1) // BLOCK * BLOCK
                if end > self.size:
                    there = f"{self.size - offset:,} of {end - offset:,} bytes"
                    raise self.damaged(f"cut short in {shown(name)}, of which {there} are there")
                what = KINDS.get(kind, "" if kind in FILES else f"of type {chr(kind)!a}")
                if what == "" and name.endswith(b"/"):  # how the oldest archives mark a folder
                    what = "a folder"
                yield Member(name, offset, size, what)
                names, records, size = [], {}, end - offset
            offset += (size + BLOCK - 1) // BLOCK * BLOCK

    def check(self, header: bytes, offset: int) -> None:
        """Raise InputError if a header is cut short, or is not what its checksum says."""
        if offset == 0:
            cure = next((tool for mark, tool in COMPRESSED.items() if header.startswith(mark)), None)
            if not header:
                raise self.damaged("an empty file")
            if cure:
                raise InputError(
                    f"{self.path}: compressed, so that its members have no positions: unpack it with {cure}, and name "
                    "the .tar"
                )
        if len(header) < BLOCK:
            raise self.damaged("not a tar archive" if offset == 0 else f"cut short in the header at byte {offset}")
        given = self.field(header[148:156], offset)
        total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
        if total != given and total - 256 * sum(byte > 127 for byte in header[:148] + header[156:]) != given:
            what = "not a tar archive" if offset == 0 else f"damaged at byte {offset}, where a header should be"
            raise self.damaged(what)

    def check_member(self, name: bytes, kind: int, records: dict) -> None:
        if kind in b"S" or any(key.startswith(b"GNU.sparse") for key in records):
            raise InputError(f"{self.path}: {shown(name)} is sparse: pack the shard without tar's --sparse")
        if name.startswith(b"/") or (b".." in name and b".." in name.split(b"/")):
            raise InputError(f"{self.path}: the name {shown(name)} leads out of the shard: pack it with relative names")

    def field(self, digits: bytes, offset: int) -> int:
        """A number of a header: octal digits, or, where the first bit is set, binary."""
        if (most := digits[:-1]).isdigit() and digits[-1] in b"\0 " and b"8" not in most and b"9" not in most:
            return int(most, 8)  # as nearly all are
        if digits[0] in (0x80, 0xFF):
            value = int.from_bytes(digits[1:], "big") - (256 ** (len(digits) - 1) if digits[0] == 0xFF else 0)
            return value if value >= 0 else self.whole(b"", offset)
        return self.whole(digits.partition(b"\0")[0].strip(b" ") or b"0", offset, 8)

    def whole(self, digits: bytes, offset: int, base: int = 10) -> int:
        if not digits.isdigit() or len(digits) > 24 or (base == 8 and max(digits) > ord("7")):
            where = f"damaged at byte {offset}, where a header's number should be"
            raise self.damaged(where if offset else "not a tar archive")
        return int(digits, base)

    def records(self, contents: bytes, offset: int) -> dict[bytes, bytes]:
        """The records "LENGTH KEY=VALUE\\n" of a pax header; the length counts the whole record."""
        found, at = {}, 0
        while at < len(contents) and contents[at]:
            blank = contents.find(b" ", at, at + 20)
            length = self.whole(contents[at:blank] if blank > 0 else b"", offset)
            key, equals, value = contents[blank + 1 : at + length - 1].partition(b"=")
            at += length
            if blank + 1 >= at or at > len(contents) or not equals or contents[at - 1] != ord("\n"):
                raise self.damaged(f"damaged in the long header at byte {offset - BLOCK}")
            found[key] = value
        return found


def plain_name(header: bytes) -> bytes:
    """The name in a header itself; ustar may have put its first folders into a field of their own."""
    name = header[:100].partition(b"\0")[0]
    folder = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return folder + b"/" + name if folder else name


def shown(name: bytes) -> str:
    """A member's name for a message, in one line."""
    return ascii(name.decode("utf-8", "replace"))[:80]
