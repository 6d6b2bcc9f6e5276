"""Index made-up captions as ROCO's text on the disk, load batches, and watch memory: 15 million by default.

python benchmarks/scale.py                       # 2 GB of text in a temporary folder
python benchmarks/scale.py --captions 300000

Image paths cycle over 1,000 small JPEGs. Baseline, at 300,000 captions: a list of (path, caption) tuples in the data
set, as SLIP keeps its annotations.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common
import numpy as np
import torch
from PIL import Image

from data import images
from data import buffers
from data.tokens import Tokens, from_json, train_bpe
from data import views
from data.batches import EpochBatches, open_loader

WORDS = "axial ct image of the chest showing a large mass in the left lobe with arrow and contrast enhancement".split()


def write_captions(path: Path, count: int) -> None:
    """`<id> TAB <caption>` lines of 60 to 150 characters."""
    rng = np.random.default_rng(0)
    tails = [" ".join(rng.choice(WORDS, rng.integers(8, 24))) for _ in range(1000)]
    with open(path, "w") as file:
        for start in range(0, count, 100_000):
            file.writelines(
                f"ROCO_{i:08d}\t {tails[i % 1000]} {i}\n" for i in range(start, min(count, start + 100_000))
            )


def memory(pid="self") -> dict[str, float]:
    """MiB: resident, its peak, and the share that is this process's own (shared pages split among their users)."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in status if line.startswith(("VmRSS", "VmHWM"))}
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return found | {"Pss": next(int(line.split()[1]) / 1024 for line in rollup if line.startswith("Pss:"))}


class ListOfTuples(torch.utils.data.Dataset):
    """SLIP's way: Python objects for every sample, touched by every worker."""

    def __init__(self, files, ids, captions):
        self.samples = [(files[i % len(files)] + ids[i][:0], captions[i]) for i in range(len(ids))]

    def __getitems__(self, keys):
        for _, i in keys:
            path, caption = self.samples[i]
            len(path), len(caption)
        return keys


class Touch(ListOfTuples):
    """The same look at our index."""

    def __init__(self, files, ids, captions):
        self.files, self.ids, self.captions = files, ids, captions

    def __getitems__(self, keys):
        for _, i in keys:
            len(self.files[i % len(self.files)]), len(self.captions[i])
        return keys


def growth(data, total: int) -> tuple[float, float]:
    """MiB of its own that a worker has after an epoch of looking at every sample, and that it had at first."""
    batches = EpochBatches(total, 1000, 1, 0, 1, 0)
    with open_loader(data, batches, 1, torch.device("cpu")) as loader:
        iterator = iter(loader)
        next(iterator)
        pid = loader._iterator._workers[0].pid if loader._iterator else iterator._workers[0].pid
        first = private(pid)
        for _ in iterator:
            last = private(pid)
    return last, first


def private(pid: int) -> float:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in rollup if line.startswith(("Private_Dirty", "Private_Clean"))) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=15_000_000)
    parser.add_argument("--batches", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    say = common.Record("scale", "tokenizers")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rng = np.random.default_rng(0)
        files = [str(folder / f"{i}.jpg") for i in range(1000)]
        for path in files:
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).resize((256, 256)).save(path)

        small = min(args.captions, 300_000)
        write_captions(folder / "small.txt", small)
        ids, captions = buffers.read_lines(folder / "small.txt")
        say(f"{small:,} captions, one worker that looks at every sample: its own memory at first and at the end, MiB")
        for name, kind in (("list of tuples", ListOfTuples), ("byte buffers", Touch)):
            before = memory()["VmRSS"]
            data = kind(files, ids, captions)
            held = memory()["VmRSS"] - before
            last, first = growth(data, small)
            say(f"  {name:15s} {first:6.0f} {last:6.0f}   (main process holds {held:.0f} more)")
            del data

        write_captions(folder / "captions.txt", args.captions)
        base = memory()["VmRSS"]
        started = time.perf_counter()
        ids, captions = buffers.read_lines(folder / "captions.txt")
        indexed = time.perf_counter() - started
        tokenizer = from_json(train_bpe(captions))
        tokens = Tokens(tokenizer, captions, 77)
        pictures = images.Files(lambda i: files[i % 1000], args.captions)
        data = views.TrainViews(pictures, tokens, "slip", 64, 0)
        batches = EpochBatches(args.captions, 16, 1, 0, 1, 0)
        prepared = time.perf_counter() - started
        with open_loader(data, batches, args.workers, torch.device("cpu")) as loader:
            iterator = iter(loader)
            next(iterator)
            first = time.perf_counter() - started
            pids = [worker.pid for worker in loader._iterator._workers]
            marks = {}
            for number in range(2, args.batches + 1):
                next(iterator)
                if number in (min(100, args.batches), args.batches):
                    marks[number] = [private(pid) for pid in pids], [memory(pid)["Pss"] for pid in pids]
            main_memory = memory()
            total = main_memory["Pss"] + sum(memory(pid)["Pss"] for pid in pids)
        say(f"{args.captions:,} captions, {(folder / 'captions.txt').stat().st_size / 1e9:.2f} GB of text")
        say(f"  indexed in {indexed:.1f} s; tokenizer trained at {prepared:.1f} s; first batch at {first:.1f} s")
        say(f"  main: {base:.0f} MiB before, {main_memory['VmRSS']:.0f} now, {main_memory['VmHWM']:.0f} at the peak")
        for number, (own, shares) in marks.items():
            listed = ", ".join(f"{one:.0f} ({other:.0f})" for one, other in zip(own, shares, strict=True))
            say(
                f"  workers after {number} batches: their own memory (with their share of what is shared): {listed} MiB"
            )
        say(f"  main and workers together, shared pages once: {total:.0f} MiB")
    say.save()


if __name__ == "__main__":
    main()
