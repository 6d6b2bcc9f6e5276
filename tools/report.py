"""One self-contained page of a set of runs: tables beside the published rows, curves, examples, and how each was made.

python tools/report.py runs/vit runs/vit/calc runs/vit/mass --out report.html

Takes output folders of main.py (after `--evaluate` with retrieval examples) and of main_linear.py; report.md and
report.csv beside the page hold the same tables.
"""

import argparse
import base64
import csv
import html
import io
import json
import re
import shlex
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.metrics import precision_recall_curve, roc_curve

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import distributed
import utils
from tools.compare import read_predictions
from tools.plots import COLOURS, label
from utils import InputError

HERE = Path(__file__).parent
INK = "#123456"  # in matplotlib's drawings; the page's own text colour takes its place
COLUMNS = ("AUROC", "F1-Score", "Precision", "Recall", "Precision (Malignant)", "Recall (Malignant)")
NAMES = ("auroc", "f1", "precision", "recall", "MALIGNANT.precision", "MALIGNANT.recall")
FURTHER = (
    ("average_precision", "Average precision"),
    ("MALIGNANT.auroc", "AUROC (Malignant)"),
    ("BENIGN.auroc", "AUROC (Benign)"),
    ("BENIGN_WITHOUT_CALLBACK.auroc", "AUROC (Benign without callback)"),
    ("MALIGNANT.sensitivity_at_80_specificity", "Sensitivity at 80% specificity (Malignant)"),
    ("MALIGNANT.sensitivity_at_90_specificity", "Sensitivity at 90% specificity (Malignant)"),
    ("ece", "Calibration error"),
    ("brier", "Brier score"),
)
BINS = 15


def main(args) -> None:
    probes, trainings = [], []
    for folder in map(Path, args.runs):
        if (folder / "results.json").exists():
            probes.append(read_probe(folder))
        elif (folder / "config.json").exists():
            trainings.append(read_training(folder))
        else:
            raise InputError(f"{folder}: neither results.json nor config.json in it: give a run's output folder")
    published = read_json(HERE / "published_results.json")
    tables = result_tables(probes, published) + retrieval_tables(trainings)
    out = Path(args.out)
    page = build_page(args.title, probes, trainings, tables)
    utils.make_folder(out.parent)
    utils.write_text(out, page)
    utils.write_text(out.with_suffix(".md"), as_markdown(args.title, tables))
    utils.write_text(out.with_suffix(".csv"), as_csv(tables))
    print(f"report: {out} ({len(page.encode()) / 1e6:.1f} MB), {out.with_suffix('.md')}, {out.with_suffix('.csv')}")


# Reading


def read_json(path: Path) -> dict:
    try:
        contents = json.loads(utils.read_text(path))
    except ValueError as error:
        raise InputError(f"{path}: damaged JSON ({error}): run it again") from None
    if not isinstance(contents, dict):
        raise InputError(f"{path}: not what a run writes: run it again")
    return contents


def read_probe(folder: Path) -> dict:
    """results.json with `folder`, `predictions` and, if there, `efficiency`. Raises InputError."""
    results = read_json(folder / "results.json")
    absent = {"dataset", "encoder", "macro", "per_class", "classes", "ci95", "selected", "run"} - set(results)
    if absent:
        raise InputError(f"{folder / 'results.json'}: lacks {', '.join(sorted(absent))}: run main_linear.py again")
    table = read_predictions(folder)
    columns = [f"p_{name}" for name in results["classes"]]
    if not set(columns) <= set(table.columns):
        raise InputError(f"{folder / 'predictions.csv'}: not of the classes of results.json: run main_linear.py again")
    results |= {"folder": str(folder), "probabilities": table[columns].to_numpy(float)}
    results["labels"] = np.array([results["classes"].index(name) for name in table["label"]])
    path = folder / "label_efficiency.json"
    results["efficiency"] = read_json(path)["rows"] if path.exists() else None
    return results


def read_training(folder: Path) -> dict:
    """config.json with `folder`, `log` and, if there, `retrieval`. Raises InputError."""
    run = read_json(folder / "config.json")
    run |= {"folder": str(folder), "log": [], "retrieval": None}
    if (folder / "log.txt").exists():
        for number, line in enumerate(utils.read_text(folder / "log.txt").splitlines(), start=1):
            try:
                run["log"].append(json.loads(line))
            except ValueError:
                raise InputError(f"{folder / 'log.txt'}, line {number}: damaged JSON: remove the line") from None
    if (folder / "retrieval.json").exists():
        run["retrieval"] = read_json(folder / "retrieval.json")
    return run


def value_of(results: dict, name: str):
    owner, _, metric = name.rpartition(".")
    return (results["per_class"].get(owner, {}) if owner else results["macro"]).get(metric)


# Tables: {title, note, columns, rows: [(kind, [cells])]}; a cell is a text, or (value, low, high) in percent


def cell(results: dict, name: str):
    value = value_of(results, name)
    if value is None:
        return "N/A"
    low, high = results["ci95"].get(name) or (None, None)
    return tuple(None if one is None else 100 * one for one in (value, low, high))


def result_tables(probes: list[dict], published: dict) -> list[dict]:
    tables = []
    for dataset in dict.fromkeys(one["dataset"] for one in probes):
        ours = [one for one in probes if one["dataset"] == dataset]
        rows = [
            (
                "published",
                [row["model"], "published", *("N/A" if v is None else (v, None, None) for v in row["values"])],
            )
            for row in published["tables"].get(dataset, ())
        ]
        rows += [
            ("ours", [one["encoder"]["name"], protocol(one), *(cell(one, name) for name in NAMES)]) for one in ours
        ]
        made_up = any("phantom" in str(one["run"]["args"].get("root")) for one in ours)
        note = f"Percent, with 95% intervals over the test split's patients ({ours[0]['n_test']} test cases)."
        if made_up:
            note += " Ours are of phantoms: drawn by a program, they say nothing about patients."
        if dataset in published["tables"]:
            note += " Rows marked published were not reproduced here"
            note += " and are of patients: no comparison." if made_up else "."
        tables.append({"title": dataset, "note": note, "columns": ("Model", "Protocol", *COLUMNS), "rows": rows})
        names = [(name, title) for name, title in FURTHER if any(value_of(one, name) is not None for one in ours)]
        if names:
            rows = [
                ("ours", [one["encoder"]["name"], protocol(one), *(cell(one, name) for name, _ in names)])
                for one in ours
            ]
            note = "Percent; the calibration error is over 15 bins, the Brier score the sum over classes (0 to 200)."
            columns = ("Model", "Protocol", *(title for _, title in names))
            tables.append({"title": f"{dataset}: further metrics", "note": note, "columns": columns, "rows": rows})
    return tables


def protocol(results: dict) -> str:
    return str(results["selected"].get("label") or results["selected"].get("probe", ""))


def retrieval_tables(trainings: list[dict]) -> list[dict]:
    having = [one for one in trainings if one["retrieval"]]
    if not having:
        return []
    names = list(dict.fromkeys(name for one in having for name in one["retrieval"]["metrics"]))
    rows = []
    for name in names:
        cells = []
        for one in having:
            value = one["retrieval"]["metrics"].get(name)
            low, high = one["retrieval"]["ci95"].get(name) or (None, None)
            cells.append("N/A" if value is None else (value, low, high))
        rows.append(("ours", [name.replace("_", " "), *cells]))
    pairs = ", ".join(f"{one['retrieval']['pairs']} pairs" for one in having)
    note = f"Recalls in percent, on the validation split ({pairs}), with 95% intervals; ranks begin at 1."
    return [{"title": "Image-text retrieval", "note": note, "columns": ("Metric", *(one["folder"] for one in having)),
             "rows": rows}]  # fmt: skip


def shown(one) -> tuple[str, str]:
    """A cell as its value and its interval, in words."""
    if isinstance(one, str):
        return one, ""
    value, low, high = one
    return f"{value:.2f}", "" if low is None else f"{low:.2f} to {high:.2f}"


def as_markdown(title: str, tables: list[dict]) -> str:
    parts = [f"# {title}\n"]
    for table in tables:
        lines = ["| " + " | ".join(table["columns"]) + " |", "| --- |" + " ---: |" * (len(table["columns"]) - 1)]
        for _, cells in table["rows"]:
            texts = [f"{value} ({interval})" if interval else value for value, interval in map(shown, cells)]
            lines.append("| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in texts) + " |")
        parts.append(f"## {table['title']}\n\n{table['note']}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def as_csv(tables: list[dict]) -> str:
    """One line a figure: table, row, column, value, low, high."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("table", "kind", "row", "column", "value", "low", "high"))
    for table in tables:
        for kind, cells in table["rows"]:
            for column, one in zip(table["columns"][1:], cells[1:], strict=True):
                values = (one, "", "") if isinstance(one, str) else ("" if v is None else f"{v:.6g}" for v in one)
                writer.writerow((table["title"], kind, cells[0], column, *values))
    return text.getvalue()


# Figures


def drawn(figure, title: str) -> str:
    """The figure as an inline SVG whose ink is the page's text colour."""
    drawn.count += 1
    text = io.StringIO()
    with plt.rc_context({"svg.hashsalt": str(drawn.count)}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL).replace(
        INK, "currentColor"
    )
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    prefix = f"f{drawn.count}-"  # ids are of the page
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\1#{prefix}", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
    return f"<figure>{svg}<figcaption>{html.escape(title)}</figcaption></figure>"


drawn.count = 0


def new_axes(width=3.3, height=3.0, **labels):
    settings = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK)
    plt.rcParams.update(settings | {"svg.fonttype": "none", "font.size": 8, "font.family": "sans-serif"})
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.set(**labels)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def curves(results: dict) -> list[str]:
    """ROC, precision-recall, reliability and confusion of a probe."""
    labels, probabilities, classes = results["labels"], results["probabilities"], results["classes"]
    name = results["encoder"]["name"]
    few = [k for k in range(len(classes)) if 0 < (labels == k).sum() < len(labels)][: len(COLOURS)]
    figures = []
    unit = {"xlim": (0, 1), "ylim": (0, 1.02)}
    figure, axes = new_axes(xlabel="1 - specificity", ylabel="Sensitivity", **unit)
    for k in few:
        x, y, _ = roc_curve(labels == k, probabilities[:, k])
        axes.plot(x, y, color=COLOURS[k], label=label(classes[k]))
    axes.plot((0, 1), (0, 1), color=INK, linestyle=":", linewidth=0.8)
    axes.legend(frameon=False, loc="lower right")
    figures.append(drawn(figure, f"ROC curves: {name}"))
    figure, axes = new_axes(xlabel="Recall", ylabel="Precision", **unit)
    for k in few:
        y, x, _ = precision_recall_curve(labels == k, probabilities[:, k])
        axes.step(x, y, where="post", color=COLOURS[k], label=f"{label(classes[k])} ({(labels == k).mean():.0%})")
        axes.axhline((labels == k).mean(), color=COLOURS[k], linestyle=":", linewidth=0.8)
    axes.legend(frameon=False, loc="best", fontsize=7)
    figures.append(drawn(figure, f"Precision-recall; dotted, a class's share of the cases: {name}"))
    figures.append(reliability(labels, probabilities, name))
    figures.append(confusion(labels, probabilities.argmax(axis=1), classes, name))
    return figures


def reliability(labels, probabilities, name: str) -> str:
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    figure, axes = new_axes(xlabel="Probability of the predicted class", ylabel="Share that is right", xlim=(0, 1),
                            ylim=(0, 1.02))  # fmt: skip
    axes.plot((0, 1), (0, 1), color=INK, linestyle=":", linewidth=0.8)
    counts = np.bincount(bins, minlength=BINS)
    axes.bar((np.arange(BINS) + 0.5) / BINS, 0.25 * counts / counts.max(), 0.9 / BINS, color=COLOURS[0], alpha=0.25)
    some = np.flatnonzero(counts)
    x, y = (np.array([values[bins == b].mean() for b in some]) for values in (confidence, right))
    axes.plot(x, y, color=COLOURS[1], marker="o", markersize=3)
    return drawn(figure, f"Reliability over {BINS} bins; bars, the cases in each (most {counts.max()}): {name}")


def confusion(labels, predicted, classes: list[str], name: str) -> str:
    matrix = np.zeros((len(classes), len(classes)), int)
    np.add.at(matrix, (labels, predicted), 1)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, axes = new_axes(xlabel="Predicted", ylabel="Actual")
    if len(classes) > 12:
        axes.pcolormesh(share, cmap="Blues", vmin=0, vmax=1)
        axes.invert_yaxis()
        return drawn(figure, f"Confusion matrix, the share of the actual class: {name}")
    for row in range(len(classes)):
        for column in range(len(classes)):
            axes.add_patch(plt.Rectangle((column, row), 1, 1, facecolor=COLOURS[0], alpha=0.75 * share[row, column],
                                         edgecolor=INK, linewidth=0.3))  # fmt: skip
            axes.text(
                column + 0.5, row + 0.5, f"{matrix[row, column]}\n{share[row, column]:.0%}", ha="center", va="center"
            )
    ticks = np.arange(len(classes)) + 0.5
    names = [label(one).replace(" ", "\n", 1) for one in classes]
    axes.set(xlim=(0, len(classes)), ylim=(len(classes), 0), xticks=ticks, yticks=ticks)
    axes.set_xticklabels(names, fontsize=7)
    axes.set_yticklabels(names, fontsize=7)
    return drawn(figure, f"Confusion matrix, with the share of the actual class: {name}")


def efficiency(results: dict) -> str:
    rows = results["efficiency"]
    figure, axes = new_axes(4.2, 3.0, xscale="log", xlabel="Training patients", ylabel="Test AUROC")
    for row in rows:
        axes.plot([row["patients"]] * len(row["values"]), row["values"], ".", color=INK, alpha=0.5, markersize=3)
    axes.plot(
        [row["patients"] for row in rows], [row["mean"] for row in rows], color=COLOURS[0], marker="o", markersize=4
    )
    some = [row for row in rows if row["low"] is not None]
    axes.fill_between(*([row[key] for row in some] for key in ("patients", "low", "high")), color=COLOURS[0], alpha=0.2)
    axes.set_xticks([row["patients"] for row in rows], [f"{row['patients']}\n{row['percent']}%" for row in rows])
    axes.minorticks_off()
    name = f"{results['encoder']['name']}, {results['dataset']}"
    return drawn(figure, f"Label efficiency; dots, the draws; band, the mean's 95% interval: {name}")


def training_curves(run: dict) -> list[str]:
    log, figures = run["log"], []
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
        figures.append(drawn(figure, f"{title}: {run['folder']}"))
    return figures


def thumbnail(path: str, text: str) -> str:
    """An image at 224 pixels at most as a data URI; in words where it cannot be opened."""
    try:
        with Image.open(path) as image:
            image = image.convert("L" if image.mode in ("L", "I;16", "I") else "RGB")
            image.thumbnail((224, 224))
            data = io.BytesIO()
            image.save(data, "JPEG", quality=80)
    except (OSError, ValueError, SyntaxError):
        return '<p class="absent">The image is not there any more.</p>'
    return f'<img alt="{html.escape(text)}" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'


# The page


def build_page(title: str, probes: list[dict], trainings: list[dict], tables: list[dict]) -> str:
    say = html.escape
    statement = (
        "Figures of the runs listed at the end. Rows marked <em>published</em> are the published ones of MedSLIP, "
        "MedCLIP and Med-PaLM M; none of them was reproduced here."
    )
    parts = [f"<h1>{say(title)}</h1><p>{statement}</p>"]
    for table in tables:
        parts.append(f"<h2>{say(table['title'])}</h2><p class=note>{say(table['note'])}</p>{table_html(table)}")
    if trainings:
        figures = "".join(figure for run in trainings for figure in training_curves(run))
        parts.append(f'<h2>Training</h2><div class="grid wide">{figures}</div>')
    for results in probes:
        heading = f"{results['dataset']}: {results['encoder']['name']}"
        parts.append(f'<h2>{say(heading)}</h2><div class="grid">{"".join(curves(results))}</div>')
        if results["efficiency"]:
            parts.append(f'<div class="grid wide">{efficiency(results)}</div>')
        if results.get("hardest"):
            parts.append(
                f'<h3>Hardest test cases</h3><div class="grid">{"".join(map(hardest_card, results["hardest"]))}</div>'
            )
        if results.get("audit"):
            parts.append(f"<details><summary>Audit of the splits</summary>{definition(results['audit'])}</details>")
    for run in trainings:
        examples = (run["retrieval"] or {}).get("examples", {})
        for kind, text in (("good", "captions found first"), ("bad", "captions found last")):
            if examples.get(kind):
                cards = "".join(map(retrieval_card, examples[kind]))
                parts.append(f"<h2>Retrieval, {text}: {say(run['folder'])}</h2><div class=grid>{cards}</div>")
    parts.append("<h2>How each run was made</h2>")
    parts += [made(one["folder"], "main.py", one, {"data": one.get("data")}) for one in trainings]
    parts += [
        made(one["folder"], "main_linear.py", one["run"], {"selected": one["selected"], "data": one.get("data")})
        for one in probes
    ]
    head = (
        f'<meta charset="utf-8"><title>{say(title)}</title><link rel="icon" href="data:,">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{(HERE / 'report.css').read_text()}</style>"
    )
    body = f"<body><main>{''.join(parts)}</main></body>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n{body}</html>\n'


def table_html(table: dict) -> str:
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table["columns"])
    rows = []
    for kind, cells in table["rows"]:
        texts = [(html.escape(value), html.escape(interval)) for value, interval in map(shown, cells)]
        data = "".join(
            f"<td>{value}{f'<small>{interval}</small>' if interval else ''}</td>" for value, interval in texts[1:]
        )
        rows.append(f'<tr class="{kind}"><th scope="row">{texts[0][0]}</th>{data}</tr>')
    region = f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(table["title"])}">'
    return f"{region}<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def hardest_card(one: dict) -> str:
    say = html.escape
    image = thumbnail(one["path"], f"test case {one['id']}") if one.get("path") else ""
    text = (
        f"{label(one['label'])}, taken for {label(one['predicted']).lower()}; p of its own class {one['p_label']:.3f}"
    )
    return f'<div class="card">{image}<strong>{say(one["id"])}</strong><br>{say(text)}</div>'


def retrieval_card(one: dict) -> str:
    say = html.escape
    rows = []
    for other in one["retrieved"]:
        caption = say(other["caption"])
        own = f'<b class="own">{caption}</b>' if other["id"] == one["id"] else caption
        rows.append(f"<li>{own} ({other['score']:.2f})</li>")
    head = f"{thumbnail(one['path'], one['caption'])}<strong>{say(one['id'])}, rank {one['rank']}</strong>"
    return f'<div class="card">{head}: {say(one["caption"])}<ol>{"".join(rows)}</ol></div>'


def definition(value) -> str:
    if isinstance(value, dict):
        items = "".join(
            f"<dt>{html.escape(str(k).replace('_', ' '))}</dt><dd>{definition(v)}</dd>" for k, v in value.items()
        )
        return f"<dl>{items}</dl>"
    return html.escape("unknown" if value is None else json.dumps(value) if isinstance(value, list) else str(value))


def made(folder: str, script: str, run: dict, more: dict) -> str:
    words = []
    for name, value in run["args"].items():
        flag = "--" + name.replace("_", "-")
        if name == "save_every" and isinstance(value, list):  # steps, or seconds
            value = value[0] if value[1] is None else f"{value[1]:g}s"
        if value is True:
            words.append(flag)
        elif value not in (None, False):
            words += [flag, *map(str, value if isinstance(value, list) else [value])]
    command = shlex.join(["python", script, *words])
    state = f"{run.get('git_commit')}{' with changes' if run.get('git_dirty') else ''}"
    versions = ", ".join(f"{name} {version}" for name, version in run.get("versions", {}).items())
    facts = {"commit": state, "versions": versions, "device": run.get("device"), "processes": run.get("world_size"),
             "started": run.get("started"), **{name: value for name, value in more.items() if value}}  # fmt: skip
    return (f"<details open><summary>{html.escape(folder)}</summary><pre>{html.escape(command)}</pre>"
            f"{definition(facts)}</details>")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folders of main.py and main_linear.py")
    parser.add_argument("--out", default="report.html", metavar="FILE", help="(default: %(default)s)")
    parser.add_argument("--title", default="MedSLIP report")
    distributed.run_script(main, parser.parse_args())
