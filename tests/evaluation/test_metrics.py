"""Metrics worked out by hand, and the bootstrap against scikit-learn and a closed form."""

import numpy as np
import pytest
import torch

from evaluation import metrics

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
        "average_precision": 1.0,
        "sensitivity_at_80_specificity": 1.0,
        "sensitivity_at_90_specificity": 1.0,
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


def test_every_resample_is_scikit_learns():
    """Each metric of each resample against the report by scikit-learn of the resample's rows, written out."""
    labels, probabilities = predictions()
    group = np.random.default_rng(5).integers(0, 40, len(labels))
    group = np.unique(group, return_inverse=True)[1]
    weights = metrics.draw_weights(np.random.default_rng(1), group, 25)
    found = metrics.weighted_scores(labels, probabilities, CLASSES, weights)
    for row, weight in enumerate(weights):
        assert all(len(set(weight[group == one])) == 1 for one in range(group.max() + 1))  # a patient's cases together
        rows = np.repeat(np.arange(len(labels)), weight.astype(int))
        expected = metrics.flat(metrics.classification_report(labels[rows], probabilities[rows], CLASSES))
        assert set(expected) == set(found)
        for name, value in expected.items():
            assert found[name][row] == pytest.approx(value, abs=1e-12), name


def test_a_class_that_a_resample_misses_is_left_out():
    labels, probabilities = predictions(9)
    weights = np.ones((2, 9))
    weights[0, labels == 2] = 0
    found = metrics.weighted_scores(labels, probabilities, CLASSES, weights)
    assert np.isnan(found["auroc"][0]) and np.isnan(found["c.auroc"][0]) and np.isfinite(found["a.auroc"]).all()
    assert np.isfinite(found["f1"]).all()


def test_sensitivity_calibration_and_brier_by_hand():
    labels = np.array([0] * 5 + [1] * 10)
    first = np.array([0.9, 0.8, 0.55, 0.3, 0.1] + [0.85, 0.6, 0.5, 0.45, 0.4, 0.35, 0.25, 0.2, 0.15, 0.05])
    report = metrics.classification_report(labels, np.stack([first, 1 - first], axis=1), ["MALIGNANT", "BENIGN"])
    malignant = report["per_class"]["MALIGNANT"]
    assert malignant["sensitivity_at_90_specificity"] == pytest.approx(2 / 5)  # above the second of ten negatives
    assert malignant["sensitivity_at_80_specificity"] == pytest.approx(3 / 5)
    always = np.tile([0.7, 0.3], (15, 1))  # says 0.7 and is right in a third
    report = metrics.classification_report(labels, always, ["MALIGNANT", "BENIGN"])
    assert report["macro"]["ece"] == pytest.approx(0.7 - 1 / 3)
    assert report["macro"]["brier"] == pytest.approx((5 * 2 * 0.3**2 + 10 * 2 * 0.7**2) / 15)
    assert report["macro"]["average_precision"] == pytest.approx((1 / 3 + 2 / 3) / 2)


def test_paired_difference():
    labels, probabilities = predictions(300)
    same = metrics.paired_difference(labels, probabilities, probabilities, CLASSES)
    assert all(one == {"difference": 0.0, "ci95": [0.0, 0.0], "p": 1.0} for one in same.values())
    noise = np.random.default_rng(3).dirichlet((1, 1, 1), 300)
    found = metrics.paired_difference(labels, probabilities, noise, CLASSES, [f"p{i // 3}" for i in range(300)])
    assert found["auroc"]["p"] < 0.01 and found["auroc"]["ci95"][0] > 0.1
    other = metrics.paired_difference(labels, noise, probabilities, CLASSES, [f"p{i // 3}" for i in range(300)])
    assert other["auroc"]["difference"] == -found["auroc"]["difference"] and other["auroc"]["p"] == found["auroc"]["p"]


def test_p_values_of_equal_models_are_uniform():
    """Two noisy readings of one score differ by chance: p is below 0.1 in about a tenth of the trials."""
    rng = np.random.default_rng(0)
    values = []
    for _ in range(150):
        labels = np.arange(120) % 2
        one, two = (1 / (1 + np.exp(-(labels - 0.5 + rng.normal(size=120)))) for _ in range(2))
        tables = [np.stack([1 - p, p], axis=1) for p in (one, two)]
        values.append(metrics.paired_difference(labels, *tables, ["x", "y"], resamples=200)["auroc"]["p"])
    assert 0.03 < np.mean(np.array(values) < 0.1) < 0.2


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
    for name in ("auroc", "average_precision", "f1", "precision", "recall", "brier"):
        width = by_patient[name][1] - by_patient[name][0]
        assert width == pytest.approx(alone[name][1] - alone[name][0], rel=0.1)
        assert by_row[name][1] - by_row[name][0] < 0.85 * width


def test_retrieval_by_hand():
    image = torch.eye(4)
    text = torch.eye(4)[[0, 1, 3, 2]]
    found = metrics.retrieval(image, text, ks=(1, 2))
    expected = {"i2t_r1": 50, "i2t_r2": 50, "t2i_r1": 50, "t2i_r2": 50}  # the swapped two tie with two others
    assert {name: value for name, value in found.items() if "median" not in name} == expected
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
    found = metrics.retrieval(nothing, nothing)
    assert {value for name, value in found.items() if "median" not in name} == {0.0}


def test_intervals_of_many_classes_need_no_square_table():
    n, k = 3000, 1000
    labels = np.arange(n) % k
    probabilities = np.full((n, k), 1 / k)
    assert metrics.bootstrap_intervals(np.tile(labels, 2), np.tile(probabilities, (2, 1)), list(range(k)))["f1"] is None


def test_galleries_and_median_rank():
    rng = np.random.default_rng(0)
    image = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(2500, 8))), dim=-1)
    text = torch.nn.functional.normalize(image + 0.3 * torch.from_numpy(rng.normal(size=(2500, 8))), dim=-1)
    whole, small = metrics.retrieval(image, text), metrics.gallery_recalls(image, text)
    assert small["g1000_i2t_r1"] > whole["i2t_r1"] and small["g1000_i2t_median_rank"] < whole["i2t_median_rank"]
    assert metrics.gallery_recalls(image[:999], text[:999]) == {}
    order = torch.argsort(image @ text.T, dim=1, descending=True)
    places = 1 + (order == torch.arange(2500)[:, None]).double().argmax(dim=1)
    assert whole["i2t_median_rank"] == pytest.approx(places.double().quantile(0.5).item())
    intervals = metrics.recall_intervals(metrics.retrieval_ranks(image, text), np.arange(2500))
    rate = whole["i2t_r1"] / 100
    half = 196 * np.sqrt(rate * (1 - rate) / 2500)
    assert intervals["i2t_r1"] == pytest.approx([100 * rate - half, 100 * rate + half], abs=0.3)
    low, high = intervals["i2t_median_rank"]
    assert low <= whole["i2t_median_rank"] <= high


def test_alignment_and_uniformity_by_hand():
    x, y = torch.eye(3), torch.eye(3)[[1, 2, 0]]
    assert metrics.alignment(x, x) == 0 and metrics.alignment(x, y) == 2
    assert metrics.uniformity(x, block=2) == pytest.approx(-4)  # every two are at a squared distance of 2
    assert metrics.uniformity(x[[0, 0, 0]]) == 0
