"""What a probe leaves: results.json, predictions.csv, features.pt, plots, and a row of the published table."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import distributed
import utils
from evaluation import metrics
from evaluation.fitted import FILE, Fitted, save_fitted
from utils import logger

CASES = 12  # that results.json names, of the hardest and of the easiest
COLUMNS = ("Model", "AUROC", "F1-Score", "Precision", "Recall", "Precision (Malignant)", "Recall (Malignant)")


def summarise(
    args, data: dict, probabilities: np.ndarray, selected: dict, leaks: dict, device, calibration: dict | None = None
) -> dict:
    """The contents of results.json.

    `data` are the splits "train" and "test" (datasets.Labelled), `probabilities` (N, K) those of the N test cases,
    `selected` what the probe chose, `leaks` what audit.probe_audit found, `calibration` what calibration.py says.
    """
    train, test = data["train"], data["test"]
    without_probe = np.isnan(probabilities).all(axis=0) & test.multi
    assert (np.isfinite(probabilities) | without_probe).all()
    weights = Path(args.pretrained).name if os.path.exists(args.pretrained) else args.pretrained
    name = (args.name or f"{args.arch} ({weights})") + (f" ({selected['label']})" if "label" in selected else "")
    report = metrics.classification_report(test.labels, probabilities, test.classes)
    multi = {
        "multi_label": True,
        "threshold": metrics.THRESHOLD,
        "macro_over": [name for name, one in report["per_class"].items() if one["auroc"] is not None],
    }
    return {
        "dataset": args.dataset,
        "encoder": {
            **{one: getattr(args, one) for one in ("arch", "pretrained", "features")},
            "fit": test.fit,
            "name": name,
        },
        "n_train": len(train),
        "n_test": len(test),
        "classes": test.classes,
        **(multi if test.multi else {}),
        **report,
        "ci95": metrics.bootstrap_intervals(test.labels, probabilities, test.classes, test.patients, seed=args.seed),
        "selected": {"probe": args.probe, **selected},
        "calibration": calibration,
        "audit": leaks,
        "data": {split: fingerprint(some) for split, some in data.items()},
        **({} if test.multi else extremes(test, probabilities)),
        "run": utils.provenance(vars(args), device, distributed.world_size()),
    }


def fingerprint(data) -> dict:
    """The number of cases, a SHA-256 over their ids and labels, and how the set was made where that needs saying."""
    if data.multi:
        names = [" ".join(f"{name}={x:g}" for name, x in zip(data.classes, row, strict=True)) for row in data.labels]
    else:
        names = [data.classes[label] for label in data.labels]
    rows = "".join(f"{one}\t{name}\n" for one, name in zip(data.ids, names, strict=True))
    return {"images": len(data), "sha256": hashlib.sha256(rows.encode()).hexdigest(), **data.notes}


def extremes(test, probabilities: np.ndarray) -> dict[str, list[dict]]:
    """The test cases whose own class was given the least probability (`hardest`, the least first) and the most
    (`easiest`, the most first)."""
    own = probabilities[np.arange(len(test)), test.labels]

    def case(i: int) -> dict:
        return {
            "id": test.ids[i],
            "patient": test.patients[i] if test.patients else "",
            "label": test.classes[test.labels[i]],
            "predicted": test.classes[probabilities[i].argmax()],
            "p_label": float(own[i]),
            "path": test.images[i] if isinstance(test.images[i], str) else "",
        }

    order = {"hardest": own, "easiest": -own}
    return {name: [case(i) for i in np.argsort(by, kind="stable")[:CASES]] for name, by in order.items()}


def write_results(
    out: Path, summary: dict, data: dict, found: dict, probabilities: np.ndarray, fitted: Fitted | None = None
) -> None:
    """Write every file, results.json last: where it is, the others are whole. Raises InputError for a full disk.

    `found` are the features of each split that the probe asked for. Without a `fitted` probe none is left that an
    earlier run saved.
    """
    from tools.plots import plot_confusion, plot_roc

    test = data["test"]
    predictions = tabulate(test, probabilities).to_csv(index=False, lineterminator="\n", float_format="%.17g")
    utils.write_text(out / "predictions.csv", predictions)
    kept = {
        split: {
            "features": rows, "labels": torch.from_numpy(data[split].labels), "ids": data[split].ids,
            "patients": data[split].patients or [],
        }
        for split, rows in found.items()
    }  # fmt: skip
    utils.save_tensors({**kept, "classes": test.classes}, out / "features.pt")
    if fitted is None:
        (out / FILE).unlink(missing_ok=True)
    else:
        save_fitted(fitted, out)
    title = f"{summary['dataset']}: {summary['encoder']['name']}"
    plot_roc(out / "roc.png", test.labels, probabilities, test.classes, title)
    if not test.multi:
        plot_confusion(out / "confusion.png", test.labels, probabilities.argmax(axis=1), test.classes, title)
    utils.write_json(out / "results.json", summary)


def tabulate(test, probabilities: np.ndarray) -> pd.DataFrame:
    """A row for each test case: its id, patient, label, predicted class, and the probability of each class.

    Of a multi-label case the label of each finding (1, 0, or blank for unknown) instead, and the probability of each
    (blank without a probe).
    """
    if test.multi:
        labels = {f"label_{name}": test.labels[:, k] for k, name in enumerate(test.classes)}
    else:
        labels = {
            "label": [test.classes[k] for k in test.labels],
            "predicted": [test.classes[k] for k in probabilities.argmax(axis=1)],
        }
    each = {f"p_{name}": probabilities[:, k] for k, name in enumerate(test.classes)}
    return pd.DataFrame({"id": test.ids, "patient": test.patients or "", **labels, **each})


def print_results(summary: dict) -> None:
    """Print the published table's row, of a multi-label set also one row a finding; log metrics with intervals."""
    print_row(summary)
    if summary.get("multi_label"):
        print_findings(summary)
    every = metrics.flat(summary)
    shown = ["auroc", "average_precision", "f1", "precision", "recall", "ece", "brier"]
    shown = [name for name in shown if name in every]
    shown += [name for name in every if name.startswith("MALIGNANT.")]

    def with_interval(name: str) -> str:
        low, high = summary["ci95"].get(name) or (None, None)
        return f"{name} {percent(every[name])} ({percent(low)} to {percent(high)})"

    logger.info(f"with 95% intervals over the test split's patients: {'; '.join(map(with_interval, shown))}")


def print_row(summary: dict) -> None:
    """The published table's columns, in percent; a set without the class MALIGNANT has N/A in the last two."""
    macro, malignant = summary["macro"], summary["per_class"].get("MALIGNANT", {})
    values = [macro[name] for name in ("auroc", "f1", "precision", "recall")]
    values += [malignant.get(name) for name in ("precision", "recall")]
    print("| " + " | ".join(COLUMNS) + " |")
    print("| --- |" + " ---: |" * len(values))
    print(f"| {summary['encoder']['name']} | " + " | ".join(map(percent, values)) + " |", flush=True)


def print_findings(summary: dict) -> None:
    """A row for each finding, in percent; N/A where it has no probe, or its known cases are not of both kinds."""
    print("\n| Finding | Positive | Known | AUROC | 95% interval | Average precision | F1-Score |")
    print("| --- |" + " ---: |" * 6)
    for name, one in summary["per_class"].items():
        low, high = summary["ci95"][f"{name}.auroc"] or (None, None)
        interval = "N/A" if low is None else f"{percent(low)} to {percent(high)}"
        auroc, precision, f1 = (percent(one[metric]) for metric in ("auroc", "average_precision", "f1"))
        print(f"| {name} | {one['n']} | {one['n_known']} | {auroc} | {interval} | {precision} | {f1} |")
    share = f"{len(summary['macro_over'])} of {len(summary['classes'])} findings"
    threshold = f"F1, precision and recall at a probability of {summary['threshold']}"
    print(f"\nMacro: the mean over {share}; {threshold}.", flush=True)


def percent(value: float | None) -> str:
    return "N/A" if value is None else f"{100 * value:.2f}"
