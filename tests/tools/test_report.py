"""tools/report.py on small runs made by hand."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation import metrics
from test_tools import write_run
from tools import report
from tools.compare import compare, read_predictions
from tools.report_page import embedding_map
from tools.report_page.figures import inline_svg
from tools.report_page.runs import read_json
from utils import InputError

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["MALIGNANT", "BENIGN", "BENIGN_WITHOUT_CALLBACK"]


@pytest.fixture
def runs(tmp_path):
    """A probe with a hostile name, and a training run with retrieval examples, one of them without its image."""
    probe = write_run(tmp_path / "probe", 1)
    table = read_predictions(probe)
    labels = np.array([CLASSES.index(name) for name in table["label"]])
    probabilities = table[[f"p_{name}" for name in CLASSES]].to_numpy()
    scores = metrics.classification_report(labels, probabilities, CLASSES)
    Image.fromarray(np.arange(6400, dtype=np.uint32).reshape(80, 80).astype(np.uint8)).save(tmp_path / "a.png")
    results = {
        "dataset": "cbis_calc", "encoder": {"name": "<script>alert(1)</script> | x"}, "n_train": 5, "n_test": 90,
        "classes": CLASSES, **scores, "selected": {"probe": "logistic", "C": 1.0},
        "ci95": metrics.bootstrap_intervals(labels, probabilities, CLASSES, list(table["patient"]), 200),
        "audit": {"patients_in_both": 0, "near_duplicates": None},
        "hardest": [{"id": "case1", "label": "BENIGN", "predicted": "MALIGNANT", "p_label": 0.1,
                     "path": str(tmp_path / "a.png")}],
        "run": {"args": {"root": "phantoms/cbis", "seed": 0, "skip_broken": True}, "versions": {"torch": "2"}},
    }  # fmt: skip
    (probe / "results.json").write_text(json.dumps(results))
    rows = [{"percent": p, "patients": p, "images": p, "values": [0.6, 0.7], "mean": 0.65, "low": 0.5, "high": 0.8}
            for p in (10, 50)]  # fmt: skip
    (probe / "label_efficiency.json").write_text(json.dumps({"metric": "auroc", "rows": rows}))
    training = tmp_path / "training"
    training.mkdir()
    (training / "config.json").write_text(json.dumps({"args": {"epochs": 2, "betas": [0.9, 0.98]}, "versions": {}}))
    lines = [{"epoch": e, "train_loss": 4.0 - e, "val_i2t_r1": e, "val_t2i_r10": 10 + e} for e in (0, 1)]
    (training / "log.txt").write_text("".join(json.dumps(line) + "\n" for line in lines))
    example = {"id": "ROCO_1", "path": str(tmp_path / "a.png"), "caption": "a <b>mass</b>", "rank": 1,
               "retrieved": [{"id": "ROCO_1", "caption": "a <b>mass</b>", "score": 0.9}]}  # fmt: skip
    absent = {**example, "path": str(tmp_path / "gone.png"), "rank": 9}
    retrieval = {"pairs": 8, "metrics": {"i2t_r1": 50.0}, "ci95": {"i2t_r1": [40.0, 60.0]},
                 "examples": {"good": [example], "bad": [absent]}}  # fmt: skip
    (training / "retrieval.json").write_text(json.dumps(retrieval))
    return probe, training


def make(out, *folders, title="x", baseline=(), cam=0) -> None:
    report.main(SimpleNamespace(runs=folders, out=out, title=title, baseline=baseline, resamples=200, cam=cam))


def refuse(out, *folders) -> str:
    with pytest.raises(InputError) as caught:
        make(out, *folders)
    return str(caught.value)


def test_page_and_tables(scripts, runs, tmp_path):
    code, printed, errors = scripts.run("tools/report.py", *runs, "--out", tmp_path / "r.html")
    assert code == 0 and "r.html" in printed, errors
    page = (tmp_path / "r.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "a &lt;b&gt;mass" in page
    outside = re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page)
    assert not outside and "@import" not in page and "url(http" not in page
    assert page.count('<tr class="published">') == 11 and "none of them was reproduced here" in page
    assert "drawn by a program" in page and "MedSLIP-ViT (only mammo)" in page
    assert page.count("<svg ") == 4 + 1 + 2 and page.count("data:image/jpeg") == 2
    assert "The image is not there any more." in page
    for why in ("Where the encoder looks is not shown", "Map of the test embeddings", '<p class="absent">Not shown'):
        assert page.count(why) == 1  # neither the probe, nor its features, nor the training's data is there
    assert "python main.py --epochs 2 --betas 0.9 0.98" in page and "--skip-broken" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    results = json.loads((runs[0] / "results.json").read_text())
    value, (low, high) = 100 * results["macro"]["auroc"], (100 * one for one in results["ci95"]["auroc"])
    text = f"{value:.2f} ({low:.2f} to {high:.2f})"
    assert text in (tmp_path / "r.md").read_text()
    assert f"{value:.2f}<small>{low:.2f} to {high:.2f}</small>" in page
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    (ours,) = [
        row for row in rows if row["kind"] == "ours" and row["column"] == "AUROC" and row["table"] == "cbis_calc"
    ]
    assert float(ours["value"]) == pytest.approx(value, rel=1e-5) and float(ours["low"]) == pytest.approx(low, rel=1e-5)


class Page(HTMLParser):
    """A page's elements with the names of their attributes, and the words that it shows."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.words = [], ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, [name for name, _ in attributes]))
        self.words += "".join(f"[{value}]" for name, value in attributes if name in ("alt", "aria-label"))

    def handle_data(self, data):
        self.words += data


def test_words_are_shown_as_they_are(runs, tmp_path):
    """Markup, quotes and the template's own signs in a run's words change nothing of the page but its words."""
    probe, training = runs
    results, retrieval = (read_json(path) for path in (probe / "results.json", training / "retrieval.json"))
    pages = {}
    for word in ("plain", "\"'><script>x</script></style><img src=x onerror=x> &amp; {{ 7 * 7 }} {% if x %} {# y #}"):
        results["dataset"] = results["encoder"]["name"] = results["hardest"][0]["id"] = word
        results["audit"] = {word: {word: word}}
        results["run"] = {"args": {"name": word}, "git_commit": word, "device": word, "versions": {word: word}}
        for one in (retrieval["examples"][kind][0] for kind in ("good", "bad")):
            one |= {"id": word, "caption": word, "retrieved": [{"id": word, "caption": word, "score": 0.5}] * 2}
        (probe / "results.json").write_text(json.dumps(results))
        (training / "retrieval.json").write_text(json.dumps(retrieval))
        make(tmp_path / "r.html", *runs, title=word, baseline=[probe], cam=1)
        pages[word] = Page(tmp_path / "r.html")
    plain, hostile = pages.values()
    assert hostile.elements == plain.elements
    assert hostile.words.count(word) == plain.words.count("plain") > 20


def test_older_results_and_damage(scripts, runs, tmp_path):
    probe, training = runs
    results = json.loads((probe / "results.json").read_text())
    for name in ("audit", "hardest"):
        del results[name]
    for one in (results["macro"], *results["per_class"].values()):
        one.pop("average_precision")
    (probe / "results.json").write_text(json.dumps(results))
    make(tmp_path / "r.html", probe)
    (tmp_path / "r.html").unlink()
    for path, text, message in (
        (probe / "results.json", '{"dataset"', "results.json: damaged JSON"),
        (probe / "results.json", "{}", "results.json: lacks ci95, classes"),
        (training / "log.txt", '{"epoch": 0}\n{"ep', "log.txt, line 2: damaged JSON"),
    ):
        kept = path.read_text()
        path.write_text(text)
        assert message in refuse(tmp_path / "r.html", *runs)
        path.write_text(kept)
    code, _, errors = scripts.run("tools/report.py", tmp_path, "--out", tmp_path / "r.html")
    assert code == 2 and "neither results.json nor config.json" in errors and len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "r.html").exists()


def test_differences_from_a_baseline(runs, tmp_path):
    """Each probe of the baseline's test cases as tools/compare.py compares it; another is named, with the reason."""
    probe, _ = runs
    results = json.loads((probe / "results.json").read_text())
    folders = {"probe": probe, "other": write_run(tmp_path / "other", 6), "less": write_run(tmp_path / "less", 2, n=80)}
    for name, folder in folders.items():
        results["encoder"]["name"] = name
        (folder / "results.json").write_text(json.dumps(results))
    make(tmp_path / "r.html", *folders.values(), baseline=[folders["other"]])
    rows = {
        (row["row"], row["column"]): row
        for row in csv.DictReader((tmp_path / "r.csv").open())
        if row["table"] == "cbis_calc: differences from the baseline"
    }
    assert {column for _, column in rows} == {"probe, logistic"}
    tables = [read_predictions(folders[name]) for name in ("probe", "other")]
    expected = compare(*tables, ("a", "b"), resamples=200)["metrics"]["MALIGNANT.recall"]
    found = [float(rows["Recall (Malignant)", "probe, logistic"][name]) for name in ("value", "low", "high", "p")]
    assert found == pytest.approx(
        [100 * expected["difference"], *(100 * x for x in expected["ci95"]), expected["p"]], 1e-4
    )
    page, text = (tmp_path / "r.html").read_text(), (tmp_path / "r.md").read_text()
    for shown in (page, text):
        assert "200 paired resamples of the 90 test cases" in shown and "45 patients" in shown
        assert f"Not compared: {folders['less']}: the test cases differ: 10 only in" in shown
    assert "| AUROC | +" in text and ", p = 0.0" in text


def write_features(folder, labels, patients=None) -> dict:
    """A probe's folder with the features of these test labels -> what map_figures takes."""
    labels = torch.from_numpy(labels)
    rows = torch.randn(len(labels), 8)
    rows[:, 0] += 9 * labels.reshape(len(labels), -1)[:, 0]
    test = {"features": rows, "labels": labels, "ids": list(map(str, range(len(rows)))), "patients": patients or []}
    folder.mkdir()
    torch.save({"test": test, "classes": ["a", "b"]}, folder / "features.pt")
    return {"folder": str(folder), "encoder": {"name": "x"}}


def test_the_map_of_test_embeddings(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_map, "AS_PIXELS", 40)
    monkeypatch.setattr(embedding_map, "MOST", 50)
    few = write_features(tmp_path / "few", np.arange(30) % 2, [str(i // 2) for i in range(30)])
    points = embedding_map.project(embedding_map.read_embeddings(tmp_path / "few")["features"])
    assert np.array_equal(points, embedding_map.project(embedding_map.read_embeddings(tmp_path / "few")["features"]))
    nearest = [np.linalg.norm(points - one, axis=1).argsort()[1] for one in points]
    assert np.mean(np.array(nearest) % 2 == np.arange(30) % 2) > 0.9
    (first, by_class), (second, by_patient) = embedding_map.map_figures(few)
    assert "of 30 test cases, by class" in first and "15 patients; lines link the images of each of the 15" in second
    svg = inline_svg(by_class, first, 1)
    assert "data:image/png" not in svg and "B (15)" in svg and svg.count("<use ") >= 30
    inline_svg(by_patient, second, 2)
    many = write_features(tmp_path / "many", (np.arange(180).reshape(60, 3) % 4 == 0).astype(np.float32))
    ((title, figure),) = embedding_map.map_figures(many)
    svg = inline_svg(figure, title, 3)
    assert "50 of 60 test cases, drawn, by the number of findings" in title
    assert "data:image/png" in svg and svg.count("<use ") < 30
    alike = write_features(tmp_path / "alike", np.arange(30) % 2)
    contents = torch.load(tmp_path / "alike" / "features.pt")
    contents["test"]["features"][:] = contents["test"]["features"][0]
    torch.save(contents, tmp_path / "alike" / "features.pt")
    with pytest.raises(InputError, match="all alike"):
        next(embedding_map.map_figures(alike))
    for labels, message in ((np.arange(19) % 2, "no map of 19 test embeddings"), (None, "not the features of a probe")):
        folder = tmp_path / f"{labels is None}"
        if labels is None:
            folder.mkdir()
            torch.save({"train": 1}, folder / "features.pt")
        else:
            write_features(folder, labels)
        with pytest.raises(InputError, match=message):
            next(embedding_map.map_figures({"folder": str(folder), "encoder": {"name": "x"}}))


def test_published_rows():
    published = read_json(ROOT / "tools" / "published_results.json")
    assert published["status"] == "published, not reproduced here"
    assert len(published["columns"]) == 7 and [len(rows) for rows in published["tables"].values()] == [11, 11]
    best = {row["model"]: row["values"] for row in published["tables"]["cbis_calc"]}
    assert best["MedSLIP-ViT (only mammo)"] == [83.17, 67.09, 67.55, 67.29, 66.98, 55.03]
    readme = (ROOT / "README.md").read_text()
    for rows in published["tables"].values():
        for row in rows:
            found = [line for line in readme.splitlines() if line.startswith(f"| {row['model']} |")]
            values = [[None if one == "N/A" else float(one) for one in line.split(" | ")[1:6]] for line in found]
            assert row["values"][:5] in values
