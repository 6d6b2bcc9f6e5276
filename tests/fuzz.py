"""Feed the readers thousands of broken files: each must be read or refused in one line, and nothing else may happen.

python tests/fuzz.py                    # 1,200 inputs of each kind, and the branch coverage of the readers
python tests/fuzz.py --count 20         # a quick look

Inputs are valid files with up to three edits: bytes flipped, cut, doubled or inserted; lines doubled, dropped or with
a field replaced by something hostile (a path that leads out, a giant, control characters, another encoding). Counted
are accepted inputs, clear errors (utils.InputError), and anything else: another exception, ten seconds without an
answer, a file written, a file opened outside of the data, a process started. Exit code 1 if there is any.
"""

import argparse
import io
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import forked  # isort: skip  (before torch)
import numpy as np
import torch
from conftest import REPOSITORY, picture
from PIL.PngImagePlugin import PngInfo

import checkpoints
import datasets
import models
import images
from tools.make_phantoms import make_phantoms
from utils import InputError

HOSTILE = (
    b"../../etc/passwd", b"/etc/passwd", b"..", b"\\\\host\\share", b"x" * 200_000, b"\0", b"\xff\xfe", b"\xef\xbb\xbf",
    "é".encode("latin-1"), "radiología".encode("utf-16"), b'"', b'"\n"', b"\r", b",", b",,,,", b"\t", b"NaN", b"-1",
    b"1e999", b"0", b"", b"{}", b"null", b"[" * 100_000, b"9" * 5000, b"%s%n", b"$(touch canary)", b"\x1b[2J",
)  # fmt: skip


def edit(contents: bytes, how: int, where: float, what: bytes) -> bytes:
    """One edit of a file; `how` picks it, `where` in [0, 1) the place, `what` is put there."""
    at = int(where * len(contents))
    lines = contents.split(b"\n")
    row = int(where * len(lines))
    how %= 9
    if how == 0:  # flip a bit
        return contents[:at] + bytes([contents[at] ^ 1 << at % 8]) + contents[at + 1 :] if contents else what
    if how == 1:
        return contents[:at]
    if how == 2:
        return contents[:at] + what + contents[at:]
    if how == 3:
        return contents[:at] + contents[at + 1 + len(what) % 64 :]
    if how == 4:
        return contents[:at] + contents[at : at + 64] + contents[at:]
    if how == 5:
        lines.insert(row, lines[row])
    elif how == 6:
        lines.pop(row)
    elif how == 7:  # a field
        mark = next((one for one in (b",", b"\t", b'"', b" ") if one in lines[row]), b" ")
        fields = lines[row].split(mark)
        fields[at % len(fields)] = what
        lines[row] = mark.join(fields)
    else:
        lines[row] += what
    return b"\n".join(lines)


def edits(rng: random.Random) -> list[tuple[int, float, bytes]]:
    return [(rng.randrange(9), rng.random(), rng.choice(HOSTILE)) for _ in range(rng.choice((1, 1, 1, 2, 3)))]


class Runs:
    """An object whose pickle would run a command."""

    def __reduce__(self):
        return (os.system, ("touch canary",))


class Kinds:
    """For each kind of input a method that makes one under `root`, calls `ready`, and reads it."""

    def __init__(self, root: Path, ready=lambda: None):
        self.root, self.ready = root, ready
        self.roco = forked.make_data(root, 12, 4)
        for split in ("train", "validation"):
            folder = self.roco / split / "radiology"
            names = [path.stem for path in sorted((folder / "images").iterdir())]
            (folder / "licences.txt").write_text("".join(f"{n},PMC{i}_{n}.jpg,CC BY\n" for i, n in enumerate(names)))
        images = self.roco / "train" / "radiology" / "images"
        images.rename(root / "images_elsewhere")
        images.symlink_to(root / "images_elsewhere")  # a folder that is a link is normal on a cluster
        make_phantoms(root / "phantoms", seed=0, pairs=1, validation_pairs=1, calc=(9, 6), mass=(9, 6), workers=1)
        self.cbis = root / "phantoms" / "cbis"
        self.catalog = root / "catalog.json"
        self.catalog.write_bytes((REPOSITORY / "dataset_catalog.json").read_bytes())
        torch.manual_seed(0)
        self.model = models.create_model("test_vit", "simclr", ssl_mlp_dim=8, ssl_emb_dim=8, image_size=32)
        self.state = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.originals = {}

    def __call__(self, kind: str, rng: random.Random, changes) -> None:
        getattr(self, kind)(rng, changes)

    def changed(self, path: Path, changes) -> None:
        """Write `path` with the edits made to what it held at first."""
        contents = self.originals.setdefault(path, path.read_bytes())
        for change in changes:
            contents = edit(contents, *change)
        path.write_bytes(contents)
        self.ready()

    def restore(self) -> None:
        for path, contents in self.originals.items():
            path.write_bytes(contents)

    def inside(self, paths, folder: Path) -> None:
        for path in paths:
            assert os.path.abspath(path).startswith(f"{folder}{os.sep}"), f"{path} is outside of {folder}"

    def pairs(self, name: str, rng, changes) -> None:
        self.changed(self.roco / "train" / "radiology" / name, changes)
        subset = rng.choice(("all", "mammo", "mammo+xray")) if name == "keywords.txt" else "all"
        table = datasets.roco_table(self.roco, "train", subset=subset)
        self.inside(table["path"], self.roco)

    def captions(self, rng, changes) -> None:
        self.pairs("captions.txt", rng, changes)

    def keywords(self, rng, changes) -> None:
        self.pairs("keywords.txt", rng, changes)

    def licences(self, rng, changes) -> None:
        self.pairs("licences.txt", rng, changes)

    def case_csv(self, rng, changes) -> None:
        short, split = rng.choice(("calc", "mass")), rng.choice(("train", "test"))
        self.changed(self.cbis / "csv" / f"{short}_case_description_{split}_set.csv", changes)
        self.crops({"calc": "calcification", "mass": "mass"}[short], split, rng)

    def dicom_info(self, rng, changes) -> None:
        self.changed(self.cbis / "csv" / "dicom_info.csv", changes)
        self.crops(rng.choice(("calcification", "mass")), rng.choice(("train", "test")), rng)

    def crops(self, abnormality: str, split: str, rng) -> None:
        table = datasets.cbis_table(self.cbis, abnormality, split, rng.choice(("crop", "full")))
        self.inside(table["path"], self.cbis)
        assert table["id"].is_unique

    def catalog_json(self, rng, changes) -> None:
        self.changed(self.catalog, changes)
        datasets.find_entry(str(self.catalog), rng.choice(("roco", "cbis_calc", "imagenet", "cifar10")))

    def filelist(self, rng, changes) -> None:
        folder = self.root / "list"
        if not folder.exists():
            folder.mkdir()
            for split, count in (("train", 6), ("test", 4)):
                np.save(folder / f"{split}_images.npy", np.array([f"{split}/{i}.png" for i in range(count)]))
                np.save(folder / f"{split}_labels.npy", np.arange(count) % 2)
                np.save(folder / f"{split}_patients.npy", np.array([f"p{i}" for i in range(count)]))
        self.changed(
            folder / f"{rng.choice(('train', 'test'))}_{rng.choice(('images', 'labels', 'patients'))}.npy", changes
        )
        entry = {"name": "list", "type": "filelist", "path": str(folder), "train": "train", "test": "test"}
        data = datasets.labelled_set(entry, rng.choice(("train", "test")))
        assert not any(".." in Path(path).parts for path in data.images)

    def image(self, suffix: str, rng, changes, **how) -> None:
        path = self.root / f"image.{suffix}"
        picture(rng.randrange(8), colour=rng.random() < 0.3).save(path, **how)
        self.originals.pop(path, None)
        if suffix == "png" and rng.random() < 0.05:  # a bomb: the header promises 60,000 x 60,000 pixels
            contents = bytearray(path.read_bytes())
            contents[16:24] = (60_000).to_bytes(4, "big") * 2
            path.write_bytes(contents)
        self.changed(path, changes)
        images.unreadable([str(path)])
        assert images.read_image(str(path)).mode in ("L", "RGB")

    def jpeg(self, rng, changes) -> None:
        self.image("jpg", rng, changes, quality=90)

    def png(self, rng, changes) -> None:
        notes = PngInfo()  # a file that is whole but for what its chunks of text say
        notes.add_text("Comment", rng.choice(HOSTILE).decode("latin-1"), zip=rng.random() < 0.5)
        self.image("png", rng, changes if rng.random() < 0.7 else (), pnginfo=notes)

    def altered(self, rng) -> dict:
        """Contents for a checkpoint: the model's own weights, often with something wrong."""
        state = dict(self.state)
        key = rng.choice(list(state))
        wrong = rng.choice(("", "", "", "half", "drop", "nan", "shape", "extra", "type", "code", "prefix", "name"))
        if wrong == "half":
            state[key] = state[key].half()
        elif wrong == "drop":
            del state[key]
        elif wrong == "nan" and state[key].is_floating_point():
            state[key] = torch.full_like(state[key], float("nan"))
        elif wrong == "shape":
            state[key] = torch.zeros(3, 3, 3)
        elif wrong == "extra":
            state["image_encoder.extra"] = torch.zeros(2)
        elif wrong == "type":
            state[key] = rng.choice((None, "text", 3, [1], {}))
        elif wrong == "code":
            state[key] = Runs()
        elif wrong == "prefix":
            state = {f"module.{name}": value for name, value in state.items()}
        elif wrong == "name":
            state = {rng.choice(("../", "/", "x" * 9999, "\0")) + name: value for name, value in state.items()}
        wrapper = rng.choice(("model", "state_dict", None, "nothing"))
        return state if wrapper is None else {wrapper: state, "args": rng.choice(({}, {"arch": "test_vit"}, 3))}

    def load(self, path: Path) -> None:
        checkpoints.load_weights(self.model, checkpoints.read(path), path, "test_vit")
        assert all(value.isfinite().all() for value in self.model.state_dict().values())

    def checkpoint(self, rng, changes) -> None:
        path = self.root / "checkpoint.pt"
        contents = self.altered(rng)
        if rng.random() < 0.05:
            path.write_bytes(pickle.dumps(contents, protocol=rng.choice((0, 2, 4))))
        else:
            torch.save(contents, path, _use_new_zipfile_serialization=rng.random() < 0.7)
        self.originals.pop(path, None)
        self.changed(path, changes if rng.random() < 0.5 else ())
        self.load(path)

    def zip(self, rng, changes) -> None:
        path, weights = self.root / "weights.zip", io.BytesIO()
        torch.save(self.altered(rng), weights)
        name = rng.choice(("", "folder/", "../", "/", "a/../../")) + checkpoints.WEIGHTS
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w", rng.choice((0, 8))) as archive:
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(rng.choice((1, 1, 1, 2))):
                archive.writestr(name, weights.getvalue())
            archive.writestr(rng.choice(("config.json", "../escaped.txt", "/tmp/escaped.txt")), "{}")
            if rng.random() < 0.02:
                archive.writestr("bomb", bytes(1 << 28), zipfile.ZIP_DEFLATED)
        self.originals.pop(path, None)
        self.changed(path, changes if rng.random() < 0.5 else ())
        self.load(path)


KINDS = "captions keywords licences case_csv dicom_info catalog_json filelist jpeg png checkpoint zip".split()


class Watch:
    """Notes what a reader must not do: processes, and files opened for writing or outside of the data and Python."""

    def __init__(self, root: Path):
        self.allowed = tuple({str(root), os.path.realpath(root), sys.prefix, sys.base_prefix, str(REPOSITORY)})
        self.on, self.seen = False, []
        sys.addaudithook(self.hook)

    def start(self) -> None:
        self.on = True

    def hook(self, event, details) -> None:
        if not self.on:
            return
        if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect"):
            self.seen.append(f"{event} {details}")
        elif event == "open" and isinstance(details[0], str):
            path, mode = os.path.abspath(details[0]), details[1]
            writes = isinstance(mode, str) and any(one in mode for one in "wax+")
            if writes or not (path.startswith(self.allowed) or path.startswith(("/proc/", "/sys/", "/usr/", "/dev/"))):
                self.seen.append(f"open {path} {mode}")


def listing(root: Path) -> set:
    return {str(path) for path in root.rglob("*")}


def too_slow(number, frame):
    raise TimeoutError("ten seconds without an answer")


def outcome(kinds: Kinds, watch: Watch, kind: str, rng: random.Random, changes) -> str:
    """Make and read one input -> "accepted", "clear error", or what else happened."""
    signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(10)
    try:
        kinds(kind, rng, changes)
        found = "accepted"
    except InputError as error:
        text = str(error)
        found = "clear error" if text and "\n" not in text and len(text) < 3000 else f"no clear line: {text[:200]!r}"
    except Exception as error:
        found = f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
        watch.on = False
    if watch.seen:
        found = f"did {watch.seen[:3]}"
        watch.seen.clear()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1200, help="inputs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.inner:  # under coverage, whose report comes last
        with tempfile.TemporaryDirectory() as folder:
            data, readers = (
                f"--data-file={folder}/coverage",
                "packed.py,roco.py,cbis.py,datasets.py,checkpoints.py,images.py",
            )
            words = [sys.executable, "-m", "coverage", "run", "--branch", data, f"--include={readers}", __file__]
            words += ["--inner", f"--count={args.count}", f"--seed={args.seed}"]
            code = subprocess.run(words, cwd=REPOSITORY).returncode
            subprocess.run([sys.executable, "-m", "coverage", "report", data], cwd=REPOSITORY)
        sys.exit(code)
    import logging

    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "data"
        root.mkdir()
        os.chdir(root)  # where a canary would appear
        watch = Watch(root)
        kinds = Kinds(root, watch.start)
        totals, started = {"accepted": 0, "clear error": 0, "anything else": 0}, time.monotonic()
        for kind in KINDS:
            counts = dict.fromkeys(totals, 0)
            for number in range(args.count):
                rng = random.Random(f"{args.seed} {kind} {number}")
                found = outcome(kinds, watch, kind, rng, edits(rng))
                if found not in counts:
                    print(f"{kind} {number}: {found}", flush=True)
                    found = "anything else"
                counts[found] += 1
                kinds.restore()
            totals = {name: total + counts[name] for name, total in totals.items()}
            print(f"{kind:13s} " + "  ".join(f"{count:6,d} {name}" for name, count in counts.items()), flush=True)
        strangers = [path for path in (*listing(root), *listing(root.parent)) if "canary" in path or "escaped" in path]
        strangers += [path for path in ("/tmp/escaped.txt", "/tmp/canary") if os.path.exists(path)]
        totals["anything else"] += len(strangers)
        print(f"{'all':13s} " + "  ".join(f"{count:6,d} {name}" for name, count in totals.items()))
        print(f"files that appeared: {strangers or 'none'}; {time.monotonic() - started:.0f} s")
        os.chdir(REPOSITORY)
        shutil.rmtree(root)
    sys.exit(totals["anything else"] > 0)


if __name__ == "__main__":
    main()
