"""The report's figures: each is (title, matplotlib figure), and becomes an SVG in the page."""

import io
import itertools
import re
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
from markupsafe import Markup
from sklearn.metrics import precision_recall_curve, roc_curve

from tools.plots import COLOURS, STYLES, known_cases, label, line

INK = "#123456"  # in matplotlib's drawings; the page's own text colour takes its place
BINS = 15
UNIT = {"xlim": (0, 1), "ylim": (0, 1.02)}


def new_axes(width=3.3, height=3.0, **labels):
    settings = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK)
    plt.rcParams.update(settings | {"svg.fonttype": "none", "font.size": 8, "font.family": "sans-serif"})
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.set(**labels)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def inline_svg(figure, title: str, number: int) -> Markup:
    """The figure as an SVG element whose ink is the page's text colour; its number in the page keeps its ids apart."""
    text = io.StringIO()
    with plt.rc_context({"svg.hashsalt": str(number)}):
        figure.savefig(text, format="svg", transparent=True, dpi=200, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor")
    for name in ("width", "height"):
        svg = re.sub(rf'<svg ([^>]*?){name}="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="f{number}-', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\1#f{number}-", svg)
    named = Markup('<svg role="img" aria-label="{}" ').format(title)
    return named + Markup(svg.removeprefix("<svg "))  # matplotlib has escaped the words in it


def probe_figures(results: dict) -> Iterator[tuple]:
    """ROC, precision-recall, reliability and confusion of a probe; of a multi-label set the first two."""
    labels, probabilities, classes = results["labels"], results["probabilities"], results["classes"]
    name = results["encoder"]["name"]
    yield roc(labels, probabilities, classes, name)
    yield precision_recall(labels, probabilities, classes, name)
    if labels.ndim == 1:
        yield reliability(labels, probabilities, name)
        yield confusion(labels, probabilities.argmax(axis=1), classes, name)


def drawn_classes(labels, probabilities, classes: list[str]) -> list[tuple]:
    """`known_cases` of the first classes, as many as there are colours, or of a multi-label set as there are lines."""
    most = len(COLOURS) * (len(STYLES) if labels.ndim == 2 else 1)
    return list(itertools.islice(known_cases(labels, probabilities, classes), most))


def add_legend(figure, axes, drawn: list, **where) -> None:
    """Within the axes, or beside them if there are more curves than colours."""
    if len(drawn) > len(COLOURS):
        figure.set_figwidth(4.8)
        figure.legend(frameon=False, loc="outside right center", fontsize=6)
    else:
        axes.legend(frameon=False, **where)


def roc(labels, probabilities, classes: list[str], name: str) -> tuple:
    figure, axes = new_axes(xlabel="1 - specificity", ylabel="Sensitivity", **UNIT)
    drawn = drawn_classes(labels, probabilities, classes)
    for k, positive, scores in drawn:
        x, y, _ = roc_curve(positive, scores)
        axes.plot(x, y, **line(k), label=label(classes[k]))
    axes.plot((0, 1), (0, 1), color=INK, linestyle=":", linewidth=0.8)
    add_legend(figure, axes, drawn, loc="lower right")
    return f"ROC curves: {name}", figure


def precision_recall(labels, probabilities, classes: list[str], name: str) -> tuple:
    figure, axes = new_axes(xlabel="Recall", ylabel="Precision", **UNIT)
    drawn = drawn_classes(labels, probabilities, classes)
    for k, positive, scores in drawn:
        y, x, _ = precision_recall_curve(positive, scores)
        axes.step(x, y, where="post", **line(k), label=f"{label(classes[k])} ({positive.mean():.0%})")
        axes.axhline(positive.mean(), color=line(k)["color"], linestyle=":", linewidth=0.8)
    add_legend(figure, axes, drawn, loc="best", fontsize=7)
    return f"Precision-recall; dotted, a class's share of the cases: {name}", figure


def reliability(labels, probabilities, name: str) -> tuple:
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    figure, axes = new_axes(xlabel="Probability of the predicted class", ylabel="Share that is right", **UNIT)
    axes.plot((0, 1), (0, 1), color=INK, linestyle=":", linewidth=0.8)
    counts = np.bincount(bins, minlength=BINS)
    axes.bar((np.arange(BINS) + 0.5) / BINS, 0.25 * counts / counts.max(), 0.9 / BINS, color=COLOURS[0], alpha=0.25)
    some = np.flatnonzero(counts)
    x, y = (np.array([values[bins == b].mean() for b in some]) for values in (confidence, right))
    axes.plot(x, y, color=COLOURS[1], marker="o", markersize=3)
    return f"Reliability over {BINS} bins; bars, the cases in each (most {counts.max()}): {name}", figure


def confusion(labels, predicted, classes: list[str], name: str) -> tuple:
    matrix = np.zeros((len(classes), len(classes)), int)
    np.add.at(matrix, (labels, predicted), 1)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, axes = new_axes(xlabel="Predicted", ylabel="Actual")
    if len(classes) > 12:
        axes.pcolormesh(share, cmap="Blues", vmin=0, vmax=1)
        axes.invert_yaxis()
        return f"Confusion matrix, the share of the actual class: {name}", figure
    for row in range(len(classes)):
        for column in range(len(classes)):
            axes.add_patch(plt.Rectangle((column, row), 1, 1, facecolor=COLOURS[0], alpha=0.75 * share[row, column],
                                         edgecolor=INK, linewidth=0.3))  # fmt: skip
            text = f"{matrix[row, column]}\n{share[row, column]:.0%}"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center")
    ticks = np.arange(len(classes)) + 0.5
    names = [label(one).replace(" ", "\n", 1) for one in classes]
    axes.set(xlim=(0, len(classes)), ylim=(len(classes), 0), xticks=ticks, yticks=ticks)
    axes.set_xticklabels(names, fontsize=7)
    axes.set_yticklabels(names, fontsize=7)
    return f"Confusion matrix, with the share of the actual class: {name}", figure


def label_efficiency(results: dict) -> tuple:
    rows = results["efficiency"]
    patients = [row["patients"] for row in rows]
    figure, axes = new_axes(4.2, 3.0, xscale="log", xlabel="Training patients", ylabel="Test AUROC")
    for row in rows:
        axes.plot([row["patients"]] * len(row["values"]), row["values"], ".", color=INK, alpha=0.5, markersize=3)
    axes.plot(patients, [row["mean"] for row in rows], color=COLOURS[0], marker="o", markersize=4)
    some = [row for row in rows if row["low"] is not None]
    axes.fill_between(*([row[key] for row in some] for key in ("patients", "low", "high")), color=COLOURS[0], alpha=0.2)
    axes.set_xticks(patients, [f"{row['patients']}\n{row['percent']}%" for row in rows])
    axes.minorticks_off()
    name = f"{results['encoder']['name']}, {results['dataset']}"
    return f"Label efficiency; dots, the draws; band, the mean's 95% interval: {name}", figure


def training_figures(run: dict) -> Iterator[tuple]:
    """Losses and validation recalls over the epochs, each where the log has any."""
    log = run["log"]
    epochs = [line["epoch"] + 1 for line in log]
    panels = (
        ("Training loss", ("train_loss", "train_clip_loss", "train_ssl_loss", "val_loss")),
        ("Validation recall (%)", [f"val_{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]),
    )
    for title, names in panels:
        names = [name for name in names if any(name in line for line in log)]
        if not names:
            continue
        figure, axes = new_axes(4.2, 3.0, xlabel="Epoch", ylabel=title)
        for name, colour in zip(names, COLOURS, strict=False):
            points = [(epoch, line[name]) for epoch, line in zip(epochs, log, strict=True) if name in line]
            text = name.removeprefix("train_").removeprefix("val_").replace("_", " ")
            axes.plot(*zip(*points, strict=True), color=colour, marker=".", markersize=3, label=text)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, fontsize=7)
        yield f"{title}: {run['folder']}", figure
