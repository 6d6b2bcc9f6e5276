"""main.py and main_linear.py on tables: the same weights as from ROCO's layout, and a probe of held-out patients."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import datasets
import main
import main_linear
import options
from conftest import picture, run_cli

SMALL = "--arch resnet10t --pretrained none --image-size 32 --device cpu --workers 0 --batch-size 8".split()
TRAIN = (
    *SMALL, *"--arch test_efficientnet --text-model tiny --ssl-mlp-dim 16 --ssl-emb-dim 8".split(),
    *"--disable-amp --cache none --epochs 1 --lr 1e-3".split(),
)  # fmt: skip


def weights(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)["model"]


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def catalog(roco, tmp_path):
    """The pairs of `roco`, as a table of paths and with stored images, and a table of labels without splits."""
    for split in ("train", "validation"):
        pairs = datasets.read_pairs(roco, split)
        table = pd.DataFrame({"id": list(pairs.ids), "title": list(pairs.captions), "filepath": list(pairs.files)})
        (tmp_path / "paths").mkdir(exist_ok=True)
        (tmp_path / "stored" / "data").mkdir(parents=True, exist_ok=True)
        table.to_csv(tmp_path / "paths" / f"{split}.csv", index=False, sep="\t")
        files = [roco / name for name in table["filepath"]]
        table["image"] = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
        table.to_parquet(tmp_path / "stored" / "data" / f"{split}-00000-of-00001.parquet", row_group_size=5)
    (tmp_path / "labelled").mkdir()
    rows = []
    for i in range(60):
        pixels = np.asarray(picture(i)) // 3 + 90 * (i % 2)
        rows.append((f"p{i // 3}", "dark bright".split()[i % 2], i % 2, (1, 0, -1, "", 0)[i % 5], f"{i}.png"))
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "labelled" / f"{i}.png")
    columns = ["patient_id", "label", "Bright", "Edema", "image"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "labelled" / "all.csv", index=False)
    entries = {
        "paths": {"path": "paths", "type": "table", "images": "../roco"},
        "stored": {"path": "stored", "type": "table"},
        "labelled": {"path": "labelled/all.csv", "type": "table", "share": "0.4"},
        "findings": {"path": "labelled/all.csv", "type": "table", "share": "0.4", "labels": "Bright, Edema"},
    }
    (tmp_path / "catalog.json").write_text(json.dumps(entries))
    return tmp_path / "catalog.json"


def test_the_same_weights_as_from_rocos_layout(roco, catalog, tmp_path, capsys):
    def train(out, *words):
        code, printed, errors = run_cli(capsys, main.main, options.train_parser, "--output-dir", out, *TRAIN, *words)
        assert code == 0, errors
        return weights(out), printed

    expected, _ = train(tmp_path / "expected", "--root", roco)
    for name in ("paths", "stored"):
        out = tmp_path / name
        found, printed = train(out, "--catalog", catalog, "--dataset", name)
        assert same(found, expected)
        notes = json.loads((out / "config.json").read_text())["data"]["train"]
        assert notes["columns"].startswith("image from") and notes["columns"] in printed


@pytest.mark.parametrize("name", ["labelled", "findings"])
def test_a_probe_of_held_out_patients(catalog, tmp_path, capsys, name):
    out = tmp_path / "probe"
    words = ("--catalog", catalog, "--dataset", name, "--probe", "logistic", *SMALL, "--cache", tmp_path / "cache")
    code, printed, errors = run_cli(capsys, main_linear.main, options.linear_parser, "--output-dir", out, *words)
    assert code == 0, errors
    results = json.loads((out / "results.json").read_text())
    classes = results["per_class"]
    assert min(classes[one]["auroc"] for one in (("Bright",) if name == "findings" else ("bright", "dark"))) > 0.9
    assert results["n_train"] + results["n_test"] == 60 and results["audit"]["patients_in_both"] == 0
    assert "of its 20 patients" in printed and "of its 20 patients" in results["data"]["test"]["split"]
    assert ("labels" in results["data"]["train"]) == (name == "findings")
