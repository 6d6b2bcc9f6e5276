"""Feed the readers thousands of broken files: each must be read or refused in one line, and nothing else may happen.

python tests/programs/fuzz.py                    # 1,200 inputs of each kind, and the branch coverage of the readers
python tests/programs/fuzz.py --count 20         # a quick look
python tests/programs/fuzz.py --count 7200 --jobs 2      # over 100,000, by two processes

Inputs are valid files with up to three edits: bytes flipped, cut, doubled or inserted; lines doubled, dropped or with
a field replaced by something hostile (a path that leads out, a giant, control characters, another encoding). Counted
are accepted inputs, clear errors (utils.InputError, or a part of a cache or of kept features that is made again), and
anything else: another exception, ten seconds of work without an answer, a file written, a file opened outside of the
data, a process started, a gigabyte taken. Exit code 1 if there is any.
"""

import argparse
import contextlib
import io
import json
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import forked  # isort: skip  (before torch)
import numpy as np
import pandas as pd
import torch
from conftest import REPOSITORY, picture
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

import cbis_archive
import dicom_files
from data import cache, dicom  # noqa: F401  (pydicom is imported before files are watched)
import checkpoints
import datasets
from evaluation import features
from data import images, locations, shard_index
from data.weights import WEIGHTS
import models
from data.tokens import Tokens, from_json, train_bpe
from evaluation import zeroshot
from tools.phantoms import make_phantoms
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
        self.archive = cbis_archive.write_archive(root / "archive", self.cbis / "csv", renamed=True)
        self.vindr = root / "vindr"
        dicom_files.write_vindr(self.vindr)
        small = (path for path in sorted(dicom_files.WHEEL.rglob("*.dcm")) if path.stat().st_size < 16_000)
        self.dicoms = [path.read_bytes() for path in small]
        self.catalog = root / "catalog.json"
        self.catalog.write_bytes((REPOSITORY / "dataset_catalog.json").read_bytes())
        torch.manual_seed(0)
        self.model = models.create_model("test_vit", "simclr", ssl_mlp_dim=8, ssl_emb_dim=8, image_size=32)
        self.state = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.originals, self.touched = {}, set()
        self.prompts, self.tokenizer = root / "prompts.json", from_json(train_bpe(["a mass"], 300))
        self.prompts.write_bytes((REPOSITORY / "evaluation" / "prompts.json").read_bytes())
        sizes = ((60, 48), (700, 300), (7, 600), (1, 1), (1100, 520))
        paths = [str(root / f"cached_{number}.png") for number in range(len(sizes))]
        for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
            picture(number, size, colour=number % 2 == 1).save(path, compress_level=1)
        self.cache = cache.Cache(root / "cache", paths.__getitem__, len(paths))
        self.cache.size = 3  # two shards
        self.cache.folder.mkdir()
        self.cache.build(list(self.cache.shards()))

    def __call__(self, kind: str, rng: random.Random, changes) -> None:
        getattr(self, kind)(rng, changes)

    def changed(self, path: Path, changes) -> None:
        """Write `path` with the edits made to what it held at first."""
        self.write(path, self.original(path), changes)

    def original(self, path: Path) -> bytes:
        """What a file held at first, which `restore` will write again."""
        if path not in self.originals:
            self.originals[path] = path.read_bytes()
        self.touched.add(path)
        return self.originals[path]

    def write(self, path: Path, contents: bytes, changes) -> None:
        for change in changes:
            contents = edit(contents, *change)
        path.write_bytes(contents)
        self.ready()

    def restore(self) -> None:
        for path in self.touched:
            path.write_bytes(self.originals[path])
        self.touched.clear()

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

    def crops(self, abnormality: str, split: str, rng, root=None) -> None:
        table = datasets.cbis_table(root or self.cbis, abnormality, split, rng.choice(("crop", "full")))
        self.inside(table["path"], root or self.cbis)
        assert table["id"].is_unique

    def archive_files(self, rng, changes) -> None:
        kind = rng.choice(("*.csv", "CBIS-DDSM/*/*/*/*.dcm"))
        self.changed(rng.choice(sorted(self.archive.glob(kind))), changes)
        self.crops(rng.choice(("calcification", "mass")), rng.choice(("train", "test")), rng, self.archive)

    def vindr_csvs(self, rng, changes) -> None:
        self.changed(rng.choice(sorted(self.vindr.glob("*.csv"))), changes)
        label = rng.choice(("breast_birads", "breast_density", "finding_categories"))
        entry = {"name": "vindr", "type": "vindr", "path": str(self.vindr), "label": label}
        self.inside(datasets.labelled_set(entry, rng.choice(("train", "test"))).images, self.vindr)

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

    def table(self, ending: str, rng, changes) -> None:
        folder = self.root / "table"
        columns = "patient image caption label finding split".split()
        columns = columns[: rng.choice((5, 6))]  # without a split, a share of the patients is held out
        path = folder / f"rows{len(columns)}.{ending}"
        if not path.exists():
            (folder / "images").mkdir(parents=True, exist_ok=True)
            rows = []
            for i in range(12):
                picture(i).save(folder / "images" / f"{i}.png")
                finding, split = ("1", "0", "-1", "")[i % 4], ("train", "val", "test")[i % 3]
                rows.append((f"p{i // 2}", f"images/{i}.png", f"a mass, {i}", "ab"[i % 2], finding, split))
            frame = pd.DataFrame(rows, columns="patient image caption label finding split".split())[columns]
            if ending == "csv":
                frame.to_csv(path, index=False)
            elif ending == "jsonl":
                frame.to_json(path, orient="records", lines=True)
            else:
                stored = [{"bytes": (folder / name).read_bytes(), "path": name} for name in frame["image"]]
                frame.assign(stored=stored).to_parquet(path, row_group_size=5)
        self.changed(path, changes)
        entry = {"name": "table", "type": "table", "path": str(path), "share": "0.5"}
        if ending == "parquet":
            entry["image"] = rng.choice(("image", "stored"))
        if rng.random() < 0.5:
            split, subset = rng.choice(("train", "validation")), rng.choice(("all", "mammo+xray"))
            found = datasets.paired_set(entry, split, subset=subset, optional=True)
            ids, paths = (list(found.ids), list(found.paths())) if found else ([], [])
        else:
            entry |= rng.choice(({}, {"labels": "finding"}))
            found = datasets.labelled_set(entry, rng.choice(("train", "test")))
            ids, paths = found.ids, list(found.images)
        assert len(set(ids)) == len(ids) and not any(".." in Path(path).parts for path in paths)
        if ending == "parquet":  # tables of one's own may have absolute paths
            self.inside(paths, folder)
        images.unreadable(path for path in paths if path.startswith(str(folder)))

    def table_csv(self, rng, changes) -> None:
        self.table("csv", rng, changes)

    def table_jsonl(self, rng, changes) -> None:
        self.table("jsonl", rng, changes)

    def table_parquet(self, rng, changes) -> None:
        self.table("parquet", rng, changes)

    def webdataset(self, rng, changes) -> None:
        """A shard with something hostile among its members, and its pairs and labels."""
        path, encoded = self.root / "tars" / "s.tar", io.BytesIO()
        path.parent.mkdir(exist_ok=True)
        picture(rng.randrange(8), (9, 7)).save(encoded, "png")
        members = []
        for key in ("a", "d/b", "c" * rng.choice((1, 99, 300))):
            record = {"label": "x", "patient": "p", "article": "A", "caption": "caption"}
            texts = {"txt": b"text", "json": json.dumps(record).encode(), "cls": b"0"}
            members += [
                (f"{key}.{suffix}", contents) for suffix, contents in ({"png": encoded.getvalue()} | texts).items()
            ]
        hostile = rng.choice(HOSTILE)
        if rng.random() < 0.5:
            place = rng.randrange(len(members))
            name, contents = members[place]
            members[place] = rng.choice((
                (name, hostile), (rng.choice(("../", "/", "./", "a/../../", "\n", ".")) + name, contents),
                (hostile.decode("latin-1").replace("\0", "") + name, contents), members[place - 1],
            ))  # fmt: skip
        kind = rng.choice((tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
        with tarfile.open(path, "w", format=kind) as archive:
            for name, contents in members:
                info = tarfile.TarInfo(name)
                info.size = len(contents)
                if rng.random() < 0.02:
                    info.type, info.linkname = rng.choice((b"1", b"2", b"3", b"5", b"6", b"S", b"V")), "/etc/passwd"
                if rng.random() < 0.05 and kind == tarfile.PAX_FORMAT:
                    field = rng.choice(("path", "size", "linkpath", "GNU.sparse.map", "hdrcharset"))
                    info.pax_headers = {field: rng.choice(("-1", "0", "9" * 30, "../x", "/x", "x\0y", "x\ny"))}
                with contextlib.suppress(ValueError):  # a name that ustar cannot hold
                    archive.addfile(info, io.BytesIO(contents))
        contents = bytearray(path.read_bytes())
        if rng.random() < 0.5:  # a header's field, with a checksum that is right
            header = contents[:512]
            at, size = rng.choice(((0, 100), (100, 8), (124, 12), (148, 8), (156, 1), (257, 8), (345, 155)))
            value = rng.choice((hostile[:size], rng.randbytes(size), b"%0*o" % (size - 1, rng.randrange(9**size))))
            header[at : at + size] = value[:size].ljust(size, b"\0")
            if at != 148:
                header[148:156] = b" " * 8
                header[148:156] = b"%06o\0 " % sum(header)
            contents[:512] = header
        # The index is not kept: a reader that writes is what the program looks for.
        with (
            mock.patch.object(shard_index, "writable", return_value=False),
            mock.patch.dict(os.environ, XDG_CACHE_HOME=str(self.root)),
        ):
            other = path.with_name("t.tar")
            other.write_bytes(contents)
            self.write(path, bytes(contents), changes if rng.random() < 0.5 else ())
            entry = {
                "name": "tars",
                "type": "webdataset",
                "path": str(self.root),
                "train": "tars/s.tar",
                "test": "tars/t.tar",
            }
            if rng.random() < 0.5:
                pairs = datasets.paired_set(entry, "train", optional=rng.random() < 0.5)
                places = list(pairs.paths()) if pairs else []
                assert pairs is None or (all(pairs.captions) and len(set(pairs.ids)) == len(pairs) > 0)
            else:
                places = datasets.labelled_set(entry, rng.choice(("train", "test"))).images
        for place in places:
            where = locations.split(place)
            assert where.path in (str(path), str(other)) and sum(where.at) <= os.stat(where.path).st_size
            with contextlib.suppress(InputError):
                images.read_image(place)

    def shard_indices(self, rng, changes) -> None:
        """The index of a shard: what is accepted is what it was."""
        shard, path = self.root / "indexed.tar", self.root / "indexed.index"
        keys = {"id": "id", "caption": "caption"}
        if not shard.exists():
            with tarfile.open(shard, "w") as archive:
                for name in ("a.jpg", "a.txt", "b.jpg"):
                    archive.addfile(tarfile.TarInfo(name))
            path.write_bytes(shard_index.make(shard, keys))
        self.changed(path, changes)
        found = shard_index.read(path, shard, keys)
        if found is None:
            raise InputError("made again")
        assert found.columns["ids"][0] == b"ab" and path.read_bytes() == self.originals[path]

    def image(self, suffix: str, rng, changes, **how) -> None:
        path = self.root / f"image.{suffix}"
        picture(rng.randrange(8), colour=rng.random() < 0.3).save(path, **how)
        if suffix == "png" and rng.random() < 0.05:  # a bomb: the header promises 60,000 x 60,000 pixels
            contents = bytearray(path.read_bytes())
            contents[16:24] = (60_000).to_bytes(4, "big") * 2
            path.write_bytes(contents)
        self.write(path, path.read_bytes(), changes)
        images.unreadable([str(path)])
        with contextlib.suppress(InputError):
            assert images.read_small(str(path), 16).mode == "L"
        assert images.read_image(str(path)).mode in ("L", "RGB")

    def jpeg(self, rng, changes) -> None:
        self.image("jpg", rng, changes, quality=90)

    def png(self, rng, changes) -> None:
        notes = PngInfo()  # a file that is whole but for what its chunks of text say
        notes.add_text("Comment", rng.choice(HOSTILE).decode("latin-1"), zip=rng.random() < 0.5)
        self.image("png", rng, changes if rng.random() < 0.7 else (), pnginfo=notes)

    def other_image(self, rng, changes) -> None:
        suffix, how = rng.choice((
            ("tif", {}), ("tif", {"compression": "tiff_lzw"}), ("tif", {"compression": "tiff_adobe_deflate"}),
            ("tif", {"compression": "jpeg"}), ("bmp", {}), ("gif", {}), ("webp", {}), ("jp2", {}), ("ppm", {}),
        ))  # fmt: skip
        self.image(suffix, rng, changes, **how)

    def dicom_image(self, rng, changes) -> None:
        path = self.root / "image.dcm"
        self.write(path, rng.choice(self.dicoms), changes)
        images.unreadable([str(path)])
        assert images.read_image(str(path)).mode in ("L", "RGB")

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
        self.write(path, path.read_bytes(), changes if rng.random() < 0.5 else ())
        self.load(path)

    def safetensors(self, rng, changes) -> None:
        """The same weights as one file, or as two with an index, whose header or bytes are altered."""
        folder = self.root / "safetensors"
        folder.mkdir(exist_ok=True)
        state = self.altered(rng)
        state = next((value for value in state.values() if isinstance(value, dict)), state)
        state = {key: value.contiguous() for key, value in state.items() if isinstance(value, torch.Tensor)}
        path, split = folder / "model.safetensors", rng.random() < 0.3
        path.unlink(missing_ok=True)
        if split:
            names = [f"model-{number}.safetensors" for number in (0, 1)]
            for number, name in enumerate(names):
                save_file(dict(list(state.items())[number::2]), folder / name)
            where = {key: names[number % 2] for number, key in enumerate(state)}
            index = folder / "model.safetensors.index.json"
            self.write(index, json.dumps({"weight_map": where}).encode(), changes if rng.random() < 0.7 else ())
            self.load(folder)
            return
        save_file(state, path)
        contents = path.read_bytes()
        start = 8 + int.from_bytes(contents[:8], "little")
        where = rng.random()
        if where < 0.3:  # in the header, its length put right
            header = contents[8:start]
            for change in changes:
                header = edit(header, *change)
            contents, changes = len(header).to_bytes(8, "little") + header + contents[start:], ()
        elif where < 0.4:  # another length of the header
            contents, changes = (
                rng.choice((0, 1, 7, start, 1 << 40, (1 << 64) - 1)).to_bytes(8, "little") + contents[8:],
                (),
            )
        self.write(path, contents, changes if where < 0.8 else ())
        self.load(rng.choice((path, folder)))

    def zip(self, rng, changes) -> None:
        path, weights = self.root / "weights.zip", io.BytesIO()
        torch.save(self.altered(rng), weights)
        name = rng.choice(("", "folder/", "../", "/", "a/../../")) + WEIGHTS
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w", rng.choice((0, 8)), compresslevel=1) as archive:
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(rng.choice((1, 1, 1, 2))):
                archive.writestr(name, weights.getvalue())
            archive.writestr(rng.choice(("config.json", "../escaped.txt", f"{self.root}/escaped.txt")), "{}")
            if rng.random() < 0.02:
                archive.writestr("bomb", bytes(1 << 27), zipfile.ZIP_DEFLATED, 1)
        self.write(path, path.read_bytes(), changes if rng.random() < 0.5 else ())
        self.load(path)

    def pictures(self) -> None:
        """Open the cache and look at every picture of the shards that it accepts."""
        missing = self.cache.open()
        for number in set(self.cache.shards()) - set(missing):
            for i in self.cache.members(number):
                found = self.cache[i]
                shapes = cache.level_shapes(found.width, found.height)
                assert [level.shape[:2] for level in found.levels] == shapes
                assert all(0 <= level.mean() <= 255 for level in found.levels)
        if missing:
            raise InputError(f"built again: {missing}")

    def cache_index(self, rng, changes) -> None:
        path = self.cache.file(rng.randrange(2), ".npy")
        if rng.random() < 0.5:  # bytes of the file, its header among them
            self.changed(path, changes)
        else:  # numbers in a file that is whole
            rows = np.load(io.BytesIO(self.original(path)))
            for _ in range(rng.choice((0, 1, 1, 2))):
                row, name = rng.randrange(len(rows)), rng.choice(rows.dtype.names)
                most = (1 << 8 * rows.dtype[name].itemsize - 1) - 1
                rows[name][row] = rng.choice(
                    (0, -1, 1, 3, 4, 513, 1 << 16, most, -most, min(most, int(rows[name][row]) + 1))
                )
            if rng.random() < 0.2:
                rows = rng.choice((rows[:-1], rows[::-1], rows[:, None], np.concatenate([rows, rows]), rows["width"]))
            contents = io.BytesIO()
            (np.savez if rng.random() < 0.1 else np.save)(contents, rows)
            self.write(path, contents.getvalue(), ())
        self.pictures()

    def cache_pixels(self, rng, changes) -> None:
        path = self.cache.file(rng.randrange(2), ".bin")
        self.original(path)
        if rng.random() < 0.5:
            self.changed(path, changes)
        else:  # other pixels
            self.write(path, rng.randbytes(len(self.originals[path])), ())
        self.pictures()

    def feature_shard(self, rng, changes) -> None:
        """One of three files of kept features is altered; those before it must be what they were."""
        folder, shape, rows = self.root / "shards", rng.choice(((4,), (4, 4))), []
        folder.mkdir(exist_ok=True)
        altered = rng.randrange(3)
        for number in range(3):
            rows.append(torch.full((2, *shape), float(number)))
            contents, path = {"key": "k", "start": 2 * number, "rows": rows[-1]}, folder / f"{number:05d}.pt"
            if number == altered and rng.random() < 0.7:
                name = rng.choice(list(contents))
                other = [
                    None,
                    "k ",
                    3,
                    -1,
                    [1],
                    {},
                    True,
                    float("nan"),
                    torch.zeros(()),
                    torch.zeros(0),
                    torch.zeros(2),
                ]
                other += [torch.zeros(2, *shape).half(), torch.zeros(2, 5), torch.zeros(2, *shape).to_sparse()]
                contents[name] = rng.choice(other)
                if rng.random() < 0.1:
                    contents = rng.choice(([contents], contents["rows"], {name: contents[name]}, Runs()))
            torch.save(contents, path)
            if number == altered:
                self.write(path, path.read_bytes(), changes if rng.random() < 0.5 else ())
        found = features.Shards(folder, "k", shape).rows
        assert len(found) >= 2 * altered and (len(found) == 0 or found.shape[1:] == shape)
        for number in range(altered):
            assert torch.equal(found[2 * number : 2 * number + 2], rows[number])
        if len(found) < 6:
            raise InputError("extracted again")

    def zero_shot_prompts(self, rng, changes) -> None:
        contents = self.original(self.prompts)
        if rng.random() < 0.3:  # JSON that is whole, with something else in a place
            tree = json.loads(contents)
            place = rng.choice((tree, tree["sets"], rng.choice(list(tree["sets"].values()))))
            strange = (
                None,
                3,
                "",
                " ",
                "text",
                [],
                [""],
                ["{}"],
                ["a", 3],
                {},
                {"a": ["b"]},
                ["\ud800"],
                ["x" * 10**5],
            )
            place[rng.choice(list(place))] = rng.choice(strange)
            self.write(self.prompts, json.dumps(tree).encode(), changes if rng.random() < 0.3 else ())
        else:
            self.changed(self.prompts, changes)
        dataset = rng.choice(("cbis_calc", "cbis_mass", "imagenet"))
        classes = ["MALIGNANT", "BENIGN", "BENIGN_WITHOUT_CALLBACK"]
        found = zeroshot.read_prompts(str(self.prompts), dataset, classes)
        assert len(found) == len(classes)
        for texts in found:
            batch = Tokens(self.tokenizer, texts, 77).batch(range(len(texts)))
            assert len(batch["text_order"]) == len(texts) > 0


KINDS = (
    "captions keywords licences case_csv dicom_info archive_files vindr_csvs catalog_json filelist table_csv "
    "table_jsonl table_parquet webdataset shard_indices jpeg png other_image dicom_image checkpoint safetensors zip "
    "cache_index cache_pixels feature_shard zero_shot_prompts"
).split()


READERS = (
    "data/buffers data/roco data/cbis data/cbis_choice data/cbis_kaggle data/cbis_archive data/csv_rows data/vindr "
    "data/folders data/tar data/shard_index data/shards data/tables data/table_rows data/table_files "
    "data/table_images data/parquet data/splits data/sets data/images data/dicom data/dicom_gray data/cache "
    "data/weights datasets checkpoints evaluation/features evaluation/zeroshot"
).split()


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
    raise TimeoutError("ten seconds of work without an answer" if number == signal.SIGPROF else "hangs")


def outcome(kinds: Kinds, watch: Watch, kind: str, rng: random.Random, changes) -> str:
    """Make and read one input -> "accepted", "clear error", or what else happened."""
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, too_slow)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_PROF, 10)  # of the process's own time: other jobs may be at work
    signal.alarm(600)
    try:
        kinds(kind, rng, changes)
        found = "accepted"
    except InputError as error:
        text = str(error)
        found = "clear error" if text and "\n" not in text and len(text) < 3000 else f"no clear line: {text[:200]!r}"
    except Exception as error:
        found = f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        watch.on = False
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most
    if taken > 1 << 20:  # kilobytes
        found = f"took {taken >> 10:,d} MB"
    if watch.seen:
        found = f"did {watch.seen[:3]}"
        watch.seen.clear()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1200, help="inputs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes, which share the inputs")
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--counts", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.share is not None:
        read_share(args)
        return
    with tempfile.TemporaryDirectory() as folder:  # each process under coverage, whose report comes last
        started, jobs = time.monotonic(), []
        coverage, data = [sys.executable, "-m", "coverage"], f"--data-file={folder}/coverage"
        include = ",".join(f"{REPOSITORY}/{name}.py" for name in READERS)
        for share in range(args.jobs):
            words = [*coverage, "run", "--branch", "--parallel-mode", data, f"--include={include}", __file__]
            words += [f"--{name}={getattr(args, name)}" for name in ("count", "seed", "jobs")]
            words += [f"--share={share}", f"--counts={folder}/{share}.json"]
            jobs.append(subprocess.Popen(words, cwd=REPOSITORY))
        codes = [job.wait() for job in jobs]
        parts = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
        rows = {kind: {name: sum(part[kind][name] for part in parts) for name in FOUND} for kind in KINDS}
        rows["all"] = {name: sum(row[name] for row in rows.values()) for name in FOUND}
        for kind, counts in rows.items():
            print(f"{kind:17s} " + "  ".join(f"{count:7,d} {name}" for name, count in counts.items()))
        print(f"{time.monotonic() - started:.0f} s", flush=True)
        subprocess.run([*coverage, "combine", "--quiet", data], cwd=REPOSITORY)
        subprocess.run([*coverage, "report", data], cwd=REPOSITORY)
    sys.exit(any(codes) or len(parts) < args.jobs or rows["all"]["anything else"] > 0)


FOUND = ("accepted", "clear error", "anything else")


def read_share(args) -> None:
    """Every `jobs`-th input of each kind: what is strange is printed, the counts go to a file."""
    import logging

    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "data"
        root.mkdir()
        os.chdir(root)  # where a canary would appear
        watch = Watch(root)
        kinds = Kinds(root, watch.start)
        table = {}
        for kind in KINDS:
            counts = table[kind] = dict.fromkeys(FOUND, 0)
            for number in range(args.share, args.count, args.jobs):
                rng = random.Random(f"{args.seed} {kind} {number}")
                found = outcome(kinds, watch, kind, rng, edits(rng))
                if found not in counts:
                    print(f"{kind} {number}: {found}", flush=True)
                    found = "anything else"
                counts[found] += 1
                kinds.restore()
        strangers = [path for path in listing(root.parent) if "canary" in path or "escaped" in path]
        print("".join(f"appeared: {path}\n" for path in strangers), end="", flush=True)
        os.chdir(REPOSITORY)
        Path(args.counts).write_text(json.dumps(table))
    sys.exit(len(strangers) > 0)


if __name__ == "__main__":
    main()
