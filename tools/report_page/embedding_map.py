"""A two-dimensional map of a probe's test embeddings: t-SNE (van der Maaten & Hinton, JMLR 2008), coloured twice.

Distances between far points, and the sizes and densities of groups, say nothing; which points are near each other does.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from matplotlib.collections import LineCollection
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE  # UMAP would add numba and llvmlite, 150 MB, for a picture of the same kind

import checkpoints
from tools.plots import COLOURS, label
from tools.report_page.figures import new_axes
from utils import InputError

FEWEST, MOST = 20, 5000  # cases: fewer make no map, of more a sample is drawn
AS_PIXELS = 500  # cases from which the points are a picture in the SVG, whose size then does not grow with them
SEED = 0
GRAY = "#808080"  # seen on light and on dark, also in a picture, whose colours the page cannot change


def read_embeddings(folder: Path) -> dict:
    """The test part of a probe's features.pt: `features` (N, D), `labels`, `patients` (may be empty), and `classes`.

    Raises InputError, also where the cases are too few for a map, or all alike.
    """
    path = folder / "features.pt"
    contents = checkpoints.read(path)
    test, classes = contents.get("test"), contents.get("classes")
    rows, labels, patients = (test.get(k) for k in ("features", "labels", "patients")) if test else (None,) * 3
    tensors = isinstance(rows, torch.Tensor) and isinstance(labels, torch.Tensor)
    if not (tensors and rows.ndim == 2 and len(labels) == len(rows) and len(patients or rows) == len(rows) and classes):
        raise InputError(f"{path}: not the features of a probe: run main_linear.py again")
    if len(rows) < FEWEST:
        raise InputError(f"no map of {len(rows)} test embeddings: it takes {FEWEST} or more")
    if not rows.isfinite().all() or torch.allclose(rows, rows[:1]):  # scikit-learn's t-SNE ends the process
        raise InputError("no map of test embeddings that are all alike, or not finite")
    return {"features": rows.numpy(), "labels": labels.numpy(), "patients": patients or [], "classes": classes}


def map_figures(results: dict) -> Iterator[tuple]:
    """The map coloured by class (of a multi-label set by the number of findings), and by patient where they are known.

    Raises InputError as `read_embeddings` does.
    """
    found = read_embeddings(Path(results["folder"]))
    total = len(found["features"])
    chosen = np.arange(total)
    if total > MOST:
        chosen = np.sort(np.random.default_rng(SEED).choice(total, MOST, replace=False))
    points = project(found["features"][chosen])
    labels, name = found["labels"][chosen], results["encoder"]["name"]
    cases = f"{len(chosen):,} test cases" if len(chosen) == total else f"{len(chosen):,} of {total:,} test cases, drawn"
    if labels.ndim == 2:
        yield f"t-SNE of {cases}, by the number of findings: {name}", by_findings(points, labels)
    else:
        cycles = "" if len(found["classes"]) <= len(COLOURS) else f"; {len(COLOURS)} colours, used again and again"
        yield f"t-SNE of {cases}, by class{cycles}: {name}", by_class(points, labels, found["classes"])
    if found["patients"]:
        patients = np.unique(np.array(found["patients"])[chosen], return_inverse=True)[1]
        several = int((np.bincount(patients) > 1).sum())
        text = f"{patients.max() + 1:,} patients; lines link the images of each of the {several:,} who have several"
        yield f"The same by patient: {text}; {len(COLOURS)} colours, used again and again", by_patient(points, patients)


def project(features: np.ndarray) -> np.ndarray:
    """(N, D) -> (N, 2). The features are brought to 50 principal components first, as the authors advise."""
    rows = features.astype(np.float64)
    if min(rows.shape) > 50:
        rows = PCA(50, random_state=SEED).fit_transform(rows)
    perplexity = min(30, (len(rows) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=SEED).fit_transform(rows)


def scatter(points: np.ndarray, axes, which, colour, text: str | None = None) -> None:
    size = np.clip(3000 / len(points), 2, 22)
    axes.scatter(
        *points[which].T, s=size, color=colour, label=text, alpha=0.8, linewidths=0, rasterized=len(points) > AS_PIXELS
    )


def empty_axes():
    figure, axes = new_axes(4.2, 3.6, xticks=(), yticks=())
    axes.spines[:].set_visible(True)
    axes.spines[:].set_linewidth(0.4)
    return figure, axes


def by_class(points: np.ndarray, labels: np.ndarray, classes: list[str]):
    figure, axes = empty_axes()
    for k in np.unique(labels):
        scatter(points, axes, labels == k, COLOURS[k % len(COLOURS)], f"{label(classes[k])} ({(labels == k).sum()})")
    if len(classes) <= len(COLOURS):
        figure.legend(frameon=False, loc="outside lower center", ncols=min(3, len(classes)), fontsize=7)
    return figure


def by_findings(points: np.ndarray, labels: np.ndarray):
    figure, axes = empty_axes()
    counts = np.minimum((labels == 1).sum(axis=1), len(COLOURS) - 1)
    for k in np.unique(counts):
        text = f"{k}{' or more' if k == len(COLOURS) - 1 else ''} ({(counts == k).sum()})"
        scatter(points, axes, counts == k, COLOURS[k], text)
    figure.legend(frameon=False, loc="outside lower center", ncols=3, fontsize=7, title="Findings (cases)")
    return figure


def by_patient(points: np.ndarray, patients: np.ndarray):
    """patients (N,) are numbers from 0 on."""
    figure, axes = empty_axes()
    order = np.argsort(patients, kind="stable")
    starts = np.flatnonzero(np.diff(patients[order])) + 1
    tracks = [points[rows] for rows in np.split(order, starts) if len(rows) > 1]
    lines = LineCollection(tracks, colors=GRAY, linewidths=0.5, alpha=0.5, rasterized=len(points) > AS_PIXELS)
    axes.add_collection(lines)
    for k, colour in enumerate(COLOURS):
        scatter(points, axes, patients % len(COLOURS) == k, colour)
    return figure
