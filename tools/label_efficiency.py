"""How the probe's AUROC grows with the training patients: draws of 1 to 100% of them, from a probe's kept features.

python tools/label_efficiency.py runs/vit/calc
"""

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scipy import stats

import checkpoints
import distributed
import utils
from evaluation import metrics, probes
from utils import InputError, logger

PERCENT = (1, 5, 10, 25, 50, 100)


def main(args) -> None:
    for folder in map(Path, args.runs):
        result = efficiency(folder, args.draws, args.seed)
        utils.write_json(folder / "label_efficiency.json", result)
        from tools.plots import plot_efficiency

        plot_efficiency(folder / "label_efficiency.png", result["rows"], f"{folder.name}: label efficiency")
        print("| patients | images | AUROC, mean | 95% interval | draws |\n| ---: | ---: | ---: | ---: | ---: |")
        for row in result["rows"]:
            shown = "N/A" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
            share = f"{row['patients']} ({row['percent']}%)"
            print(f"| {share} | {row['images']} | {row['mean']:.3f} | {shown} | {len(row['values'])} |")
        print(f"{folder / 'label_efficiency.json'}, {folder / 'label_efficiency.png'}", flush=True)


def efficiency(folder: Path, draws: int, seed: int) -> dict:
    """The rows of label_efficiency.json: for each share of the training patients its draws' AUROC on the test split.

    A draw is of patients with all their images, at least one of each class. The logistic probe's penalty is chosen by
    folds of the draw; where it is too small for folds, C is 1. The mean's interval is Student's t over the draws: it
    tells of the draw, not of the test split. Raises InputError.
    """
    contents = checkpoints.read(folder / "features.pt")
    train, test = contents.get("train"), contents.get("test")
    if not isinstance(train, dict) or not isinstance(test, dict):
        raise InputError(f"{folder / 'features.pt'}: no training features: give the folder of a fitted probe")
    if train["labels"].ndim == 2:
        raise InputError(f"{folder / 'features.pt'}: of a multi-label set: give a probe of one label an image")
    rows, unseen = (part["features"].numpy() for part in (train, test))
    rows = rows[:, 0] if rows.ndim == 3 else rows  # of the published recipe: the image that is not flipped
    labels, classes = train["labels"].numpy(), contents["classes"]
    patients = np.array(train.get("patients") or train["ids"])
    found = []
    for percent in PERCENT:
        values, sizes = [], []
        for draw in range(draws if percent < 100 else 1):
            chosen = draw_patients(patients, labels, percent, np.random.default_rng((seed, percent, draw)))
            keep = np.isin(patients, chosen)
            data = SimpleNamespace(labels=labels[keep], patients=list(patients[keep]), classes=classes)
            predict = fit(rows[keep], data, seed)
            scores = metrics.classification_report(test["labels"].numpy(), predict(unseen), classes)
            values.append(scores["macro"]["auroc"])
            sizes.append((len(chosen), int(keep.sum())))
        mean, half = float(np.mean(values)), None
        if len(values) > 1:
            half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
        found.append({
            "percent": percent, "patients": round(np.mean([n for n, _ in sizes])),
            "images": round(np.mean([n for _, n in sizes])), "values": values, "mean": mean,
            "low": None if half is None else mean - half, "high": None if half is None else mean + half,
        })  # fmt: skip
        logger.info(f"{percent}%: {found[-1]['patients']} patients, AUROC {mean:.3f}")
    return {"metric": "auroc", "draws": draws, "seed": seed, "rows": found}


def draw_patients(patients: np.ndarray, labels: np.ndarray, percent: float, rng) -> np.ndarray:
    """`percent` of the patients: one of each class first (of the rarest class first), then any."""
    order = rng.permutation(np.unique(patients))
    chosen = []
    for label in np.argsort(np.bincount(labels), kind="stable"):
        having = set(patients[labels == label])
        if having and not having & set(chosen):
            chosen.append(next(one for one in order if one in having))
    count = max(len(chosen), round(len(order) * percent / 100))
    rest = [one for one in order if one not in set(chosen)]
    return np.array([*chosen, *rest[: count - len(chosen)]])


def fit(rows: np.ndarray, data, seed: int):
    args = SimpleNamespace(dataset="draw", seed=seed)
    try:
        probes.make_folds(data, args)
    except InputError:
        return probes.fit_plain(rows, data, 1.0)
    return probes.Logistic().fit(rows, data, args)[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folders of main_linear.py")
    parser.add_argument("--draws", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.draws < 1 or arguments.seed < 0:
        parser.error("--draws: 1 or more; --seed: 0 or more")
    distributed.run_script(main, arguments)
