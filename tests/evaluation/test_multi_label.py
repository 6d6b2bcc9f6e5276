"""Multi-label sets: a probe and the metrics of each finding, by hand and against scikit-learn."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score
from sklearn.preprocessing import StandardScaler

import main_linear
import options
from conftest import run_cli
from data.sets import Labelled
from evaluation import metrics, probes, results
from utils import InputError

NAN = math.nan
FINDINGS = ["Edema", "Pleural.Effusion", "Fracture"]


def labelled(labels, first=0, classes=FINDINGS) -> Labelled:
    """A set of two images a patient; the images themselves are never asked for."""
    numbers = range(first, first + len(labels))
    ids, patients = [f"i{i}" for i in numbers], [f"p{i // 2}" for i in numbers]
    return Labelled(ids, np.array(labels, np.float32), list(classes), patients, [f"{i}.png" for i in ids], "center")


def draw(n, seed=0, unknown=0.2):
    """Features (n, 8) of which the first three tell the findings, and labels of which some are unknown."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 8)).astype(np.float32)
    labels = (rows[:, :3] + 0.7 * rng.normal(size=(n, 3)) > 0.3).astype(np.float32)
    labels[rng.random((n, 3)) < unknown] = NAN
    return rows, labels


def arguments(*words):
    return options.parse(options.linear_parser(), ["--dataset", "chest", *words])


# Metrics


def test_report_by_hand():
    labels = np.array([[1, 1], [0, 1], [1, NAN], [0, NAN], [NAN, 1], [1, NAN]])
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.3, 0.4], [0.99, 0.5], [0.2, 0.6]])
    report = metrics.classification_report(labels, scores, ["a", "b"])
    assert report["per_class"]["a"] == {
        "auroc": pytest.approx(3 / 6),  # of the pairs of a positive and a negative case
        "average_precision": pytest.approx((1 + 2 / 3 + 3 / 5) / 3),
        "f1": pytest.approx(2 / 3),
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
        "sensitivity_at_80_specificity": pytest.approx(1 / 3),
        "sensitivity_at_90_specificity": pytest.approx(1 / 3),
        "n": 3,
        "n_known": 5,
    }
    absent = report["per_class"]["b"]  # never known to be absent
    assert absent.pop("n") == absent.pop("n_known") == 3 and set(absent.values()) == {None}
    assert report["macro"] == {name: report["per_class"]["a"][name] for name in metrics.MACRO}
    without_probe = metrics.classification_report(labels, np.full((6, 2), NAN), ["a", "b"])
    assert set(without_probe["macro"].values()) == {None} and without_probe["per_class"]["a"]["n_known"] == 5


def scikit_learns(labels, scores) -> dict:
    known = ~np.isnan(labels)
    positive, scores = labels[known] == 1, scores[known]
    if not 0 < positive.sum() < len(positive):
        return dict.fromkeys(("auroc", "average_precision", "precision", "recall", "f1"), NAN)
    both = {"average": "binary", "zero_division": 0}
    precision, recall, f1, _ = precision_recall_fscore_support(positive, scores >= 0.5, **both)
    auroc, average_precision = roc_auc_score(positive, scores), average_precision_score(positive, scores)
    return {"auroc": auroc, "average_precision": average_precision, "precision": precision, "recall": recall, "f1": f1}


def test_every_resample_is_scikit_learns():
    """Ties, unknown labels, and a finding so rare that some resamples miss it."""
    _, labels = draw(90)
    labels[labels[:, 2] == 1, 2] = 0
    labels[[4, 5], 2] = 1
    scores = np.random.default_rng(1).random((90, 3)).round(1)
    group = np.arange(90) // 2
    weights = metrics.draw_weights(np.random.default_rng(2), group, 30)
    found = metrics.weighted_scores(labels, scores, FINDINGS, weights)
    for row, weight in enumerate(weights):
        rows = np.repeat(np.arange(90), weight.astype(int))
        each = [scikit_learns(labels[rows, k], scores[rows, k]) for k in range(3)]
        for name in metrics.MACRO:
            values = [one[name] for one in each]
            assert [found[f"{one}.{name}"][row] for one in FINDINGS] == pytest.approx(values, abs=1e-12, nan_ok=True)
            assert found[name][row] == pytest.approx(np.mean(values), abs=1e-12, nan_ok=True)
    assert 0 < np.isnan(found["Fracture.auroc"]).sum() < 30 and np.isfinite(found["Edema.auroc"]).all()


def test_intervals_and_differences():
    rows, labels = draw(400)
    good, bad = 1 / (1 + np.exp(-3 * rows[:, :3])), np.random.default_rng(4).random((400, 3))
    patients = [f"p{i // 2}" for i in range(400)]
    intervals = metrics.bootstrap_intervals(labels, good, FINDINGS, patients, 300)
    points = metrics.flat(metrics.classification_report(labels, good, FINDINGS))
    assert set(points) == set(intervals)
    assert all(intervals[name][0] <= value <= intervals[name][1] for name, value in points.items())
    found = metrics.paired_difference(labels, good, bad, FINDINGS, patients, 300)
    assert found["auroc"]["difference"] > 0.2 and found["auroc"]["p"] < 0.01
    good[:, 1] = NAN
    found = metrics.paired_difference(labels, good, bad, FINDINGS, patients, 300)
    assert "Edema.auroc" in found and "Pleural.Effusion.auroc" not in found
    intervals = metrics.bootstrap_intervals(labels, good, FINDINGS, patients, 300)
    assert intervals["Pleural.Effusion.auroc"] is None and intervals["auroc"] is not None


# Probes


def test_logistic_is_scikit_learns_of_the_known_rows():
    rows, labels = draw(160)
    unseen, _ = draw(30, seed=9)
    predict, selected = probes.Logistic().fit_findings(rows, labelled(labels), arguments("--probe", "logistic"))
    probabilities = predict(unseen)
    for k, name in enumerate(FINDINGS):
        known = ~np.isnan(labels[:, k])
        scaler = StandardScaler().fit(rows[known].astype(np.float64))
        model = LogisticRegression(C=selected["findings"][name]["C"], max_iter=2000)
        model.fit(scaler.transform(rows[known]), labels[known, k])
        assert probabilities[:, k] == pytest.approx(model.predict_proba(scaler.transform(unseen))[:, 1], abs=1e-4)
    assert set(selected["findings"]) == set(FINDINGS) and selected["findings"]["Edema"]["folds"] == 5


def test_sgd_fits_each_finding_as_if_it_were_alone():
    rows, labels = draw(150)
    args = arguments("--probe", "sgd", "--epochs", "6", "--lr", "0.5", "--batch-size", "32")
    predict, selected = probes.SGD().fit_findings(rows, labelled(labels), args)
    together = predict(rows)
    assert together.shape == (150, 3) and selected["epochs"] == 6
    begin = torch.nn.init.normal_(torch.empty(3, 8), std=0.01, generator=torch.Generator().manual_seed(0)).numpy()
    weight, moved, order = np.append(begin[0], 0.0), 0, torch.Generator().manual_seed(0)
    for epoch in range(6):
        for batch in torch.randperm(150, generator=order).split(32):
            x, y = np.column_stack([rows[batch], np.ones(len(batch))]), labels[batch, 0]
            error = np.where(np.isnan(y), 0, 1 / (1 + np.exp(-x @ weight)) - y)
            moved = 0.9 * moved + x.T @ error / len(batch)
            weight = weight - 0.5 * 32 / 256 * 0.5 * (1 + math.cos(math.pi * epoch / 6)) * moved
    assert together[:, 0] == pytest.approx(1 / (1 + np.exp(-np.column_stack([rows, np.ones(150)]) @ weight)), abs=1e-5)
    assert all(one["auroc"] > 0.8 for one in metrics.findings_report(labels, together, FINDINGS)["per_class"].values())


def test_the_loss_of_unknown_labels_is_none():
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]], requires_grad=True)
    loss = probes.known_cross_entropy(logits, torch.tensor([[1.0, NAN], [0.0, NAN]]))
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(0.5))) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert (logits.grad[:, 1] == 0).all() and (logits.grad[:, 0] != 0).all()


@pytest.mark.parametrize("name", ["sgd", "knn"])
def test_a_finding_without_a_probe(name, capsys, caplog):
    """Never present, never absent, never known: probabilities of nan, and a line for each."""
    rows, labels = draw(120)
    labels[:, 1] = np.where(np.isnan(labels[:, 1]), NAN, 0)
    data = labelled(
        np.column_stack([labels, np.ones(120), np.full(120, NAN)]), classes=[*FINDINGS, "Always", "Unknown"]
    )
    args = arguments("--probe", name)
    with caplog.at_level("WARNING", logger="medslip"):
        predict, _ = probes.choose(args, 120, True).fit_findings(rows, data, args)
    for text in ("Pleural.Effusion: no probe, N/A: the training split has no positive case",
                 "Always: no probe, N/A: the training split has no negative case",
                 "Unknown: no probe, N/A: the training split has no known case"):  # fmt: skip
        assert text in caplog.text + "".join(capsys.readouterr())
    probabilities = predict(rows)
    assert np.isnan(probabilities[:, [1, 3, 4]]).all() and np.isfinite(probabilities[:, [0, 2]]).all()
    assert roc_auc_score(labels[:, 0] == 1, np.where(np.isnan(labels[:, 0]), 0, probabilities[:, 0])) > 0.7


def test_too_few_cases_for_folds():
    rows, labels = draw(40)
    labels[:, 0] = np.arange(40) == 3
    args = arguments("--probe", "logistic")
    predict, selected = probes.Logistic().fit_findings(rows, labelled(labels), args)
    assert np.isnan(predict(rows)[:, 0]).all() and set(selected["findings"]) == set(FINDINGS[1:])
    with pytest.raises(InputError, match="no finding of --dataset chest has cases enough"):
        probes.Logistic().fit_findings(rows, labelled(labels[:, :1], classes=["Edema"]), args)


def test_the_published_recipe_is_refused():
    with pytest.raises(InputError, match=r"--probe medslip: .* take logistic, sgd, knn, zeroshot"):
        probes.choose(arguments("--probe", "medslip"), 10, True)
    assert not probes.choose(arguments("--probe", "medslip"), 10).multi


def test_zero_shot_sets_a_findings_prompts_against_those_of_its_absence(roco, tmp_path, capsys):
    import main

    words = ["--root", roco, "--text-model", "tiny", "--objective", "clip", "--batch-size", "8", "--epochs", "1"]
    words += ["--arch", "test_efficientnet", "--pretrained", "none", "--image-size", "32", "--workers", "0"]
    words += ["--output-dir", tmp_path / "run", "--device", "cpu", "--cache", "none", "--ssl-mlp-dim", "16"]
    code, _, errors = run_cli(capsys, main.main, options.train_parser, *words)
    assert code == 0, errors
    args = arguments("--probe", "zeroshot", "--pretrained", str(tmp_path / "run" / "checkpoint.pt"))
    contents, path = main_linear.read_pretrained(args)
    unseen = np.random.default_rng(0).normal(size=(5, 512)).astype(np.float32)

    def ask(multi: bool, classes):
        probe = probes.choose(args, 24, multi)
        probe.make_model(args, contents, path, classes)[0].eval()
        predict, selected = (probe.fit_findings if multi else probe.fit)(None, None, args)
        return predict(unseen), selected["prompts"]

    found, prompts = ask(True, ["Mass", "Cyst"])
    expected = [ask(False, [f"no {name}", name])[0][:, 1] for name in ("Mass", "Cyst")]
    assert found == pytest.approx(np.stack(expected, axis=1), abs=1e-6) and prompts == 20
    assert (np.abs(found - 0.5) > 1e-4).all()


# What main_linear.py says and writes


def test_counts():
    data = labelled([[1, 0, NAN], [0, 0, NAN], [NAN, 1, NAN]])
    named, lack = main_linear.count_labels(data)
    assert named == ": Edema 1 of 2 known, Pleural.Effusion 1 of 3 known, Fracture 0 of 0 known" and lack == ""
    assert main_linear.count_labels(labelled([[1, 0, NAN], [1, 0, NAN]]))[1].startswith("no finding that is present")


def write_probe(out, probabilities, labels, name="logistic"):
    """A folder as main_linear.py writes it for these test cases -> results.json, read again."""
    args = arguments("--probe", name, "--arch", "resnet10t", "--pretrained", "none", "--features", "pooled")
    data = {"train": labelled(labels), "test": labelled(labels, first=1000)}
    out.mkdir()
    summary = results.summarise(args, data, probabilities, {"findings": {}}, {}, torch.device("cpu"))
    found = {split: torch.zeros(len(labels), 4) for split in data}
    results.write_results(out, summary, data, found, probabilities)
    results.print_results(summary)
    return json.loads((out / "results.json").read_text())


def test_files(tmp_path, capsys):
    rows, labels = draw(60)
    probabilities = 1 / (1 + np.exp(-rows[:, :3].astype(np.float64)))
    probabilities[:, 2] = NAN
    summary = write_probe(tmp_path / "out", probabilities, labels)
    assert summary["multi_label"] is True and summary["threshold"] == 0.5 and summary["classes"] == FINDINGS
    assert summary["macro_over"] == FINDINGS[:2] and summary["n_test"] == 60 and "hardest" not in summary
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert list(table) == [
        "id",
        "patient",
        *(f"label_{name}" for name in FINDINGS),
        *(f"p_{name}" for name in FINDINGS),
    ]
    for k, name in enumerate(FINDINGS):
        np.testing.assert_array_equal(table[f"label_{name}"], labels[:, k])
        np.testing.assert_array_equal(table[f"p_{name}"], probabilities[:, k])
    aurocs = [scikit_learns(labels[:, k], probabilities[:, k])["auroc"] for k in range(2)]
    assert summary["macro"]["auroc"] == pytest.approx(np.mean(aurocs), abs=1e-12)
    assert summary["per_class"]["Fracture"]["auroc"] is None and summary["ci95"]["Fracture.auroc"] is None
    kept = torch.load(tmp_path / "out" / "features.pt", weights_only=True)
    np.testing.assert_array_equal(kept["test"]["labels"].numpy(), labels)
    assert (tmp_path / "out" / "roc.png").stat().st_size > 5000 and not (tmp_path / "out" / "confusion.png").exists()
    printed = capsys.readouterr().out
    assert f"| resnet10t (none) | {100 * np.mean(aurocs):.2f} | " in printed
    n, of = (labels[:, 2] == 1).sum(), np.isfinite(labels[:, 2]).sum()
    assert f"| Fracture | {n} | {of} | N/A | N/A | N/A | N/A |" in printed
    assert "Macro: the mean over 2 of 3 findings" in printed
    labels[0, 0] = NAN if labels[0, 0] == 1 else 1
    again = write_probe(tmp_path / "again", probabilities, labels)
    assert again["data"]["test"]["sha256"] != summary["data"]["test"]["sha256"]
