"""The same pairs in every layout that main.py reads: the same first batch, the same weights, the same resumed run.

python tests/programs/layouts.py --pairs FOLDER                 # FOLDER in ROCO's layout
python tests/programs/layouts.py --pairs FOLDER --only "CSV, parquet of bytes"

The pairs are written as CSV, TSV, JSON lines and parquet, as ROCOv2, as tar shards (by tools/pack.py and by the
webdataset library) and as DICOM. Of each layout are hashed: all tensors of the first batch, from the files and from a
cache; the weights after 10 steps; and those after a run that is killed at step 5 and goes on. Exit code 1 if any hash
differs from those of ROCO's layout.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import options  # isort: skip  (before torch: it sets what OpenMP reads)
import numpy as np
import pandas as pd
import torch
from PIL import Image

from data import images
from data.roco import roco_table

REPOSITORY = Path(__file__).resolve().parents[2]
SPLITS = ("train", "validation")
STEPS = 10
SMALL = (
    "--arch resnet10t --text-model tiny --pretrained none --image-size 64 --epochs 1 --lr 1e-3 --ssl-mlp-dim 64 "
    "--ssl-emb-dim 16 --device cpu --amp off --print-freq 1"
)


# A writer takes {split: table of id, path, caption} and an empty folder, and returns the catalog entry.


def columns(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Copy the images beside the table -> its columns as users have them."""
    names = [f"images/{Path(path).name}" for path in table["path"]]
    (folder / "images").mkdir(exist_ok=True)
    for path, name in zip(table["path"], names, strict=True):
        shutil.copyfile(path, folder / name)
    return pd.DataFrame({"id": table["id"], "image": names, "caption": table["caption"]})


def write_tables(tables: dict, folder: Path, suffix: str, save) -> dict:
    """A file for each split, which `save(columns, path)` writes."""
    for split, table in tables.items():
        save(columns(table, folder), folder / f"{split}{suffix}")
    return {"type": "table", "path": ".", **{split: f"{split}{suffix}" for split in tables}}


def write_csv(tables: dict, folder: Path) -> dict:
    return write_tables(tables, folder, ".csv", lambda table, path: table.to_csv(path, index=False))


def write_open_clip(tables: dict, folder: Path) -> dict:
    """open_clip's: TAB between the columns filepath and title; here with an id."""

    def save(table, path):
        table.rename(columns={"image": "filepath", "caption": "title"}).to_csv(path, index=False, sep="\t")

    return write_tables(tables, folder, ".tsv", save)


def write_parquet(tables: dict, folder: Path) -> dict:
    return write_tables(tables, folder, ".parquet", lambda table, path: table.to_parquet(path, index=False))


def write_json_lines(tables: dict, folder: Path) -> dict:
    """One file, with a column that says the split."""
    parts = [columns(table, folder).assign(split=split) for split, table in tables.items()]
    pd.concat(parts).to_json(folder / "pairs.jsonl", orient="records", lines=True, force_ascii=False)
    return {"type": "table", "path": "pairs.jsonl"}


def write_parquet_bytes(tables: dict, folder: Path) -> dict:
    """The hub's: images as structs of their bytes and name, in files of several row groups."""
    import pyarrow
    import pyarrow.parquet

    for split, table in tables.items():
        structs = [{"bytes": Path(path).read_bytes(), "path": Path(path).name} for path in table["path"]]
        for part, rows in enumerate(np.array_split(np.arange(len(table)), 2)):
            contents = {
                "image": pyarrow.array([structs[i] for i in rows]),
                "caption": pyarrow.array([table["caption"].iloc[i] for i in rows]),
                "id": pyarrow.array([table["id"].iloc[i] for i in rows]),
            }
            name = f"{split}-{part:05d}-of-00002.parquet"
            pyarrow.parquet.write_table(pyarrow.table(contents), folder / name, row_group_size=100)
    return {"type": "table", "path": ".", "train": "train-*.parquet", "validation": "validation-*.parquet"}


def write_rocov2(tables: dict, folder: Path) -> dict:
    for split, table in tables.items():
        name = {"train": "train", "validation": "valid"}[split]
        (folder / name).mkdir()
        for key, path in zip(table["id"], table["path"], strict=True):
            shutil.copyfile(path, folder / name / f"{key}.jpg")
        found = pd.DataFrame({"ID": table["id"], "Caption": table["caption"]})
        found.to_csv(folder / f"{name}_captions.csv", index=False)
    return {"type": "rocov2", "path": "."}


def write_packed(tables: dict, folder: Path) -> dict:
    """Tar shards by tools/pack.py, from ROCO's layout."""
    root = next(Path(path).parents[3] for table in tables.values() for path in table["path"])
    catalog = folder / "roco.json"
    catalog.write_text(json.dumps({"pairs": {"type": "roco", "path": str(root)}}))
    command = [sys.executable, REPOSITORY / "tools" / "pack.py", "--catalog", catalog, "--dataset", "pairs"]
    command += ["--out", folder / "shards", "--samples-per-shard", "200"]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return {"type": "webdataset", "path": "shards", "train": "train", "validation": "validation"}


def write_webdataset(tables: dict, folder: Path) -> dict:
    """Tar shards by the webdataset library."""
    import webdataset

    for split, table in tables.items():
        for number, rows in enumerate(np.array_split(np.arange(len(table)), 4)):
            with webdataset.TarWriter(str(folder / f"{split}-{number:06d}.tar")) as writer:
                for i in rows:
                    key, path, caption = table.iloc[i]
                    writer.write({"__key__": key, "jpg": Path(path).read_bytes(), "txt": caption})
    files = {split: f"{split}-{{000000..000003}}.tar" for split in tables}
    return {"type": "webdataset", "path": ".", **files}


def write_dicom(tables: dict, folder: Path) -> dict:
    """Each picture as a DICOM file of 8 bits, without loss; a CSV names them."""
    for split, table in tables.items():
        names = []
        for key, path in zip(table["id"], table["path"], strict=True):
            names.append(f"{key}.dcm")
            write_dicom_file(folder / names[-1], images.read_image(path))
        found = pd.DataFrame({"id": table["id"], "image": names, "caption": table["caption"]})
        found.to_csv(folder / f"{split}.csv", index=False)
    return {"type": "table", "path": ".", "train": "train.csv", "validation": "validation.csv"}


def write_dicom_file(path: Path, image: Image.Image) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    made.Columns, made.Rows = image.size
    made.SamplesPerPixel = len(image.getbands())
    made.PhotometricInterpretation = "MONOCHROME2" if image.mode == "L" else "RGB"
    if image.mode == "RGB":
        made.PlanarConfiguration = 0
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    pixels = np.asarray(image).tobytes()
    made.PixelData = pixels + b"\0" * (len(pixels) % 2)
    made.save_as(path, enforce_file_format=True)


WRITERS = {
    "CSV": write_csv,
    "TSV of open_clip": write_open_clip,
    "JSON lines": write_json_lines,
    "parquet of paths": write_parquet,
    "parquet of bytes": write_parquet_bytes,
    "ROCOv2": write_rocov2,
    "tar shards of tools/pack.py": write_packed,
    "tar shards of webdataset": write_webdataset,
    "DICOM": write_dicom,
}


# What is compared


def digest(items) -> str:
    """SHA-256 over (name, array) pairs, the first 12 digits."""
    found = hashlib.sha256()
    for name, array in items:
        found.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:12]


def first_batch(words: list[str]) -> str:
    """The hash of all tensors of the first batch that main.py with these arguments trains on."""
    import main

    args = options.parse(options.train_parser(), words)
    main.models.settle_defaults(args)
    device = torch.device("cpu")
    pairs, _ = main.read_data(args)
    batches = main.make_batches(args, len(pairs["train"]))
    tokenizer, _ = main.make_tokenizer(args, None, pairs["train"])
    with main.open_training(args, pairs["train"], tokenizer, batches, device) as loader:
        batch = next(iter(loader))
    buffer = io.BytesIO()
    for split in SPLITS:  # also what is kept of the pairs themselves
        buffer.write(bytes(pairs[split].ids.buffer) + bytes(pairs[split].captions.buffer))
    tensors = [("pairs", np.frombuffer(buffer.getvalue(), np.uint8))]
    for name, value in sorted(batch.items()):
        tensors += [(name, one.numpy()) for one in (value if isinstance(value, list) else [value])]
    return digest(tensors)


def start(words, out: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, REPOSITORY / "main.py", *words, "--output-dir", out]
    with open(f"{out}.log", "ab") as log:
        return subprocess.Popen(list(map(str, command)), env=environment, stdout=log, stderr=log)


def weights(out: Path) -> tuple[int, str]:
    """The step of a run's checkpoint, and the hash of its weights."""
    contents = torch.load(out / "checkpoint.pt", weights_only=True)
    return contents["step"], digest((name, one.numpy()) for name, one in contents["model"].items())


def trained(words, out: Path) -> str:
    """The hash of the weights after STEPS steps."""
    assert start(words, out).wait() == 0, Path(f"{out}.log").read_text()[-2000:]
    step, found = weights(out)
    assert step == STEPS, step
    return found


def resumed(words, out: Path) -> str:
    """The same of a run that SIGKILL ends after it has saved step 5, and that goes on."""
    run = start([*words, "--save-every", STEPS // 2], out)
    while not (out / "checkpoint.pt").exists():
        assert run.poll() is None, Path(f"{out}.log").read_text()[-2000:]
        time.sleep(0.01)
    run.kill()
    run.wait()
    assert weights(out)[0] == STEPS // 2
    return trained([*words, "--save-every", STEPS // 2], out)


def main_program() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, required=True, metavar="FOLDER", help="pairs in ROCO's layout")
    parser.add_argument("--only", help="the layouts to try, separated by commas")
    args = parser.parse_args()
    tables = {split: roco_table(args.pairs, split) for split in SPLITS}
    wanted = [name.strip() for name in args.only.split(",")] if args.only else list(WRITERS)
    batch_size = len(tables["train"]) // STEPS
    print(f"{' '.join(map(str, sys.argv))}\n{len(tables['train'])} + {len(tables['validation'])} pairs of {args.pairs}")
    print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, steps of {batch_size} pairs\n")
    header = ("first batch", "from a cache", f"after {STEPS} steps", f"killed at {STEPS // 2}")
    print(f"{'layout':30}" + "".join(f"{one:16}" for one in header))
    reference, same = None, True
    with tempfile.TemporaryDirectory() as name:
        for layout in ("ROCO", *wanted):
            folder = Path(name, layout.replace(" ", "_").replace("/", "_"))
            folder.mkdir()
            entry = WRITERS[layout](tables, folder) if layout != "ROCO" else {"type": "roco", "path": str(args.pairs)}
            (folder / "catalog.json").write_text(json.dumps({"pairs": entry}))
            words = ["--catalog", str(folder / "catalog.json"), "--dataset", "pairs", *SMALL.split()]
            words += ["--batch-size", str(batch_size), "--workers", "1", "--cache"]
            found = [first_batch([*words, "none"]), first_batch([*words, str(folder / "cache")])]
            found += [trained([*words, "none"], folder / "run"), resumed([*words, "none"], folder / "again")]
            reference = reference or [found[0], found[1], found[2], found[2]]
            agrees = found == reference
            same &= agrees
            print(f"{layout:30}" + "".join(f"{one:16}" for one in found) + ("" if agrees else "DIFFERS"), flush=True)
            shutil.rmtree(folder)
    print("\nevery layout gives the same" if same else "\nsome layout differs")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main_program())
