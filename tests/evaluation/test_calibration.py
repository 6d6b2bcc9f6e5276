"""Temperatures by hand and recovered, folds that keep patients together, and a test split that chooses nothing."""

import dataclasses

import numpy as np
import pytest
import torch

from evaluation import calibration, probes
from evaluation.fitted import Fitted, open_fitted, save_fitted
from test_fitted import arguments, draw


def test_a_temperature_by_hand():
    """Three of four cases are right, all at odds of e^2: the best temperature makes the odds 3, ln 3 = 2 / T."""
    logits, labels = np.array([[2.0, 0.0]] * 4), np.array([0, 0, 0, 1])
    temperature, said = calibration.fit_temperature(logits, labels)
    assert temperature == pytest.approx(2 / np.log(3), abs=1e-4) == said["temperature"]
    after = -(3 * np.log(0.75) + np.log(0.25)) / 4
    before = -(3 * np.log(1 / (1 + np.exp(-2))) + np.log(1 / (1 + np.exp(2)))) / 4
    assert said["out_of_fold"] == {"n": 4, "log_loss": {"before": pytest.approx(before), "after": pytest.approx(after)}}
    blank = np.array([[np.nan, np.nan]])
    assert calibration.fit_temperature(np.concatenate([logits, blank]), np.append(labels, 1))[0] == temperature
    assert np.isnan(calibration.fit_temperature(logits[:3], labels[:3])[0])  # of one kind
    assert calibration.fit_temperature(1e4 * (np.eye(2) - 0.5), np.arange(2))[0] == 1  # any would do


def test_the_temperature_of_known_logits_is_found():
    rng = np.random.default_rng(0)
    logits = np.column_stack([rng.normal(size=(20_000, 3)), np.full(20_000, -np.inf)])  # of the last class no case
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random((20_000, 1)) > chances.cumsum(axis=1)).sum(axis=1)
    assert calibration.fit_temperature(3 * logits, labels)[0] == pytest.approx(3, rel=0.05)


def calibrated(name: str, multi: bool, rows, data, *words):
    """-> the probe, fitted and calibrated, and what results.json says of it."""
    args = arguments("--probe", name, *words)
    probe = probes.choose(args, len(rows), multi)
    classifier, selected = (probe.fit_findings if multi else probe.fit)(rows, data, args)
    fitted = Fitted(classifier, data.classes, "pooled", None, {"width": 7})
    return fitted, calibration.calibrate(fitted, probe, rows, data, args, selected)


@pytest.mark.parametrize(
    ("name", "multi", "words"),
    [("logistic", False, ()), ("knn", False, ()), ("sgd", False, ("--lr", "30", "--epochs", "20")),
     ("logistic", True, ()), ("sgd", True, ("--lr", "30", "--epochs", "20"))],
)  # fmt: skip
def test_calibrated_probabilities(tmp_path, name, multi, words):
    """They divide the logits, keep the order, are the same when read back, and overconfident ones of SGD improve."""
    rows, data = draw(4, multi, 200)
    fitted, said = calibrated(name, multi, rows[:120], probes.take(data, np.arange(120)), *words)
    unseen, test = rows[120:], probes.take(data, np.arange(120, 200))
    save_fitted(fitted, tmp_path)
    plain, found = fitted(unseen), fitted.calibrated(unseen)
    assert open_fitted(tmp_path).calibrated(unseen).tobytes() == found.tobytes()
    calibration.add_test(said, fitted, unseen, test)
    if multi:
        assert np.isnan(fitted.temperature).tolist() == [False] * 3 + [True] and np.isnan(found[:, 3]).all()
        odds = torch.logit(torch.from_numpy(plain[:, :3])).numpy() / fitted.temperature[:3]
        assert found[:, :3] == pytest.approx(1 / (1 + np.exp(-odds)), abs=1e-6)
        assert said["per_class"]["class 3"]["temperature"] is None
        each = [said["per_class"][f"class {k}"] for k in range(3)]
    else:
        assert said["folds"] == (1 if name == "sgd" else 5) and ((found[:, 3] == 0) == (plain[:, 3] == 0)).all()
        if name != "knn":
            powers = plain ** (1 / fitted.temperature)
            assert found == pytest.approx(powers / powers.sum(axis=1, keepdims=True), abs=1e-6)
        assert (found.argmax(axis=1) == plain.argmax(axis=1)).all()
        each = [said]
    for one in each:
        assert one["out_of_fold"]["log_loss"]["after"] <= one["out_of_fold"]["log_loss"]["before"]
        if name == "sgd" and not multi:
            assert one["temperature"] > 1.2 and one["test"]["after"]["log_loss"] < one["test"]["before"]["log_loss"]


@pytest.mark.parametrize("multi", [False, True])
def test_scores_are_of_probes_that_never_saw_the_patient(multi):
    """A probe that remembers the features it was given never meets them, nor another image of their patient."""
    rows, data = draw(3, multi, 60)
    patient = {row.tobytes(): data.patients[i] for i, row in enumerate(rows)}
    met = []

    class Memory(probes.Probe):
        calibration_folds = 5

        def refit(self, rows, data, args, selected):
            known = {patient[row.tobytes()] for row in rows}

            class Remembers:
                def logits(self, unseen):
                    met.extend(patient[row.tobytes()] in known for row in unseen)
                    return np.zeros((len(unseen), len(data.classes)))

            return Remembers()

    selected = {"findings": dict.fromkeys(data.classes)}
    logits, folds = calibration.out_of_fold(Memory(), rows, data, arguments(), selected)
    assert folds == 5 and not any(met) and len(met) == 60 * (2 if multi else 1)  # two findings have both kinds
    assert np.isfinite(logits[:, :2]).all()


def test_a_single_kind_of_case_has_no_temperature():
    rows, data = draw(3, False, 40)
    same = dataclasses.replace(data, labels=np.zeros(40, dtype=np.int64))
    fitted, said = calibrated("sgd", False, rows, same, "--epochs", "1")
    assert fitted.temperature is None and said["temperature"] is None and "two kinds" in said["why"]


def test_without_folds_there_is_no_temperature():
    rows, data = draw(3, False, 40)
    one_case = dataclasses.replace(data, labels=np.arange(40) % 2 + (np.arange(40) == 3))
    args = arguments("--probe", "sgd", "--epochs", "1")
    fitted = Fitted(None, data.classes, "pooled", None, {})
    for given, why in ((rows, "no folds"), (None, "no training features")):
        said = calibration.calibrate(fitted, probes.SGD(), given, one_case, args, {})
        assert said["temperature"] is None and why in said["why"] and fitted.temperature is None
