"""Whether two source trees train, evaluate and probe to the same bits: for a change that should change no result.

python tests/programs/same_bits.py                          # the SHA-256 of what this tree's runs end with
python tests/programs/same_bits.py --tree FOLDER            # of another tree's
python tests/programs/same_bits.py --compare BEFORE AFTER   # both, and what differs
python tests/programs/same_bits.py --short                  # the small encoder's runs in one process alone

Each run is a process of its own, on the CPU with one thread, on the same small data. Trained are 20 steps of
resnet10t and 21 of medclip_vit: in one process, in two, and with --update-freq 2; then the first run's checkpoint is
evaluated and probed. Hashed are the weights, the optimiser's moments, log.txt without its times, retrieval.json, the
probe's features and predictions, and results.json without its `run`. With --compare AFTER also goes on with what
BEFORE left: a run and an extraction of features that SIGTERM ended half way, and a cache of pictures. Exit code 1 if
anything differs.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import options  # isort: skip  # noqa: F401  (before torch: it sets what OpenMP reads)
import numpy as np
import torch
from conftest import REPOSITORY, make_roco, picture
from PIL import Image

SMALL = "--arch resnet10t --image-size 64 --epochs 2 --lr 1e-3 --ssl-mlp-dim 64 --ssl-emb-dim 16"  # 10 steps an epoch
LARGE = "--arch medclip_vit --epochs 7 --lr 1e-4 --ssl-mlp-dim 64 --ssl-emb-dim 16"  # 3 steps an epoch
FIXED = "--text-model tiny --pretrained none --device cpu --amp off --print-freq 1"
FIRST = "resnet10t, 1 process"
TRAININGS = {  # name: the data, processes, arguments
    FIRST: ("small", 1, f"{SMALL} --batch-size 8 --workers 1 --cache none"),
    "resnet10t, 2 processes": ("small", 2, f"{SMALL} --batch-size 4 --workers 0 --cache none"),
    "resnet10t, --update-freq 2": ("small", 1, f"{SMALL} --batch-size 4 --update-freq 2 --workers 0 --cache CACHE"),
    "resnet10t, clip": ("small", 1, f"{SMALL} --batch-size 8 --objective clip --text-pooling padded --workers 0"),
    "resnet10t, simclr": ("small", 1, f"{SMALL} --batch-size 8 --objective simclr --clip-grad 1 --workers 0"),
    "medclip_vit, 1 process": ("large", 1, f"{LARGE} --batch-size 4 --workers 1 --cache none"),
    "medclip_vit, 2 processes": ("large", 2, f"{LARGE} --batch-size 2 --workers 0 --cache none"),
    "medclip_vit, --update-freq 2": ("large", 1, f"{LARGE} --batch-size 2 --update-freq 2 --workers 0 --cache none"),
}
PROBES = ("logistic", "sgd", "knn", "medslip", "zeroshot")
PROBE = "--dataset two --device cpu --amp off --workers 0 --print-freq 1"
TIMES = ("seconds", "samples_per_s")
HANG = 3600  # seconds


class Tree:
    """A source tree whose scripts are run on the data in `folder`, into `out`."""

    def __init__(self, tree: Path, folder: Path, out: Path):
        self.tree, self.folder, self.out = tree.resolve(), folder, out
        out.mkdir()

    def start(self, script: str, out: Path, words, rank: int = 0, world: int = 1) -> subprocess.Popen:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        words = [sys.executable, self.tree / script, *words, "--output-dir", out]
        if world > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            words += ["--dist-url", f"file://{out}.store"]
        with open(f"{out}.log", "ab") as log:
            return subprocess.Popen(
                [str(word) for word in words], env=environment, cwd=self.tree, stdout=log, stderr=log
            )

    def run(self, script: str, out: Path, words, world: int = 1) -> None:
        """To its end; what it printed is in `out`.log."""
        processes = [self.start(script, out, words, rank, world) for rank in range(world)]
        codes = [process.wait(HANG) for process in processes]
        if any(codes):
            sys.exit(f"{self.tree}/{script} {' '.join(map(str, words))}: exit codes {codes}\n{printed(out)[-3000:]}")

    def interrupt(self, script: str, out: Path, words, line: str) -> None:
        """SIGTERM as soon as it has printed `line`."""
        process, deadline = self.start(script, out, words), time.monotonic() + HANG
        while line not in printed(out) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        if process.wait(HANG) != 75:
            sys.exit(f"{self.tree}/{script}: exit code {process.returncode}, not 75\n{printed(out)[-3000:]}")

    def place(self, name: str) -> Path:
        """The output folder of a training."""
        return self.out / name.replace(",", "").replace(" ", "_")

    def words(self, name: str) -> tuple[list, int]:
        """-> the arguments of a training, and its number of processes."""
        data, world, words = TRAININGS[name]
        words = words.replace("CACHE", str(self.out / "cache"))
        return ["--root", self.folder / data, *FIXED.split(), *words.split()], world

    def probe_words(self, probe: str, checkpoint: Path) -> list:
        words = ["--catalog", self.folder / "catalog.json", *PROBE.split(), "--probe", probe]
        return [*words, "--pretrained", checkpoint, "--name", "x"]

    def found(self, names, probes) -> dict[str, str]:
        """Run everything -> {what: its SHA-256}."""
        hashes = {}
        for name in names:
            words, world = self.words(name)
            out = self.place(name)
            self.run("main.py", out, words, world)
            hashes |= {f"{name}: {what}": value for what, value in of_training(out).items()}
            show(hashes, name)
        checkpoint = self.place(FIRST) / "checkpoint.pt"
        words, _ = self.words(FIRST)
        self.run("main.py", self.out / "evaluated", [*words, "--resume", checkpoint, "--evaluate"])
        hashes["--evaluate: retrieval.json"] = self.of_json(self.out / "evaluated" / "retrieval.json")
        show(hashes, "--evaluate")
        for probe in probes:
            out = self.out / f"probe_{probe}"
            self.run("main_linear.py", out, self.probe_words(probe, checkpoint))
            hashes |= {f"probe {probe}: {what}": value for what, value in self.of_probe(out).items()}
            show(hashes, f"probe {probe}")
        return hashes

    def of_probe(self, out: Path) -> dict[str, str]:
        saved = torch.load(out / "features.pt", weights_only=True)
        features = {split: part["features"] for split, part in saved.items() if split != "classes"}
        return {
            "features": of_tensors(features),
            "predictions.csv": digest((out / "predictions.csv").read_bytes()),
            "results.json": self.of_json(out / "results.json"),
        }

    def of_json(self, path: Path) -> str:
        """Of a file of results without what tells of the run alone, and wherever the data and the output lie."""
        contents = {name: value for name, value in json.loads(path.read_text()).items() if name != "run"}
        text = json.dumps(contents)
        return digest(text.replace(str(self.out), "OUT").replace(str(self.folder), "DATA").encode())

    # What another tree of this one's line must be able to read

    def leave(self, probe: str) -> None:
        """A run and an extraction that end half way, and a cache."""
        words, _ = self.words(FIRST)
        words[words.index("none", words.index("--cache"))] = self.folder / "cache"
        self.interrupt("main.py", self.out / "half", words, "epoch 1 3/10")
        shutil.copytree(self.out / "half", self.folder / "half")
        self.run("main.py", self.out / "half", words)
        checkpoint = self.place(FIRST) / "checkpoint.pt"
        shutil.copy(checkpoint, self.folder / "checkpoint.pt")
        words = [*self.probe_words(probe, self.folder / "checkpoint.pt"), "--save-every", 1, "--batch-size", 2]
        self.interrupt("main_linear.py", self.out / "features", words, "features 3/")
        shutil.copytree(self.out / "features", self.folder / "features")
        self.run("main_linear.py", self.out / "features", words)

    def take_up(self, probe: str) -> None:
        """Go on with what another tree left, copied to `folder`."""
        words, _ = self.words(FIRST)
        words[words.index("none", words.index("--cache"))] = self.folder / "cache"
        shutil.copytree(self.folder / "half", self.out / "half")
        self.run("main.py", self.out / "half", words)
        words = [*self.probe_words(probe, self.folder / "checkpoint.pt"), "--save-every", 1, "--batch-size", 2]
        shutil.copytree(self.folder / "features", self.out / "features")
        self.run("main_linear.py", self.out / "features", words)


def make_data(folder: Path) -> None:
    """Two ROCO trees, and a labelled set of two classes."""
    make_roco(folder / "small", train=80, validation=8, absent=0)
    make_roco(folder / "large", train=12, validation=4, absent=0)
    for split, count in (("train", 12), ("val", 6)):
        for shift, name in ((0, "dark"), (90, "bright")):
            (folder / "two" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.asarray(picture(number + shift + 1000 * (split == "val"), colour=number % 4 == 0))
                image = Image.fromarray((pixels // 3 + shift).astype(np.uint8))
                image.save(folder / "two" / split / name / f"{number}.png")
    entry = {"path": "two", "type": "imagefolder", "train": "train", "test": "val"}
    (folder / "catalog.json").write_text(json.dumps({"two": entry}))


def digest(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()


def of_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """Names, types, shapes and every bit."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def of_training(out: Path) -> dict[str, str]:
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    moments = {
        f"{number} {name}": value for number, one in state["optimizer"]["state"].items() for name, value in one.items()
    }
    lines = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
    lines = [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
    return {
        f"weights after {state['step']} steps": of_tensors(state["model"]),
        "moments": of_tensors(moments),
        "log.txt": digest(json.dumps(lines).encode()),
    }


def printed(out: Path) -> str:
    path = Path(f"{out}.log")
    return path.read_text(errors="replace") if path.exists() else ""


def show(hashes: dict[str, str], name: str) -> None:
    for what, value in hashes.items():
        if what.startswith(f"{name}: "):
            print(f"{value}  {what}", flush=True)


def compare(before: Path, after: Path, folder: Path, names, probes) -> bool:
    """Print both trees' hashes and what differs -> whether nothing does."""
    trees, hashes = [], []
    for which, tree in (("before", before), ("after", after)):
        print(f"{which}: {tree}", flush=True)
        trees.append(Tree(tree, folder, folder / which))
        hashes.append(trees[-1].found(names, probes))
    old, new = trees
    different = [what for what, value in hashes[0].items() if hashes[1].get(what) != value]
    print(f"{len(hashes[0]) - len(different)} of {len(hashes[0])} are the same")
    for what in different:
        print(f"DIFFERS: {what}")
    old.leave("logistic")
    new.take_up("logistic")
    one, two = (of_training(tree.out / "half") for tree in trees)
    features = [tree.of_probe(tree.out / "features") for tree in trees]
    # Features of batches of two differ in the last bits from those of larger ones, so it is their own run they meet.
    checks = {
        "after goes on with before's checkpoint": "going on with " in printed(new.out / "half"),
        "and ends with the bits of before, which went on with it too": one == two,
        "and with those of a run that nothing disturbed":
            one.items() <= of_training(old.place(FIRST)).items(),
        "after takes before's cache": "pictures from the cache" in printed(new.out / "half")
            and "building a cache" not in printed(new.out / "half"),
        "after goes on with before's features": "batches of features in " in printed(new.out / "features"),
        "and ends with the bits of before, which went on with them too": features[0] == features[1],
    }  # fmt: skip
    for what, good in checks.items():
        print(f"{'yes' if good else 'NO'}: {what}")
    return not different and all(checks.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=REPOSITORY)
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("BEFORE", "AFTER"))
    parser.add_argument("--short", action="store_true")
    args = parser.parse_args()
    names = [FIRST, "resnet10t, --update-freq 2"] if args.short else list(TRAININGS)
    probes = PROBES[:1] if args.short else PROBES
    good = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        make_data(folder)
        print(f"python {sys.version.split()[0]}, torch {torch.__version__}", flush=True)
        if args.compare:
            good = compare(*args.compare, folder, names, probes)
            print("the same bits" if good else "NOT THE SAME BITS")
        else:
            Tree(args.tree, folder, folder / "runs").found(names, probes)
    sys.exit(not good)


if __name__ == "__main__":
    main()
