"""Millions of short texts in byte buffers, and the reading of files of `<id> <text>` lines into such buffers."""

import itertools
import re
from array import array
from codecs import BOM_UTF8
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils import InputError, logger

BLOCK = 1 << 23  # bytes of a captions file that are turned into Python strings at a time


class Strings:
    """N strings in one byte buffer with N + 1 offsets.

    Worker processes share it: there is no Python object for each string, whose reference count they would write to.
    """

    def __init__(self, strings: Iterable[str] = ()):
        self.buffer, self.offsets = bytearray(), array("q", [0])
        for string in strings:
            self.append(string)

    def append(self, string: str) -> None:
        self.buffer += string.encode("utf-8")
        self.offsets.append(len(self.buffer))

    def extend(self, contents: bytes, lengths: np.ndarray) -> None:
        """Add the strings that lie end to end in `contents` (UTF-8); `lengths` are their bytes (int64)."""
        self.offsets.frombytes((len(self.buffer) + lengths.cumsum()).tobytes())
        self.buffer += contents

    def take(self, keep: np.ndarray, reuse: bool = False) -> "Strings":
        """The strings where `keep` (N,) is true. With `reuse` they take over the buffer of these, which are lost."""
        found, offsets = Strings(), np.frombuffer(self.offsets, np.int64)
        # The bytes at which a stretch of strings to keep starts or ends.
        edges = offsets[np.flatnonzero(np.diff(keep, prepend=False, append=False))].tolist()
        lengths, size = np.diff(offsets)[keep], 0
        buffer, self.buffer = self.buffer, bytearray() if reuse else self.buffer[:]
        with memoryview(buffer) as bytes_:
            for start, end in zip(edges[::2], edges[1::2], strict=True):
                bytes_[size : size + end - start] = bytes_[start:end]
                size += end - start
        del buffer[size:]
        found.extend(b"", lengths)
        found.buffer = buffer
        return found

    def lengths(self) -> np.ndarray:
        """The bytes of each string, (N,) int64."""
        return np.diff(np.frombuffer(self.offsets, np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.buffer[self.offsets[i] : self.offsets[i + 1]].decode("utf-8")

    def __iter__(self):
        for start, end in itertools.pairwise(self.offsets):
            yield self.buffer[start:end].decode("utf-8")


@dataclass
class Choices:
    """N strings that repeat, the i-th being `strings[which[i]]`: several captions may be of one image file.

    Where `which` is -1 there is none, and `get` gives None.
    """

    strings: Strings
    which: np.ndarray  # (N,) int32

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, i: int) -> str:
        return self.strings[self.which[i]]

    def get(self, i: int) -> str | None:
        return self.strings[self.which[i]] if self.which[i] >= 0 else None

    def take(self, keep: np.ndarray) -> "Choices":
        """Those where `keep` (N,) is true."""
        return Choices(self.strings, self.which[keep])

    @classmethod
    def of(cls, values: Iterable[str | None]) -> "Choices":
        """From N strings or None; equal ones are kept once."""
        numbers = {}
        which = array("i", (-1 if value is None else numbers.setdefault(value, len(numbers)) for value in values))
        return cls(Strings(numbers), np.frombuffer(which, np.int32) if which else np.zeros(0, np.int32))


def read_lines(path: Path, noun: str = "caption") -> tuple[Strings, Strings]:
    """Lines of `<id> <white space> <text>` -> ids and texts. Lines without text are left out, and counted in the log.

    Raises InputError with the first row that is not UTF-8, or whose id is a path or comes twice.
    """
    ids, texts, hashes, failure = Strings(), Strings(), [], None
    try:
        with open(path, "rb") as file:
            while failure is None and (block := file.read(BLOCK) + file.readline()):
                keys, captions, failure = split_lines(block, path, len(ids))
                hashes.append(np.fromiter(map(hash, keys), np.int64, len(keys)))
                for column, strings in ((ids, keys), (texts, captions)):
                    encoded = [string.encode("utf-8") for string in strings]
                    column.extend(b"".join(encoded), np.fromiter(map(len, encoded), np.int64, len(encoded)))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if hashes:
        refuse_doubles(ids, texts, np.concatenate(hashes), path)
    if failure is not None:
        raise InputError(failure)
    filled = texts.lengths() > 0
    empty = np.count_nonzero(ids.lengths() > 0) - np.count_nonzero(filled)
    if empty:
        logger.info(f"{path}: {empty} rows without a {noun} left out")
    return (ids, texts) if filled.all() else (ids.take(filled, reuse=True), texts.take(filled, reuse=True))


def split_lines(block: bytes, path: Path, done: int) -> tuple[list[str], list[str], str | None]:
    """A block of whole lines -> their ids and texts ("" for what a line lacks) up to the first bad line, and what is
    wrong with that one, or None. `done` lines of the file came before the block."""
    keys, texts, failure = [], [], None
    block = block if done else block.removeprefix(BOM_UTF8)
    try:
        content = block.decode("utf-8")
    except UnicodeDecodeError as error:
        content = block[: block.rfind(b"\n", 0, error.start) + 1].decode("utf-8")
        failure = "not UTF-8 text"
    lines = content.split("\n")
    if not lines[-1]:
        lines.pop()  # the empty string after the last line feed
    if failure is not None:
        failure = f"{path}, row {done + len(lines) + 1}: {failure}"
    for line in lines:
        key, _, text = " ".join(line.split()).partition(" ")
        keys.append(key)
        texts.append(text)
    joined = "\n" + "\n".join(keys)
    if any(sign in joined for sign in ("/", "\\", "\0", "\n.")):
        for row, key in enumerate(keys):
            if re.search(r"^\.|[/\\\0]", key):
                failure = f"{path}, row {done + row + 1}: '{key[:60]}' is not an id but a path: correct the row"
                return keys[:row], texts[:row], failure
    return keys, texts, failure


def refuse_doubles(ids: Strings, texts: Strings, hashes: np.ndarray, path: Path) -> None:
    """Raise InputError with the first row whose id is also that of an earlier row with a text; `hashes` (N,) are those
    of the ids."""
    ordered = np.sort(hashes)
    shared = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(shared):
        return
    before = set()
    for row in np.flatnonzero(np.isin(hashes, shared) & (ids.lengths() > 0)):
        key = ids[row]
        if key in before:
            raise InputError(f"{path}, row {row + 1}: the id '{key[:60]}' comes twice: remove one of the rows")
        if texts.offsets[row + 1] > texts.offsets[row]:
            before.add(key)
