"""What a tar shard holds, sample by sample, found once and kept: an index of places and texts.

A sample is what the webdataset library takes for one: consecutive members whose names are equal up to the first dot of
the last component. An index is a file for each shard; one of a shard that has changed since, and one that is damaged,
is made again.
"""

import contextlib
import hashlib
import json
import os
import re
import zlib
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

import utils
from data import locations, lock, tar
from data.batches import start_worker
from data.buffers import Strings
from data.images import SUFFIXES
from utils import InputError, logger

KEEP = True  # whether an index that was made is written down; tools/doctor.py leaves no trace
VERSION = 1
IMAGES = tuple(suffix[1:] for suffix in SUFFIXES)  # if a sample has several, the first of these
TEXTS = ("txt", "json", "cls")
LONGEST_TEXT = 1 << 24  # bytes
PLACEHOLDER = "No caption found"  # BIOMEDICA's, for a figure without a caption
# Of each sample with an image: its id, its place as the fields of a location, and texts, "" where there is none.
# Then the ids of samples without an image, and what was left out, and why.
COLUMNS = ("ids", "places", "captions", "articles", "patients", "labels", "numbers", "imageless", "faults")
STRANGE = re.compile(r"[\x00-\x1f\x7f]")
META = re.compile(r"__[^/]*__(/|$)")  # names that the library passes over


class Index:
    """The index of a shard, from the bytes of its file: counts, and columns of strings as (bytes, lengths)."""

    def __init__(self, contents: bytes):
        end = contents.index(b"\n")
        self.head, body = json.loads(contents[8:end]), memoryview(contents)[end + 1 :]
        self.columns, at = {}, 0
        for name, (count, size) in self.head["columns"].items():
            lengths = np.frombuffer(body, "<i4", count, at).astype(np.int64)
            at += 4 * count
            self.columns[name] = body[at : at + size], lengths
            at += size
        self.hashes = np.frombuffer(body, "<i8", self.head["columns"]["ids"][0], at)  # of the ids

    def add(self, name: str, strings: Strings) -> Strings:
        """Add a column to `strings`."""
        strings.extend(*self.columns[name])
        return strings


class Scan:
    """One shard, read from its first header to its last. `keys` name the JSON's fields: {"caption": "caption", ...}."""

    def __init__(self, keys: dict[str, str]):
        self.keys, self.columns = keys, {name: [] for name in COLUMNS}
        self.counts = {"samples": 0, "placeholders": 0}
        self.seen = []  # the fields of the first JSON
        self.key, self.image, self.texts, self.suffixes = None, None, {}, set()

    def read(self, archive: tar.Archive) -> None:
        for member in archive.members():
            if member.kind:
                if member.kind != "a folder":
                    self.fault(f"{tar.shown(member.name)}: {member.kind}, not a file")
                continue
            try:
                name = member.name.decode("utf-8")
            except UnicodeDecodeError:
                name = "\0"
            if STRANGE.search(name) or len(name) > 4096:
                self.fault(f"{tar.shown(member.name)}: not a name in UTF-8 of one line")
                continue
            folders, slash, last = name.rpartition("/")
            stem, dot, suffix = last.partition(".")
            if not stem or not dot or META.match(name):
                continue
            self.take(archive, name, folders + slash + stem, suffix.lower(), member)
        self.end_sample()
        self.columns["faults"] += archive.faults

    def take(self, archive: tar.Archive, name: str, key: str, suffix: str, member: tar.Member) -> None:
        if key != self.key:
            self.end_sample()
            self.key = key
        if suffix in self.suffixes:
            raise InputError(f"{archive.path}: {name[:80]} comes twice in a sample: pack the shard again")
        self.suffixes.add(suffix)
        if suffix in IMAGES:
            found = IMAGES.index(suffix), locations.make("", at=f"{member.offset}+{member.size}", name=name)
            self.image = min(self.image or found, found)
        elif suffix in TEXTS and member.size > LONGEST_TEXT:
            self.fault(f"{name[:80]}: {member.size:,} bytes are too long for a text")
        elif suffix in TEXTS:
            try:
                self.texts[suffix] = archive.get(member.offset, member.size).decode("utf-8-sig")
            except UnicodeDecodeError:
                self.fault(f"{name[:80]}: not UTF-8 text")

    def end_sample(self) -> None:
        if self.key is None:
            return
        self.counts["samples"] += 1
        known = self.fields()
        given = known.get("id") or self.key.removeprefix("./")
        caption = known.get("caption", "")
        if "txt" in self.texts and (self.keys["caption"] == "caption" or not caption):
            caption = " ".join(self.texts["txt"].split())
        if caption == PLACEHOLDER:
            self.counts["placeholders"] += 1
            caption = ""
        if self.image is None:
            self.columns["imageless"].append(given)
        else:
            number = self.texts.get("cls", "").strip()
            row = (given, self.image[1], caption, *map(known.get, ("article", "patient", "label")), number)
            for name, value in zip(COLUMNS, row, strict=False):
                self.columns[name].append(value or "")
        self.key, self.image, self.texts, self.suffixes = None, None, {}, set()

    def fields(self) -> dict[str, str]:
        """Those of the JSON's fields that are asked for, as text of one line."""
        if "json" not in self.texts:
            return {}
        try:
            record = json.loads(self.texts["json"])
            if not isinstance(record, dict):
                raise ValueError("no object")
            self.seen = self.seen or [str(key)[:40] for key in list(record)[:20]]
            values = ((name, record.get(key)) for name, key in self.keys.items())
            found = {name: " ".join(str(one).split()) for name, one in values if isinstance(one, (str, int, float))}
            "".join(found.values()).encode("utf-8")
        except (ValueError, RecursionError) as error:
            reason = "no characters" if isinstance(error, UnicodeEncodeError) else str(error)
            self.fault(f"{self.key[:80]}.json: not JSON ({reason[:60]})")
            return {}
        return found

    def fault(self, what: str) -> None:
        self.columns["faults"].append(f"{what}: left out")


def make(path: Path, keys: dict[str, str]) -> bytes:
    """Read a shard -> the contents of its index file. Raises InputError as tar.Archive."""
    scan = Scan(keys)
    with tar.Archive(path) as archive:
        scan.read(archive)
    parts, sizes = [], {}
    for name, values in scan.columns.items():
        encoded = [value.encode("utf-8") for value in values]
        joined = b"".join(encoded)
        parts += [np.fromiter(map(len, encoded), "<i4", len(encoded)).tobytes(), joined]
        sizes[name] = len(encoded), len(joined)
    digests = (hashlib.blake2b(value.encode("utf-8"), digest_size=8).digest() for value in scan.columns["ids"])
    parts.append(b"".join(digests))
    head = {"version": VERSION, "bytes": archive.size, "modified": archive.modified, "keys": keys}
    head |= {"counts": scan.counts, "fields": scan.seen, "columns": sizes}
    contents = json.dumps(head).encode() + b"\n" + b"".join(parts)
    return b"%08x" % zlib.crc32(contents) + contents


def read(path: Path, shard: Path, keys: dict[str, str]) -> Index | None:
    """The index in a file; None if there is none of the shard as it is now."""
    try:
        contents, found = path.read_bytes(), os.stat(shard)
        if contents[:8] != b"%08x" % zlib.crc32(memoryview(contents)[8:]):
            return None
        index = Index(contents)
    except (OSError, ValueError, KeyError):
        return None
    expected = (VERSION, found.st_size, found.st_mtime_ns, keys)
    return index if tuple(map(index.head.get, ("version", "bytes", "modified", "keys"))) == expected else None


def open_all(shards: list[Path], keys: dict[str, str], processes: int | None = None) -> list[Index]:
    """The index of each shard, read, or made by `processes` (all cores) and kept.

    They are kept in `medslip_cache/index` beside the shards, or, where that cannot be written, in the user's cache
    folder. Raises InputError as tar.Archive.
    """
    shards, found = [Path(shard) for shard in shards], {}
    for folder in dict.fromkeys(shard.parent for shard in shards):
        here = [shard for shard in shards if shard.parent == folder]
        mark = hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:8]
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "medslip"
        name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        places = (folder / "medslip_cache" / "index", home / f"index-{name}")
        files = {place: {shard: place / f"{shard.name}.{mark}.index" for shard in here} for place in places}
        for place in places:
            found |= {shard: read(files[place][shard], shard, keys) for shard in here if not found.get(shard)}
        if not all(found[shard] for shard in here):
            place = next(filter(writable, places), None) if KEEP else None
            found |= build(place, files.get(place), here, found, keys, processes)
    return [found[shard] for shard in shards]


def writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def build(place: Path | None, files, here, found, keys, processes) -> dict[Path, Index]:
    """Make the indices that are not found, one run at a time, and keep them if there is a place."""
    with lock.Lock(place, "--root", wait=True) if place else contextlib.nullcontext():
        made = {shard: read(files[shard], shard, keys) for shard in here if not found[shard]} if place else {}
        missing = [shard for shard in here if not found[shard] and not made.get(shard)]
        if not missing:
            return made
        logger.info(f"{missing[0].parent}: indexing {len(missing)} of {len(here)} shards, kept in {place or 'no file'}")
        for shard, contents in make_all(missing, keys, processes or len(os.sched_getaffinity(0))):
            made[shard] = Index(contents)
            if place:
                try:
                    with utils.atomic_file(files[shard]) as temporary:
                        temporary.write_bytes(contents)
                except OSError as error:
                    logger.warning(f"{place}: the index cannot be kept ({error.strerror}): it is made in each run")
                    place = None
    return made


def make_all(shards: list[Path], keys: dict[str, str], processes: int):
    """Yields (shard, the contents of its index file), in their order."""
    with tqdm(total=len(shards), desc="index", unit=" shards", disable=None, dynamic_ncols=True) as bar:
        if min(processes, len(shards)) == 1:
            for shard in shards:
                yield shard, make(shard, keys)
                bar.update(1)
            return
        context = get_context("fork")  # Python reads headers under its lock, so that threads would take turns
        with ProcessPoolExecutor(min(processes, len(shards)), context, start_worker, (0,)) as pool:
            jobs = {shard: pool.submit(make, shard, keys) for shard in shards}
            try:
                for shard in shards:
                    yield shard, jobs.pop(shard).result()
                    bar.update(1)
            except BrokenProcessPool:
                where = shards[0].parent
                raise InputError(f"{where}: a process that indexed its shards was killed: try again") from None
            finally:
                pool.shutdown(cancel_futures=True)
