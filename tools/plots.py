"""Plots of a probe: ROC curves, a confusion matrix, label efficiency."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import ConfusionMatrixDisplay, auc, roc_curve

import utils

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito's, told apart by all
STYLES = ("-", "--", ":")  # of lines, for more curves than colours


def label(name: str) -> str:
    return name.replace("_", " ").capitalize()


def save(figure, path) -> None:
    """Write a PNG, whole or not at all. Raises InputError if the disk refuses it."""
    try:
        with utils.atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
    except OSError as error:
        raise utils.InputError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        plt.close(figure)


def line(k: int) -> dict:
    """The colour and the style of the curve of class k."""
    return {"color": COLOURS[k % len(COLOURS)], "linestyle": STYLES[k // len(COLOURS) % len(STYLES)]}


def known_cases(labels: np.ndarray, probabilities: np.ndarray, classes: list[str]):
    """(number, positive, scores) of each class that can be drawn: it and others have cases, and it has probabilities.

    labels (N,) are numbers of classes, or (N, K) 0, 1 and nan for unknown.
    """
    for k in range(len(classes)):
        known = np.isfinite(labels[:, k] if labels.ndim == 2 else labels)
        positive = labels[known, k] == 1 if labels.ndim == 2 else labels == k
        scores = probabilities[known, k]
        if 0 < positive.sum() < len(positive) and np.isfinite(scores).all():
            yield k, positive, scores


def plot_roc(path, labels: np.ndarray, probabilities: np.ndarray, classes: list[str], title: str) -> None:
    """ROC curves with their areas: of each class against the rest, or of each finding on the cases where it is known.

    For more than six classes, or 18 findings, their mean and the band they fill.
    """
    multi = labels.ndim == 2
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    grid, curves = np.linspace(0, 1, 201), []
    each = len(classes) <= len(COLOURS) * (len(STYLES) if multi else 1)
    for k, positive, scores in known_cases(labels, probabilities, classes):
        false, true, _ = roc_curve(positive, scores)
        curves.append(np.interp(grid, false, true))
        if each:
            text = f"{label(classes[k])} ({auc(false, true):.3f}, n = {positive.sum()})"
            axes.plot(false, true, **line(k), label=text)
    if curves and not each:
        low, high = np.percentile(curves, (5, 95), axis=0)
        axes.fill_between(grid, low, high, alpha=0.25, color=COLOURS[0], label="5% to 95% of the classes")
        axes.plot(grid, np.mean(curves, axis=0), color=COLOURS[0], label=f"Mean of {len(curves)} classes")
    axes.plot((0, 1), (0, 1), color="gray", linestyle=":", linewidth=1)
    axes.set(xlabel="False positive rate", ylabel="True positive rate", xlim=(0, 1), ylim=(0, 1.01))
    axes.set_aspect("equal")
    figure.suptitle(title, fontsize="medium")
    if curves:
        axes.legend(loc="lower right", fontsize=6 if multi and len(classes) > len(COLOURS) else "small")
    save(figure, path)


def plot_confusion(path, labels: np.ndarray, predicted: np.ndarray, classes: list[str], title: str) -> None:
    """Test cases by actual and predicted class; the shade is the share of the actual class."""
    size = max(4.8, 0.9 * min(len(classes), 20) + 2)
    figure, axes = plt.subplots(figsize=(size, size * 0.85), layout="constrained")
    numbers = range(len(classes))
    matrix = np.zeros((len(classes), len(classes)), int)
    np.add.at(matrix, (labels, predicted), 1)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    few = len(classes) <= 20
    names = [label(name).replace(" ", "\n", 1) for name in classes] if few else None
    display = ConfusionMatrixDisplay(share, display_labels=names if few else list(numbers))
    display.plot(ax=axes, cmap="Blues", include_values=False, im_kw={"vmin": 0, "vmax": 1}, colorbar=True)
    if few:
        for row in numbers:
            for column in numbers:
                shade = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, matrix[row, column], ha="center", va="center", color=shade)
    else:
        axes.set(xticks=[], yticks=[])
    axes.set(xlabel="Predicted", ylabel="Actual")
    figure.suptitle(title, fontsize="medium")
    save(figure, path)


def plot_efficiency(path, rows: list[dict], title: str) -> None:
    """AUROC over the number of training patients: each draw a dot, the mean a line, its interval a band."""
    figure, axes = plt.subplots(figsize=(5, 3.6), layout="constrained")
    patients = [row["patients"] for row in rows]
    for row in rows:
        axes.plot([row["patients"]] * len(row["values"]), row["values"], ".", color="gray", markersize=4)
    axes.plot(patients, [row["mean"] for row in rows], color=COLOURS[0], marker="o")
    some = [row for row in rows if row["low"] is not None]
    edges = [[row[name] for row in some] for name in ("patients", "low", "high")]
    axes.fill_between(*edges, alpha=0.2, color=COLOURS[0])
    axes.set(xscale="log", xlabel="Training patients", ylabel="Test AUROC", xticks=patients)
    axes.set_xticklabels([f"{row['patients']}\n{row['percent']}%" for row in rows])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize="medium")
    save(figure, path)
