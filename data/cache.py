"""A cache of decoded pictures: 512 and 256 pixels on the shorter side, memory-mapped, shared by ranks and later runs.

With it a crop is sampled without any decoding. Gray pictures are kept in one plane. A cache is a folder of shards. Each
is written whole or not at all, so that a build that was killed goes on; a shard is built again when its image files
have changed.
"""

import hashlib
import math
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

import distributed
import utils
from data import images, locations, lock
from data.images import Picture
from utils import InputError, logger

SIDES = (512, 256)  # pixels on the shorter side; smaller pictures are kept as they are
ROW = np.dtype(
    [("offset", "i8"), ("width", "i4"), ("height", "i4"), ("planes", "i4"), ("bytes", "i8"), ("modified", "i8")]
)
SHARD = 256  # pictures; more where that would make over 1,000 shards, because each is a memory map
FREE = 0.9  # the part of the free disk that --cache auto may take


def level_shapes(width: int, height: int) -> list[tuple[int, int]]:
    """(height, width) of each size that is kept of a picture, the largest first; equal sizes once."""
    shapes = []
    for side in SIDES:
        scale = min(1.0, side / min(width, height))
        shape = (max(1, round(height * scale)), max(1, round(width * scale)))
        if shape not in shapes:
            shapes.append(shape)
    return shapes


def shrink(image: Image.Image) -> list[np.ndarray]:
    """A picture at each size that is kept, resized from the file's own size with a Lanczos filter."""
    shapes = level_shapes(*image.size)
    return [
        np.asarray(image if shape[::-1] == image.size else image.resize(shape[::-1], Image.LANCZOS)) for shape in shapes
    ]


class Cache:
    """The pictures of n files, read from the cache in `folder`; used like images.Files."""

    def __init__(self, folder: Path, path, n: int):
        self.folder, self.path, self.n = Path(folder), path, n
        self.size = max(SHARD, -(-n // 1000))
        self.rows, self.maps = None, {}

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Picture:
        number = i // self.size
        if number not in self.maps:
            self.maps[number] = np.asarray(np.memmap(self.file(number, ".bin"), np.uint8, "r"))  # faster to slice
        start, width, height, planes, *_ = self.rows[i].item()
        levels, scales = [], []
        for shape in level_shapes(width, height):
            scales.append((shape[1] / width, shape[0] / height))
            shape = shape if planes == 1 else (*shape, planes)
            end = start + math.prod(shape)
            levels.append(self.maps[number][start:end].reshape(shape))
            start = end
        return Picture(width, height, levels, scales)

    def file(self, number: int, suffix: str) -> Path:
        return self.folder / f"{number:05d}{suffix}"

    def members(self, number: int) -> range:
        return range(number * self.size, min(self.n, (number + 1) * self.size))

    def open(self) -> list[int]:
        """Read the index -> the shards to build: those that are absent, damaged, or of files that have changed."""
        self.rows, self.maps = np.zeros(self.n, ROW), {}
        with ThreadPoolExecutor(16) as pool:
            return [number for number, good in enumerate(pool.map(self.open_shard, self.shards())) if not good]

    def shards(self) -> range:
        return range(-(-self.n // self.size))

    def open_shard(self, number: int) -> bool:
        members = self.members(number)
        try:
            # As a memory map: np.load would else allocate whatever a damaged header says, before it reads.
            rows = np.array(np.load(self.file(number, ".npy"), mmap_mode="r", allow_pickle=False))
            end = os.path.getsize(self.file(number, ".bin"))
        except Exception:  # NumPy evaluates the header as Python, which fails in many ways
            return False
        if rows.dtype != ROW or rows.shape != (len(members),) or not lie_end_to_end(rows, end):
            return False
        known = zip(rows["bytes"].tolist(), rows["modified"].tolist(), strict=True)
        if any(locations.stamp(self.path(i)) != expected for i, expected in zip(members, known, strict=True)):
            return False
        self.rows[members.start : members.stop] = rows
        return True

    def build(self, missing: list[int]) -> None:
        """Write the shards `missing` on all cores. Raises InputError: an image cannot be read, or the disk is full."""
        count = sum(len(self.members(number)) for number in missing)
        with (
            tqdm(total=count, desc="cache", unit=" images", disable=None, dynamic_ncols=True) as bar,
            ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
        ):
            stop = threading.Event()
            jobs = [pool.submit(self.build_shard, number, bar, stop) for number in missing]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def build_shard(self, number: int, bar, stop: threading.Event) -> None:
        rows = np.zeros(len(self.members(number)), ROW)
        try:
            with utils.atomic_file(self.file(number, ".bin")) as temporary, open(temporary, "wb") as file:
                for row, i in zip(rows, self.members(number), strict=True):
                    if stop.is_set():
                        raise InterruptedError
                    known = locations.stamp(self.path(i))  # before decoding: a file that changes now counts as changed
                    image = images.read_image(self.path(i))
                    row["offset"], row["planes"] = file.tell(), len(image.getbands())
                    row["width"], row["height"] = image.size
                    row["bytes"], row["modified"] = known
                    for level in shrink(image):
                        file.write(level.tobytes())
                    bar.update(1)
            with utils.atomic_file(self.file(number, ".npy")) as temporary, open(temporary, "wb") as file:
                np.save(file, rows)
        except InterruptedError:
            return
        except OSError as error:
            raise InputError(
                f"{self.folder}: the cache cannot be written ({error.strerror}): make room, give --cache another "
                "folder, or --cache none"
            ) from None


def lie_end_to_end(rows: np.ndarray, end: int) -> bool:
    """Whether the pictures of these rows (n,) of an index fill a file of `end` bytes in order and without gaps."""
    size = np.stack([rows["height"], rows["width"]]).astype(np.float64)
    if size.min() < 1 or not np.isin(rows["planes"], (1, 3)).all():
        return False
    pixels, larger = 0, 0
    for side in SIDES:  # the arithmetic of level_shapes, for all rows at once
        shape = np.maximum(1, np.rint(size * np.minimum(1.0, side / size.min(axis=0))))
        pixels, larger = pixels + shape.prod(axis=0) * (shape != larger).any(axis=0), shape
    ends = np.cumsum(pixels * rows["planes"])
    return bool((rows["offset"][1:] == ends[:-1]).all()) and rows["offset"][0] == 0 and ends[-1] == end


def estimate(path, n: int, sample: int = 200) -> int:
    """The bytes that a cache of n files will take, estimated from `sample` of them, evenly spaced."""
    chosen = [n * k // min(n, sample) for k in range(min(n, sample))]

    def size(i):
        image = images.read_image(path(i))
        return sum(h * w for h, w in level_shapes(*image.size)) * len(image.getbands())

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return n * sum(pool.map(size, chosen)) // len(chosen)


def free_bytes(folder: Path) -> int:
    """The free bytes of the disk that `folder` is or would be on; 0 if it cannot be written."""
    there = next(one for one in (folder, *folder.parents) if one.exists())
    return shutil.disk_usage(there).free if os.access(there, os.W_OK) else 0


def complete(made: Cache, about: str) -> None:
    """Build what a cache lacks, after waiting for any other run that builds it; `about` is said in the log then.

    Raises InputError as Cache.build, or if the folder cannot be made.
    """
    try:
        made.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--cache {made.folder}: cannot be made or written: {error.strerror}") from None
    with lock.Lock(made.folder, "--cache", wait=True):
        missing = made.open()
        if not missing:
            logger.info(f"pictures from the cache {made.folder}")
            return
        there = f"{len(made.shards()) - len(missing)} of {len(made.shards())} parts are there"
        logger.info(f"building a cache{about} in {made.folder}; {there}")
        utils.remove_temporaries(made.folder)
        made.build(missing)


def pictures(choice: str, root: str, name: str, path, n: int, image_size: int):
    """The pictures of the n files `path(i)` under `root`: a Cache, built if need be, or images.Files.

    `choice` is --cache: "none", "auto" or a folder. Every rank calls it; rank 0 builds, and so does the first rank of
    any machine that does not see its folder. Raises InputError.
    """
    folder = distributed.on_rank0(prepare, choice, root, name, path, n, image_size)
    if folder is None:
        return images.Files(path, n)
    made = Cache(folder, path, n)
    missing = made.open()
    if missing and distributed.rank() and int(os.environ.get("LOCAL_RANK", 0)) == 0:
        complete(made, "")
    distributed.all_objects(None)
    if missing and made.open():
        raise InputError(f"{folder}: the cache is not complete on every machine: give --cache another folder, or none")
    return made


class Plan(NamedTuple):
    """Where the pictures of a split are kept: `folder`, or None and `why`. `whole`: the cache is there; if it is not,
    building it takes about `needed` bytes."""

    folder: Path | None
    why: str = ""
    whole: bool = False
    needed: int = 0


def plan(choice: str, root: str, name: str, path, n: int, image_size: int) -> Plan:
    """Choose a folder for the cache of n files; see `pictures`. Nothing is written. Raises InputError."""
    if choice == "none" or n == 0:
        return Plan(None, "--cache none")
    listing = hashlib.sha256(f"{SIDES}".encode())
    for i in range(n):
        listing.update(path(i).encode() + b"\n")
    key = f"{name}-{listing.hexdigest()[:16]}"
    if choice != "auto":
        candidates = [Path(choice).expanduser().absolute()]
    else:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        candidates = [Path(root) / "medslip_cache", home / "medslip"]
    for candidate in candidates:
        made = Cache(candidate / key, path, n)
        if (candidate / key).is_dir() and not made.open():
            return Plan(made.folder, whole=True)
    if choice == "auto" and image_size > min(SIDES) * 1.25:
        return Plan(None, f"views of {image_size} pixels are cut from the files themselves")
    needed = estimate(path, n)
    for candidate in candidates:
        begun = lock.in_use(candidate / key)  # another run found that it fits, and has used some of that room since
        if choice != "auto" or begun or needed <= FREE * free_bytes(candidate):
            return Plan(candidate / key, needed=needed)
    return Plan(None, f"about {needed / 1e9:.1f} GB would not fit; pictures come from the files themselves")


def prepare(choice: str, root: str, name: str, path, n: int, image_size: int) -> Path | None:
    """On rank 0: choose a folder and build the cache in it -> the folder, or None if there is to be no cache."""
    found = plan(choice, root, name, path, n, image_size)
    if found.whole:
        logger.info(f"{name}: pictures from the cache {found.folder}")
    elif found.folder is not None:
        about = f" of about {found.needed / 1e9:.1f} GB ({free_bytes(found.folder) / 1e9:.0f} GB free) for {name}"
        complete(Cache(found.folder, path, n), about)
    elif choice != "none" and n:
        logger.info(f"{name}: no cache: {found.why}")
    return found.folder
