"""Metrics worked out by hand, and the bootstrap against scikit-learn and a closed form."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import metrics

CLASSES = ["a", "b", "c"]


def predictions(n=120, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    logits = rng.normal(size=(n, 3)).round(1)  # rounded: ties matter
    logits[np.arange(n), labels] += 1
    return labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_report_by_hand():
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
    report = metrics.classification_report(labels, probabilities, ["x", "y"])
    assert report["per_class"]["x"] == {
        "auroc": 1.0,
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "n": 2,
    }
    assert report["per_class"]["y"]["precision"] == pytest.approx(2 / 3)
    assert report["macro"]["recall"] == 0.75 and report["macro"]["f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_report_with_an_absent_class():
    report = metrics.classification_report(np.array([0, 1, 1]), np.eye(3)[[0, 1, 0]], CLASSES)
    assert report["per_class"]["c"]["auroc"] is None and report["macro"]["auroc"] is None
    assert report["per_class"]["c"]["n"] == 0


def test_weighted_auroc_is_scikit_learns():
    labels, probabilities = predictions()
    weights = np.random.default_rng(1).integers(0, 4, (5, len(labels))).astype(float)
    for k in range(3):
        found = metrics.weighted_auroc(labels == k, probabilities[:, k], weights)
        for row, value in zip(weights, found, strict=True):
            assert value == pytest.approx(roc_auc_score(labels == k, probabilities[:, k], sample_weight=row), abs=1e-12)


def test_bootstrap_of_a_proportion():
    """Recall of one always-right and one half-right class: its interval is the binomial's."""
    n = 400
    labels = np.repeat([0, 1], n)
    predicted = np.concatenate([np.zeros(n, int), np.arange(n) % 2])
    intervals = metrics.bootstrap_intervals(labels, np.eye(2)[predicted], ["x", "y"], resamples=4000)
    half = 1.96 * np.sqrt(0.25 / n) / 2  # the mean of 1 and a proportion over about n cases
    assert intervals["recall"] == pytest.approx([0.75 - half, 0.75 + half], abs=0.004)


def test_bootstrap_resamples_patients():
    labels, probabilities = predictions(60)
    doubled = [np.repeat(one, 2, axis=0) for one in (labels, probabilities)]
    patients = [f"p{i // 2}" for i in range(120)]
    by_patient = metrics.bootstrap_intervals(*doubled, CLASSES, patients, seed=3)
    alone = metrics.bootstrap_intervals(labels, probabilities, CLASSES, [f"p{i:02d}" for i in range(60)], seed=3)
    by_row = metrics.bootstrap_intervals(*doubled, CLASSES, None, seed=3)
    for name in by_patient:
        width = by_patient[name][1] - by_patient[name][0]
        assert width == pytest.approx(alone[name][1] - alone[name][0], rel=0.1)
        assert by_row[name][1] - by_row[name][0] < 0.85 * width


def test_retrieval_by_hand():
    image = torch.eye(4)
    text = torch.eye(4)[[0, 1, 3, 2]]
    found = metrics.retrieval(image, text, ks=(1, 2))
    assert found == {"i2t_r1": 50, "i2t_r2": 50, "t2i_r1": 50, "t2i_r2": 50}  # the swapped two tie with two others
    found = metrics.retrieval(image + 0.01 * text, text, ks=(1, 2), block=3)
    assert found["i2t_r1"] == 50 and found["i2t_r2"] == 100


def test_a_collapsed_model_is_not_perfect():
    same = torch.ones(100, 8)
    assert metrics.retrieval(same, same, ks=(10,))["i2t_r10"] == 0
    torch.manual_seed(0)
    noise = torch.nn.functional.normalize(torch.randn(1000, 2), dim=-1)
    other = torch.nn.functional.normalize(torch.randn(1000, 2), dim=-1)
    assert metrics.retrieval(noise, other, ks=(100,))["i2t_r100"] == pytest.approx(10, abs=3)


def test_embeddings_that_are_not_numbers_retrieve_nothing():
    nothing = torch.full((20, 4), float("nan"))
    assert set(metrics.retrieval(nothing, nothing).values()) == {0.0}


def test_intervals_of_many_classes_need_no_square_table():
    n, k = 3000, 1000
    labels = np.arange(n) % k
    probabilities = np.full((n, k), 1 / k)
    assert metrics.bootstrap_intervals(np.tile(labels, 2), np.tile(probabilities, (2, 1)), list(range(k)))["f1"] is None
