"""Answer the experiments' questions from the runs that experiments/train.sh left, with intervals over cases and seeds.

python experiments/summarise.py runs/medpix --root sets/medpix --mias sets/mias_crops --out medpix.json
python experiments/summarise.py runs/phantoms --root phantoms/roco --cbis phantoms/cbis --out phantoms.json

Every run's last checkpoint is read; nothing is chosen by the validation split. A figure of a configuration is its
mean over seeds. A difference's standard error joins the bootstrap over cases (the same resamples for all runs) and
the spread of the seeds' differences; 2.8 of it is the smallest difference that a two-sided test at 5% finds with a
power of 80%.
"""

import argparse
import csv
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from sklearn.model_selection import StratifiedGroupKFold

import checkpoints
import datasets
import models
import options  # noqa: F401 - before torch
import utils
from data import augment, images, views
from data.batches import rank_batches
from data.tokens import Tokens, from_json
from evaluation import metrics, probes

RESAMPLES = 2000
PENALTY = 1e-3  # C of every logistic probe, fixed beforehand: folds of 50 lesions would choose by chance
CONTRASTS = (
    ("slip_1", "clip"),
    ("slip_1", "simclr"),
    ("clip", "simclr"),
    ("slip_0.5", "slip_1"),
    ("slip_2", "slip_1"),
    ("slip_1", "untrained"),
    ("clip", "untrained"),
    ("simclr", "untrained"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--root", required=True, help="the image-caption pairs, in ROCO's layout")
    parser.add_argument("--mias", type=Path, help="the folder of experiments/mias_crops.py")
    parser.add_argument("--cbis", help="CBIS-DDSM's tree, or its phantoms")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    utils.logger.setLevel("ERROR")
    found = {}
    for folder in sorted(args.runs.glob("*_seed*")):
        configuration, seed = re.fullmatch(r"(.+)_seed(\d+)", folder.name).groups()
        contents = checkpoints.read(folder / "checkpoint.pt")
        if contents["epoch"] < contents["args"]["epochs"]:
            print(f"{folder}: {contents['epoch']} of {contents['args']['epochs']} epochs: left out")
            continue
        found[configuration, int(seed)] = measure(contents, configuration, args)
        print(folder.name, flush=True)
    for seed in sorted({seed for _, seed in found}):
        contents = checkpoints.read(args.runs / f"clip_seed{seed}" / "checkpoint.pt")
        found["untrained", seed] = measure(contents, "untrained", args, seed)
    seeds = [seed for seed in sorted({seed for _, seed in found})
             if all((name, seed) in found for name in {one for one, _ in found})]  # fmt: skip
    answer = summarise(found, seeds)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    utils.write_json(args.out, {"seeds": seeds, "resamples": RESAMPLES, **answer})
    show(answer, seeds)


def measure(contents: dict, configuration: str, args, untrained_seed: int | None = None) -> dict:
    """-> {question: (a score for each resample of its cases, the score)} of one checkpoint."""
    saved = contents["args"]
    tokenizer = from_json(contents["tokenizer"]) if contents.get("tokenizer") else None
    objective = "clip" if tokenizer else None
    torch.manual_seed(1000 + (untrained_seed or 0))
    model = models.create_model(saved["arch"], objective, "none", saved["text_model"], saved["text_pooling"],
                                len(tokenizer) if tokenizer else None, image_size=saved["image_size"])  # fmt: skip
    if untrained_seed is None:
        checkpoints.load_weights(model, contents, "checkpoint", saved["arch"])
    model.requires_grad_(False).eval()
    scores = {}
    if tokenizer and untrained_seed is None:
        scores |= retrieval_scores(model, tokenizer, saved, args.root)
    for name, train, test in probe_sets(args):
        pooled = {
            split: encode(model, saved, f"{name} {split}", data, data.fit)
            for split, data in (("train", train), ("test", test))
            if data is not None
        }
        projected = {split: model.image_projection(rows) for split, rows in pooled.items()}
        for kind, features in (("pooled", pooled), ("projected", projected)):
            scores[f"{name} AUROC, {kind}"] = probe_scores(features, train, test)
    return scores


BATCHES = {}  # of a set, packed: every checkpoint sees the same pixels


def encode(model, saved: dict, name: str, data, fit: str) -> torch.Tensor:
    """Pooled features (N, width) of a set, whose batches are kept under its name."""
    if name not in BATCHES:
        dataset = views.WholeImages(data, None, saved["image_size"], fit)
        BATCHES[name] = [dataset.__getitems__(batch) for batch in rank_batches(len(data), 128, 0, 1)]
    norm = models.mean_std(saved["normalize"], saved["arch"], saved.get("published"))
    rows = []
    for batch in BATCHES[name]:
        (pixels,) = augment.make_views(batch, *norm, torch.device("cpu"))
        rows.append(model.encode_image(pixels, projected=False))
    return torch.cat(rows)


def retrieval_scores(model, tokenizer, saved: dict, root: str) -> dict:
    """Mean of the six recalls, in percent, and R@10 either way, over resampled pairs with the gallery as it is."""
    pairs = datasets.read_pairs(root, "validation")
    image = model.image_projection(encode(model, saved, "pairs", Pictures(pairs), "center"))
    batch = Tokens(tokenizer, pairs.captions, saved["context_length"], None).batch(range(len(pairs)))
    chunks = [model.encode_text(*one) for one in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    caption = torch.cat(chunks)[batch["text_order"]]
    ranks = metrics.retrieval_ranks(*(torch.nn.functional.normalize(one, dim=-1) for one in (image, caption)))
    weights = metrics.draw_weights(np.random.default_rng(0), np.arange(len(pairs)), RESAMPLES)
    total = weights.sum(axis=1)
    hits = np.mean([(ranks[way] < k).numpy() for way in ranks for k in (1, 5, 10)], axis=0)
    scores = {"retrieval, mean of six recalls": (weights @ hits / total, hits.mean())}
    for way in ranks:
        hit = (ranks[way] < 10).double().numpy()
        scores[f"{way} R@10"] = (weights @ hit / total, hit.mean())
    return scores


class Pictures:
    """The pictures of sets.Pairs."""

    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        return images.as_picture(images.read_image(self.pairs.path(i)))


def probe_sets(args):
    """(name, training set, test set); a test set of None asks for predictions out of five folds by patient."""
    if Path(args.root, "train", "radiology", "meta.csv").exists():
        yield "MedPix CT or MR", *(modality_set(args.root, split) for split in ("train", "validation"))
    if args.mias:
        for name, column, classes in (("MIAS lesion or normal", "lesion", ["lesion", "normal"]),
                                      ("MIAS malignant or benign", "severity", ["malignant", "benign"])):  # fmt: skip
            yield name, mias_set(args.mias, column, classes), None
    if args.cbis:
        for task in ("calcification", "mass"):
            entry = {"name": task, "type": "cbis", "path": args.cbis, "abnormality": task}
            yield f"CBIS phantoms, {task}", *(datasets.labelled_set(entry, split) for split in ("train", "test"))


def modality_set(root: str, split: str):
    pairs = datasets.read_pairs(root, split)
    with open(Path(root, split, "radiology", "meta.csv"), encoding="utf-8") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    kept = [rows[key] for key in pairs.ids]
    classes = ["CT", "MR"]
    labels = np.array([classes.index(row["modality"]) for row in kept])
    paths = [pairs.path(i) for i in range(len(pairs))]
    return datasets.Labelled(list(pairs.ids), labels, classes, [row["case"] for row in kept], paths, "center")


def mias_set(folder: Path, column: str, classes: list[str]):
    with open(folder / "crops.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row[column] in classes]
    labels = np.array([classes.index(row[column]) for row in rows])
    names, patients = ([row[key] for row in rows] for key in ("file", "patient"))
    return datasets.Labelled(
        names, labels, classes, patients, [str(folder / "images" / name) for name in names], "squash"
    )


def probe_scores(features: dict, train, test):
    """AUROC in each resample of the test patients, and as it is; features {"train": (N, D), "test": (M, D)}."""
    rows = {split: one.numpy() for split, one in features.items()}
    if test is None:
        test = train
        probabilities = np.zeros((len(train), len(train.classes)))
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
        for left, right in folds.split(rows["train"], train.labels, train.patients):
            part = SimpleNamespace(labels=train.labels[left], classes=train.classes)
            probabilities[right] = probes.fit_plain(rows["train"][left], part, PENALTY)(rows["train"][right])
    else:
        probabilities = probes.fit_plain(rows["train"], train, PENALTY)(rows["test"])
    groups = np.unique(test.patients, return_inverse=True)[1]
    weights = metrics.draw_weights(np.random.default_rng(0), groups, RESAMPLES)
    every = np.concatenate([np.ones((1, len(test))), weights])
    scores = metrics.weighted_scores(test.labels, probabilities, test.classes, every)["auroc"]
    return scores[1:], scores[0]


def summarise(found: dict, seeds: list[int]) -> dict:
    """Means with intervals, and the contrasts' differences with intervals and smallest detectable differences."""
    names = list(dict.fromkeys(name for name, _ in found))
    questions = list(dict.fromkeys(key for scores in found.values() for key in scores))
    means, differences = {}, {}
    for question in questions:
        having = [name for name in names if all(question in found.get((name, seed), {}) for seed in seeds)]
        for name in having:
            points = [float(found[name, seed][question][1]) for seed in seeds]
            resampled = np.mean([found[name, seed][question][0] for seed in seeds], axis=0)
            mean = {"mean": float(np.mean(points)), "seeds": points}
            means.setdefault(question, {})[name] = {**mean, **spread(resampled, points)}
        for one, other in CONTRASTS:
            if one in having and other in having:
                pairs = [(found[one, seed][question], found[other, seed][question]) for seed in seeds]
                points = [float(a[1] - b[1]) for a, b in pairs]
                resampled = np.mean([a[0] - b[0] for a, b in pairs], axis=0)
                key = f"{one} minus {other}"
                differences.setdefault(question, {})[key] = {"difference": float(np.mean(points)), "seeds": points,
                                                             **spread(resampled, points)}  # fmt: skip
    for question in [one for one in questions if one.endswith(", projected")]:
        for name in means[question]:
            other = question.replace("projected", "pooled")
            pairs = [(found[name, seed][question], found[name, seed][other]) for seed in seeds]
            points = [float(a[1] - b[1]) for a, b in pairs]
            resampled = np.mean([a[0] - b[0] for a, b in pairs], axis=0)
            key = f"{name}: projected minus pooled"
            differences.setdefault(question.removesuffix(", projected"), {})[key] = {
                "difference": float(np.mean(points)), "seeds": points, **spread(resampled, points)}  # fmt: skip
    return {"means": means, "differences": differences}


def spread(resampled: np.ndarray, points: list[float]) -> dict:
    """Standard error over cases and over seeds, the 95% interval that both give, what could have been found."""
    cases = float(np.nanstd(resampled))
    seeds = float(np.std(points, ddof=1) / np.sqrt(len(points))) if len(points) > 1 else float("nan")
    error = float(np.hypot(cases, np.nan_to_num(seeds)))
    mean = float(np.mean(points))
    return {"ci95": [mean - 1.96 * error, mean + 1.96 * error], "error_cases": cases, "error_seeds": seeds,
            "smallest_detectable": 2.8 * error}  # fmt: skip


def show(answer: dict, seeds: list[int]) -> None:
    print(f"\nmean over seeds {seeds}, in percent, 95% interval\n")
    for question, rows in answer["means"].items():
        print(f"\n| {question} | mean (95% interval) |\n| --- | ---: |")
        for name, one in rows.items():
            print(f"| {name} | {100 * one['mean']:.1f} ({100 * one['ci95'][0]:.1f} to {100 * one['ci95'][1]:.1f}) |")
    print("\n| question | contrast | difference (95% interval) | smallest detectable |\n| --- | --- | ---: | ---: |")
    for question, rows in answer["differences"].items():
        for name, one in rows.items():
            low, high = (100 * value for value in one["ci95"])
            print(f"| {question} | {name} | {100 * one['difference']:+.1f} ({low:+.1f} to {high:+.1f}) | "
                  f"{100 * one['smallest_detectable']:.1f} |")  # fmt: skip


if __name__ == "__main__":
    main()
