"""A million samples in tar shards: the index, the first batch, memory, and reading in any order.

python benchmarks/shards.py                              # 2 GB in a temporary folder, and as much for the files
python benchmarks/shards.py --samples 2000 --shards 4 --files 500 --pictures 40 --repeats 1 --no-record

A sample is a JPEG of 24 x 24 pixels and a caption. Baselines: the same images as separate files, in the same order;
and the webdataset library, which reads shard after shard. Everything is in the page cache, so that what is compared is
the work; a disk adds its own. At last views are cut from pictures of 0.7 megapixels, as input.py's, in shards, in files
and from the cache.
"""

import argparse
import io
import multiprocessing
import os
import resource
import shutil
import sys
import tarfile
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common
import numpy as np
import torch
import webdataset
from input import make_files
from PIL import Image
from scale import memory

import datasets
from data import cache, images, locations, shard_index, views
from data.batches import EpochBatches, open_loader
from data.tokens import Tokens, from_json, train_bpe
from data.shards import KEYS

BATCH = 64


def member(name: str, contents: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(contents)
    return info.tobuf(tarfile.USTAR_FORMAT) + contents + bytes(-len(contents) % 512)


def write_shard(path: Path, rows: range, pool: list[bytes]) -> None:
    with open(path, "wb") as file:
        for i in rows:
            caption = f"axial ct image of the chest showing a mass in the left lobe, number {i}".encode()
            file.write(member(f"{i:09d}.jpg", pool[i % len(pool)]) + member(f"{i:09d}.txt", caption))
        file.write(bytes(1024))


def tiny_images(count: int = 256) -> list[bytes]:
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        contents = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)).resize((24, 24)).save(
            contents, "jpeg", quality=50
        )
        found.append(contents.getvalue())
    assert max(map(len, found)) <= 512
    return found


def fresh(function, *words):
    """What a function returns in a new process, forked from this one: its memory is its own."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=lambda: writer.send(function(*words)))
    process.start()
    found = reader.recv()
    process.join()
    return found


def load(entry: dict) -> tuple[float, float, float]:
    """Seconds to load the pairs from the kept index; MiB that they hold, and that it took at the peak."""
    before, started = memory()["VmRSS"], time.perf_counter()
    pairs = datasets.paired_set(entry, "train")
    seconds = time.perf_counter() - started
    assert len(pairs) == entry_samples
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return seconds, memory()["VmRSS"] - before, peak - before


def first_batch(entry: dict) -> tuple[float, float]:
    """Seconds from nothing but the kept index to the first batch of views, without and with the look at every image."""
    started = time.perf_counter()
    pairs = datasets.paired_set(entry, "train")
    looking = time.perf_counter()
    assert not images.broken_files(pairs.paths(), skip=False)
    looked = time.perf_counter() - looking
    tokens = Tokens(from_json(train_bpe(["axial ct image of the chest"], 300)), pairs.captions, 77)
    data = views.TrainViews(images.Files(pairs.path, len(pairs)), tokens, "slip", 64, 0)
    with open_loader(data, EpochBatches(len(pairs), BATCH, 1, 0, 1, 0), 1, torch.device("cpu")) as loader:
        next(iter(loader))
    seconds = time.perf_counter() - started
    return seconds - looked, seconds


def indexing(say, shards: list[Path], repeats: int) -> None:
    keys = {key: key for key in KEYS}

    def build(processes):
        shutil.rmtree(shards[0].parent / "medslip_cache", ignore_errors=True)
        shard_index.open_all(shards, keys, processes)

    seconds = common.in_turn({number: lambda number=number: build(number) for number in (1, 2)}, repeats, warmup=0)
    size = sum(path.stat().st_size for path in (shards[0].parent / "medslip_cache" / "index").iterdir()) / 1e6
    for number, values in seconds.items():
        say(f"  index made by {number} process{'es' * (number > 1):2s}   {common.spread(values, 1)} s")
    say(f"  its files                   {size:.0f} MB")


def reading(say, pairs, files: list[str], shards: str, repeats: int) -> None:
    """Images a second: every side reads the same number of them."""
    order = np.random.default_rng(0).permutation(len(files)).tolist()
    places = [pairs.path(i) for i in order]
    paths = [files[i] for i in order]

    def library(decode):
        rows = webdataset.WebDataset(shards, shardshuffle=False)
        for row in (rows.decode("pill") if decode else rows).slice(len(files)):
            row["jpg"]

    sides = {
        "bytes: shards, any order": lambda: [locations.read(one) for one in places],
        "bytes: files, any order": lambda: [locations.read(one) for one in paths],
        "bytes: the library, in a row": lambda: library(False),
        "decoded: shards, any order": lambda: [images.read_image(one) for one in places],
        "decoded: files, any order": lambda: [images.read_image(one) for one in paths],
        "decoded: the library, in a row": lambda: library(True),
    }
    seconds = common.in_turn(sides, repeats)
    say(f"{len(files):,} images, one process, {repeats} repeats in turn")
    for name, values in seconds.items():
        base = seconds[f"{name.split(':')[0]}: files, any order"]
        each = common.spread([len(files) / value / 1e3 for value in values], 1)
        say(f"  {name:31s} {each} thousand a second; {common.spread(common.ratios(base, values))} of the files' rate")


def pictures(say, folder: Path, count: int, repeats: int) -> None:
    """Training views of real sizes."""
    paths = make_files(folder, None, count, 0.05)
    with open(folder / "s.tar", "wb") as file:
        for i, path in enumerate(paths):
            file.write(member(f"{i:09d}.jpg", Path(path).read_bytes()) + member(f"{i:09d}.txt", b"text"))
    entry = {"type": "webdataset", "name": "big", "path": str(folder), "window": "", "train": "s.tar"}
    pairs = datasets.paired_set(entry, "train")
    kept = cache.Cache(folder / "cache", pairs.path, count)
    kept.folder.mkdir()
    kept.build(kept.open())
    assert not kept.open()
    keys = [(1, i) for i in range(count)]
    sources = {
        "shards": images.Files(pairs.path, count),
        "files": images.Files(paths.__getitem__, count),
        "cache": kept,
    }
    data = {name: views.TrainViews(source, None, "slip", 224, 0) for name, source in sources.items()}
    seconds = common.in_turn({name: lambda one=one: one.__getitems__(keys) for name, one in data.items()}, repeats)
    say(f"three views of {count} pictures of 0.7 megapixels, one process, {repeats} repeats in turn")
    for name, values in seconds.items():
        against = common.spread(common.ratios(seconds["files"], values))
        say(f"  from {name:8s} {common.spread([1e3 * one / count for one in values])} ms; {against} of the files' rate")


def main() -> None:
    global entry_samples
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument(
        "--files", type=int, default=50_000, help="images that are read in any order, and are files too"
    )
    parser.add_argument("--pictures", type=int, default=100, help="of 0.7 megapixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-record", action="store_true", help="only print")
    args = parser.parse_args()
    torch.set_num_threads(1)
    entry_samples = args.samples
    say = common.Record("shards", "webdataset", "numpy", "pillow")
    say(f"load of the machine (1, 5, 15 minutes): {', '.join(f'{one:.1f}' for one in os.getloadavg())}")
    with tempfile.TemporaryDirectory() as temporary:
        folder, pool = Path(temporary), tiny_images()
        (folder / "train").mkdir()
        edges = np.linspace(0, args.samples, args.shards + 1).astype(int).tolist()
        shards = [folder / "train" / f"shard-{number:06d}.tar" for number in range(args.shards)]
        for number, path in enumerate(shards):
            write_shard(path, range(*edges[number : number + 2]), pool)
        size = sum(path.stat().st_size for path in shards) / 1e9
        say(f"{args.samples:,} samples in {args.shards} shards, {size:.2f} GB; {args.repeats} repeats in turn")
        indexing(say, shards, args.repeats)
        source = f"shard-{{000000..{args.shards - 1:06d}}}.tar"
        entry = {"type": "webdataset", "name": "many", "path": temporary, "window": "", "train": f"train/{source}"}
        loads = [fresh(load, entry) for _ in range(args.repeats)]
        batches = [fresh(first_batch, entry) for _ in range(args.repeats)]
        for name, values, unit, digits in (
            ("index loaded in", [one[0] for one in loads], "s", 2),
            ("the pairs hold", [one[1] for one in loads], "MiB", 0),
            ("and take at the peak", [one[2] for one in loads], "MiB", 0),
            ("first batch of views after", [one[0] for one in batches], "s", 2),
            ("with a look at each image", [one[1] for one in batches], "s", 1),
        ):
            say(f"  {name:27s} {common.spread(values, digits)} {unit}")
        pairs = datasets.paired_set(entry, "train")
        (folder / "files").mkdir()
        files = [str(folder / "files" / f"{i:09d}.jpg") for i in range(min(args.files, args.samples))]
        for i, path in enumerate(files):
            Path(path).write_bytes(pool[i % len(pool)])
        assert all(locations.read(pairs.path(i)) == locations.read(path) for i, path in enumerate(files[:500]))
        reading(say, pairs, files, f"{folder}/train/{source}", args.repeats)
        (folder / "big").mkdir()
        pictures(say, folder / "big", args.pictures, args.repeats)
    say(f"load of the machine at the end: {', '.join(f'{one:.1f}' for one in os.getloadavg())}")
    if not args.no_record:
        say.save()


if __name__ == "__main__":
    main()
