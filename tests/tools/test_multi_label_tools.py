"""compare, table, label_efficiency and report on the folders of multi-label probes."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import options
from data.sets import Labelled
from evaluation import results

FINDINGS = ["Edema", "Pleural Effusion", "Fracture"]


def write_probe(out, noise: float, unfitted: int | None = None):
    """The folder of a probe of 60 test cases as main_linear.py writes it; the finding `unfitted` has no probe."""
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 3)) < 0.4).astype(np.float32)
    labels[rng.random((60, 3)) < 0.1] = np.nan
    probabilities = 1 / (
        1 + np.exp(1 - 2 * np.nan_to_num(labels) - noise * np.random.default_rng(1).normal(size=(60, 3)))
    )
    if unfitted is not None:
        probabilities[:, unfitted] = np.nan
    args = options.parse(options.linear_parser(), ["--dataset", "chest", "--probe", "sgd", "--name", out.name])
    ids, patients = [f"i{i:02d}" for i in range(60)], [f"p{i // 2}" for i in range(60)]
    data = dict.fromkeys(("train", "test"), Labelled(ids, labels, FINDINGS, patients, ids, "center"))
    out.mkdir()
    args.pretrained = "none"
    summary = results.summarise(args, data, probabilities, {}, {}, torch.device("cpu"))
    results.write_results(out, summary, data, {split: torch.zeros(60, 4) for split in data}, probabilities)
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return write_probe(root / "good", 1), write_probe(root / "bad", 9, unfitted=2)


def copy(run, target):
    shutil.copytree(run, target)
    return target


def test_compare(scripts, runs, tmp_path):
    good, bad = runs
    code, printed, errors = scripts.run("tools/compare.py", good, bad, "--out", tmp_path / "d.json", "--resamples", 500)
    assert code == 0, errors
    assert "Fracture: not compared: it has no probe in one of the runs" in printed and "30 patients" in printed
    found = json.loads((tmp_path / "d.json").read_text())["metrics"]
    assert not any(name.startswith("Fracture.") for name in found)
    one, two = (json.loads((run / "results.json").read_text()) for run in runs)
    each = [one["per_class"][name]["auroc"] - two["per_class"][name]["auroc"] for name in FINDINGS[:2]]
    assert found["Pleural Effusion.auroc"]["difference"] == pytest.approx(each[1], abs=1e-12)
    assert found["auroc"]["difference"] == pytest.approx(np.mean(each), abs=1e-12)  # of the same findings
    assert found["auroc"]["ci95"][0] > 0
    code, printed, errors = scripts.run("tools/compare.py", good, good, "--resamples", 500)
    assert code == 0 and printed.count("| +0.0000 | +0.0000 to +0.0000 | 1.0000 |") == 5 + 3 * 7, errors


def relabel(table):
    return table.assign(label_Edema=1 - table["label_Edema"])


def as_single(table):
    return table.drop(columns=[f"label_{name}" for name in FINDINGS]).assign(label="Edema")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (relabel, "test cases differ in their label_Edema, first i"),
        (lambda table: table.assign(label_Fracture=3), "row 2: label_Fracture is '3'"),
        (lambda table: table.assign(p_Edema=[np.nan, *table["p_Edema"][1:]]), "row 2: p_Edema is ''"),
        (lambda table: table.drop(columns="p_Edema"), "the classes differ"),
        (lambda table: table.drop(columns="label_Edema"), "not the predictions of a probe"),
        (as_single, "one probe is of a multi-label set, the other is not"),
    ],
)
def test_compare_refuses(scripts, runs, tmp_path, change, message):
    other = copy(runs[0], tmp_path / "other")
    change(pd.read_csv(other / "predictions.csv")).to_csv(other / "predictions.csv", index=False)
    code, _, errors = scripts.run("tools/compare.py", runs[0], other)
    assert code == 2 and message in errors and len(errors.strip().splitlines()) == 1


def test_table(scripts, runs):
    code, printed, errors = scripts.run("tools/table.py", *runs)
    assert code == 0, errors
    assert "| good (" not in printed and "\n| good | " in printed and "confusion" not in printed
    assert f"Not the same findings are in each mean: {runs[0]} 3, {runs[1]} 2" in printed
    assert "Not the same" not in scripts.run("tools/table.py", runs[0], runs[0])[1]


def test_label_efficiency_refuses(scripts, runs):
    code, _, errors = scripts.run("tools/label_efficiency.py", runs[0])
    assert code == 2 and "features.pt: of a multi-label set" in errors and len(errors.strip().splitlines()) == 1


def test_report(scripts, runs, tmp_path):
    code, _, errors = scripts.run("tools/report.py", *runs, "--out", tmp_path / "r.html")
    assert code == 0, errors
    page, text = ((tmp_path / name).read_text() for name in ("r.html", "r.md"))
    assert page.count("<figure>") == 2 + 2 and "ROC curves: good" in page and "Confusion" not in page
    results = json.loads((runs[0] / "results.json").read_text())
    one, (low, high) = results["per_class"]["Fracture"], results["ci95"]["Fracture.auroc"]
    value = f"{100 * one['auroc']:.2f} ({100 * low:.2f} to {100 * high:.2f})"
    assert f"| Fracture ({one['n']} of {one['n_known']}) | {value} | N/A |" in text
    assert "The rows are means over different findings" in text and "| Finding | good, sgd | bad, sgd |" in text
