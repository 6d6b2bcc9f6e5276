"""tools/compare.py and tools/label_efficiency.py, run as their users run them."""

import json

import numpy as np
import pandas as pd
import pytest
import torch


def write_run(folder, noise, n=90, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    logits = np.eye(3)[labels] * 2 + np.random.default_rng(noise).normal(size=(n, 3)) * noise
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    names = np.array(["MALIGNANT", "BENIGN", "BENIGN_WITHOUT_CALLBACK"])
    table = {"id": [f"case{i:03d}" for i in range(n)], "patient": [f"P_{i // 2:05d}" for i in range(n)]}
    table |= {"label": names[labels], "predicted": names[probabilities.argmax(axis=1)]}
    table |= {f"p_{name}": probabilities[:, k] for k, name in enumerate(names)}
    folder.mkdir()
    pd.DataFrame(table).sample(frac=1, random_state=noise).to_csv(folder / "predictions.csv", index=False)
    return folder


def test_compare(scripts, tmp_path):
    good, bad = write_run(tmp_path / "good", 1), write_run(tmp_path / "bad", 6)
    code, printed, errors = scripts.run("tools/compare.py", good, bad, "--out", tmp_path / "d.json")
    assert code == 0, errors
    assert "90 cases, 10000 paired resamples of 45 patients" in printed
    found = json.loads((tmp_path / "d.json").read_text())["metrics"]
    assert found["auroc"]["ci95"][0] > 0 and found["auroc"]["p"] < 0.01
    code, printed, errors = scripts.run("tools/compare.py", good, good)
    assert code == 0, errors
    rows = [line for line in printed.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 7 + 3 * 7 and all(row.endswith("| +0.0000 | +0.0000 to +0.0000 | 1.0000 |") for row in rows)


def drop(table):
    return table[table["id"] != "case004"]


def relabel(table):
    return table.assign(label=table["label"].where(table["id"] != "case004", "BENIGN"))


def break_number(table):
    return table.assign(p_BENIGN=["x", *table["p_BENIGN"][1:]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "the test cases differ: 1 only in"),
        (relabel, "1 test cases differ in their label, first case004"),
        (break_number, "row 2: p_BENIGN is 'x'"),
        (lambda table: table[["id"]], "not the predictions of a probe"),
    ],
)
def test_compare_refuses(scripts, tmp_path, change, message):
    one, two = write_run(tmp_path / "one", 1), write_run(tmp_path / "two", 2)
    table = pd.read_csv(two / "predictions.csv")
    if change is relabel:
        table.loc[table["id"] == "case004", "label"] = "MALIGNANT"
        first = pd.read_csv(one / "predictions.csv")
        first.loc[first["id"] == "case004", "label"] = "MALIGNANT"
        first.to_csv(one / "predictions.csv", index=False)
    change(table).to_csv(two / "predictions.csv", index=False)
    code, _, errors = scripts.run("tools/compare.py", one, two)
    assert code == 2 and message in errors and len(errors.strip().splitlines()) == 1


def test_label_efficiency(scripts, tmp_path):
    rng = np.random.default_rng(0)

    def part(n, start):
        labels = np.arange(n) % 3
        rows = np.eye(12)[labels] * 2 + rng.normal(size=(n, 12))
        patients = [f"p{start + i // 2}" for i in range(n)]
        ids = [f"i{start}_{i}" for i in range(n)]
        return {
            "features": torch.from_numpy(rows).float(),
            "labels": torch.from_numpy(labels),
            "ids": ids,
            "patients": patients,
        }

    contents = {"train": part(240, 0), "test": part(90, 1000), "classes": ["a", "b", "c"]}
    torch.save(contents, tmp_path / "features.pt")
    code, _, errors = scripts.run("tools/label_efficiency.py", tmp_path, "--draws", "2")
    assert code == 0, errors
    rows = json.loads((tmp_path / "label_efficiency.json").read_text())["rows"]
    assert [row["percent"] for row in rows] == [1, 5, 10, 25, 50, 100]
    assert [len(row["values"]) for row in rows] == [2] * 5 + [1]
    assert rows[0]["patients"] in (2, 3) and rows[3]["patients"] == 30 and rows[5]["images"] == 240
    assert rows[0]["mean"] < rows[3]["mean"] < 1 and rows[5]["mean"] > 0.9 and rows[5]["low"] is None
    assert (tmp_path / "label_efficiency.png").stat().st_size > 5000
    code, _, errors = scripts.run("tools/label_efficiency.py", tmp_path / "absent")
    assert code == 2 and len(errors.strip().splitlines()) == 1
