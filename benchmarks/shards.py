"""A million samples in tar shards: the index, the first batch, memory, and reading in any order.

python benchmarks/shards.py                              # 2 GB in a temporary folder
python benchmarks/shards.py --samples 2000 --shards 4 --files 500 --pictures 20 --repeats 1 --no-record

A sample is a JPEG of 24 x 24 pixels and a caption. Baselines: the same images as separate files, in the same order;
and the webdataset library, which reads shard after shard. Everything is in the page cache, so that what is compared is
the work; a disk adds its own. What counts is CPU time, of worker processes too, so that other work on the machine
matters less; wall time is given where it says so. At last views are cut from pictures of 0.7 megapixels, as input.py's,
in shards, in files and from the cache.
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
    """Samples of four blocks, two headers and two contents; those of one sample, with other numbers in them."""
    caption = b"axial ct image of the chest showing a mass in the left lobe, number 000000000"
    first = [member("000000000.jpg", image) + member("000000000.txt", caption) for image in pool]
    samples = np.stack([np.frombuffer(one, np.uint8) for one in first]).reshape(-1, 4, 512)
    samples = samples[np.array(rows) % len(pool)]
    digits = (np.array(rows)[:, None] // 10 ** np.arange(8, -1, -1) % 10 + ord("0")).astype(np.uint8)
    samples[:, ::2, :9] = digits[:, None]
    samples[:, 3, len(caption) - 9 : len(caption)] = digits
    samples[:, ::2, 148:156] = ord(" ")
    sums = samples[:, ::2].sum(axis=-1)
    samples[:, ::2, 148:154] = sums[..., None] // 8 ** np.arange(5, -1, -1) % 8 + ord("0")
    samples[:, ::2, 154] = 0
    path.write_bytes(samples.tobytes() + bytes(1024))


def cpu() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def cpu_in_turn(sides: dict, repeats: int) -> dict[str, list[float]]:
    """As common.in_turn, in CPU seconds."""
    seconds = {name: [] for name in sides}
    for number in range(repeats + 1):
        for name, function in sides.items():
            started = cpu()
            function()
            if number:
                seconds[name].append(cpu() - started)
    return seconds


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


def load(entry: dict, count: int) -> tuple[float, float, float]:
    """CPU seconds to load the pairs from the kept index; MiB that they hold, and that it took at the peak."""
    before, started = memory()["VmRSS"], cpu()
    pairs = datasets.paired_set(entry, "train")
    seconds = cpu() - started
    assert len(pairs) == count
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return seconds, memory()["VmRSS"] - before, peak - before


def first_batch(entry: dict) -> tuple[float, float]:
    """Seconds from nothing but the kept index to the first batch of views: CPU, wall."""
    started, begun = cpu(), time.perf_counter()
    pairs = datasets.paired_set(entry, "train")
    tokens = Tokens(from_json(train_bpe(["axial ct image of the chest"], 300)), pairs.captions, 77)
    data = views.TrainViews(images.Files(pairs.path, len(pairs)), tokens, "slip", 64, 0)
    with open_loader(data, EpochBatches(len(pairs), BATCH, 1, 0, 1, 0), 1, torch.device("cpu")) as loader:
        next(iter(loader))
        wall = time.perf_counter() - begun
    return cpu() - started, wall


def look(entry: dict) -> tuple[float, float]:
    """Seconds for the look at the start and end of every image: CPU, wall."""
    pairs = datasets.paired_set(entry, "train")
    started, begun = cpu(), time.perf_counter()
    assert not images.broken_files(pairs.paths(), skip=False)
    return cpu() - started, time.perf_counter() - begun


def indexing(say, shards: list[Path], repeats: int) -> None:
    kept = shards[0].parent / "medslip_cache"

    def build(some, processes):
        shutil.rmtree(kept, ignore_errors=True)
        started = time.perf_counter()
        shard_index.open_all(some, {key: key for key in KEYS}, processes)
        return time.perf_counter() - started

    few, walls = shards[: max(2, len(shards) // 10)], {1: [], 2: []}
    sides = {number: lambda number=number: walls[number].append(build(few, number)) for number in walls}
    for number, values in cpu_in_turn(sides, repeats).items():
        times = f"{common.spread(values, 1)} s; wall time {common.spread(walls[number][1:], 1)} s"
        say(f"  {len(few)} of the shards indexed by {number} process{'es' * (number > 1):2s}   {times}")
    started, wall = cpu(), build(shards, 2)
    say(f"  all, by 2 processes, once   {cpu() - started:.1f} s; wall time {wall:.1f} s")
    say(f"  the index's files           {sum(path.stat().st_size for path in kept.rglob('*.index')) / 1e6:.0f} MB")


def reading(say, pairs, files: list[str], shards: str, repeats: int) -> None:
    """Images a second of CPU time: all of the files as bytes, a tenth of them decoded."""
    order = np.random.default_rng(0).permutation(len(files)).tolist()
    places, paths = [pairs.path(i) for i in order], [files[i] for i in order]

    def library(count, decode):
        rows = webdataset.WebDataset(shards, shardshuffle=False)
        for row in (rows.decode("pill") if decode else rows).slice(count):
            row["jpg"]

    for what, count, read in (
        ("bytes", len(files), locations.read),
        ("decoded", len(files) // 10, images.read_image),
    ):
        sides = {
            "shards, any order": lambda n=count, read=read: [read(one) for one in places[:n]],
            "files, any order": lambda n=count, read=read: [read(one) for one in paths[:n]],
            "the library, in a row": lambda n=count, what=what: library(n, what == "decoded"),
        }
        seconds = cpu_in_turn(sides, repeats)
        say(f"{count:,} images, {what}, one process, {repeats} repeats in turn")
        for name, values in seconds.items():
            each = common.spread([count / value / 1e3 for value in values], 1)
            against = common.spread(common.ratios(seconds["files, any order"], values))
            say(f"  {name:23s} {each} thousand a second; {against} of the files' rate")


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
    seconds = cpu_in_turn({name: lambda one=one: one.__getitems__(keys) for name, one in data.items()}, repeats)
    say(f"three views of {count} pictures of 0.7 megapixels, one process, {repeats} repeats in turn")
    for name, values in seconds.items():
        against = common.spread(common.ratios(seconds["files"], values))
        say(f"  from {name:8s} {common.spread([1e3 * one / count for one in values])} ms; {against} of the files' rate")


def main() -> None:
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
        loads = [fresh(load, entry, args.samples) for _ in range(args.repeats)]
        batches = [fresh(first_batch, entry) for _ in range(args.repeats)]
        for name, values, unit, digits in (
            ("the pairs loaded from it", [one[0] for one in loads], "s", 2),
            ("they hold", [one[1] for one in loads], "MiB", 0),
            ("and take at the peak", [one[2] for one in loads], "MiB", 0),
            ("first batch of views after", [one[0] for one in batches], "s", 2),
            ("the same, wall time", [one[1] for one in batches], "s", 2),
        ):
            say(f"  {name:27s} {common.spread(values, digits)} {unit}")
        seconds, wall = fresh(look, entry)
        say(f"  a look at each image, once  {seconds:.1f} s; wall time {wall:.1f} s")
        pairs = datasets.paired_set(entry, "train")
        (folder / "files").mkdir()
        files = [str(folder / "files" / f"{i:09d}.jpg") for i in range(min(args.files, args.samples))]
        for i, path in enumerate(files):
            Path(path).write_bytes(pool[i % len(pool)])
        assert all(locations.read(pairs.path(i)) == locations.read(path) for i, path in enumerate(files[:500]))
        reading(say, pairs, files, f"{folder}/train/{source}", args.repeats)
        if args.pictures:
            (folder / "big").mkdir()
            pictures(say, folder / "big", args.pictures, args.repeats)
    say(f"load of the machine at the end: {', '.join(f'{one:.1f}' for one in os.getloadavg())}")
    if not args.no_record:
        say.save()


if __name__ == "__main__":
    main()
