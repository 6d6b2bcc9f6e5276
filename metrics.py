"""Classification and retrieval metrics, and confidence intervals over patients."""

import numpy as np
import torch
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score


def classification_report(labels: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> dict:
    """`macro` and `per_class` of results.json, by scikit-learn. labels (N,) index `classes`; probabilities (N, K).

    AUROC is one class against the rest, macro its plain mean; a class that no test case has leaves it undefined (None).
    The prediction is the most probable class; precision counts as 0 for a class that is never predicted.
    """
    predicted = probabilities.argmax(axis=1)
    numbers = np.arange(len(classes))
    precision, recall, f1, n = precision_recall_fscore_support(labels, predicted, labels=numbers, zero_division=0)
    aurocs = [
        roc_auc_score(labels == k, probabilities[:, k]) if 0 < (labels == k).sum() < len(labels) else None
        for k in numbers
    ]
    per_class = {
        name: {
            "auroc": None if aurocs[k] is None else float(aurocs[k]),
            "precision": float(precision[k]),
            "recall": float(recall[k]),
            "f1": float(f1[k]),
            "n": int(n[k]),
        }
        for k, name in enumerate(classes)
    }
    macro = {
        "auroc": None if None in aurocs else float(np.mean(aurocs)),
        "f1": float(f1.mean()),
        "precision": float(precision.mean()),
        "recall": float(recall.mean()),
    }
    return {"macro": macro, "per_class": per_class}


def bootstrap_intervals(labels, probabilities, classes, patients=None, resamples: int = 2000, seed: int = 0) -> dict:
    """95% percentile intervals of the macro metrics, {metric: [low, high]}, resampling patients with replacement.

    Where `patients` is None the cases are resampled. A resample is a weight for each case, so that all metrics are
    matrix products and cumulative sums (Efron & Tibshirani 1993, chapter 13). A resample that misses a class leaves
    that metric undefined and is left out of it. Above five million scores the intervals are None.
    """
    n, k = probabilities.shape
    group = np.arange(n) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    predicted = probabilities.argmax(axis=1)
    if n * k > 5_000_000:  # an ImageNet: hours, for intervals of a tenth of a percent
        return dict.fromkeys(("auroc", "f1", "precision", "recall"))
    is_label, is_predicted = np.eye(k)[labels], np.eye(k)[predicted]
    rng = np.random.default_rng(seed)
    rows = []
    block = max(1, min(resamples, 4_000_000 // n))
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        draws = rng.integers(group.max() + 1, size=(count, group.max() + 1))
        weights = np.zeros((count, group.max() + 1))
        np.add.at(weights, (np.arange(count)[:, None], draws), 1)
        weights = weights[:, group]
        actual, guessed, hits = weights @ is_label, weights @ is_predicted, weights @ (is_label * is_predicted)
        precision = hits / np.maximum(guessed, 1)
        recall = hits / np.maximum(actual, 1)
        f1 = 2 * hits / np.maximum(actual + guessed, 1)
        auroc = np.stack([weighted_auroc(labels == c, probabilities[:, c], weights) for c in range(k)], axis=1)
        rows.append(np.stack([one.mean(axis=1) for one in (auroc, f1, precision, recall)], axis=1))
    values = np.concatenate(rows)
    intervals = {}
    for column, name in enumerate(("auroc", "f1", "precision", "recall")):
        defined = values[np.isfinite(values[:, column]), column]
        intervals[name] = [float(q) for q in np.quantile(defined, (0.025, 0.975))] if len(defined) else None
    return intervals


def weighted_auroc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC of each row of case weights: positive (N,) bool, scores (N,), weights (R, N) -> (R,), nan if undefined."""
    order = np.argsort(scores, kind="stable")
    scores, positive, weights = scores[order], positive[order], weights[:, order]
    _, first, run = np.unique(scores, return_index=True, return_inverse=True)
    negative_weight = weights * ~positive
    below = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(negative_weight, axis=1)], axis=1)
    end = np.append(first[1:], len(scores))
    # A tied negative counts half.
    beaten = (below[:, first][:, run] + below[:, end][:, run]) / 2
    positive_weight = weights * positive
    with np.errstate(invalid="ignore"):
        return (positive_weight * beaten).sum(axis=1) / (positive_weight.sum(axis=1) * below[:, -1])


def retrieval(image_embed: torch.Tensor, text_embed: torch.Tensor, ks=(1, 5, 10), block: int = 1024) -> dict:
    """Recall at k in percent, image to text and text to image, for N pairs (N, D), L2-normalised; row i matches row i.

    A tie is counted at the middle of the tied places, so that a model with one embedding for all is not perfect.
    """
    result = {}
    for name, queries, gallery in (("i2t", image_embed, text_embed), ("t2i", text_embed, image_embed)):
        places = []
        for start in range(0, len(queries), block):
            scores = queries[start : start + block] @ gallery.T
            own = scores.diagonal(offset=start)[:, None]
            above, tied = (~(scores <= own)).sum(dim=1), ((scores == own).sum(dim=1) - 1).clamp(min=0)
            places.append(above + tied / 2)
        places = torch.cat(places)
        for k in ks:
            result[f"{name}_r{k}"] = 100 * (places < k).float().mean().item()
    return result
