"""Probe a frozen image encoder with a linear classifier.

python main_linear.py --dataset cbis_calc --root /data/CBIS-DDSM --pretrained runs/vit/checkpoint_best.pt
python main_linear.py --dataset cbis_mass --root /data/CBIS-DDSM --arch medclip_vit --pretrained medclip
torchrun --nproc_per_node=8 main_linear.py --dataset imagenet --arch vit_base_patch16_224 --pretrained slip_base.pt

Features are extracted once; what is chosen is chosen on the training split; the test split is read once, at the end.
"""

import options

if __name__ == "__main__":  # before the heavy imports, so that --help and a wrong flag answer at once
    ARGS = options.parse(options.linear_parser())

import math
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import cache
import checkpoints
import datasets
import features
import images
import interrupt
import metrics
import models
import utils
import views
from utils import InputError, logger

LOGISTIC_ROWS = 50_000  # above it the cross-validated grid takes hours
GRID = np.logspace(-5, 3, 13)  # C, the inverse of the L2 penalty
COLUMNS = ("Model", "AUROC", "F1-Score", "Precision", "Recall", "Precision (Malignant)", "Recall (Malignant)")


def main(args) -> None:
    device = utils.init_distributed(args.device, args.dist_backend, args.dist_url)
    world = utils.world_size()
    contents, path = read_pretrained(args)
    entry = datasets.find_entry(args.catalog, args.dataset, args.root)
    splits = {split: utils.on_rank0(load_split, args, entry, split) for split in ("train", "test")}
    train, test = splits["train"], splits["test"]
    if train.classes != test.classes:
        raise InputError(f"{entry['path']}: the classes of train and test differ: {train.classes} and {test.classes}")
    probe = args.probe or ("logistic" if len(train) <= LOGISTIC_ROWS else "sgd")
    if args.probe is None and probe == "sgd":
        logger.warning(f"{len(train):,} training rows: the probe is sgd; --probe logistic is exact but takes hours")
    args.probe = probe

    torch.manual_seed(args.seed)
    model = models.create_model(
        args.arch, None, "timm" if args.pretrained == "timm" else "none", image_size=args.image_size
    )
    loaded = set()
    if contents is not None:
        loaded = checkpoints.load_weights(model, contents, path, args.arch)
    else:
        logger.info(f"weights: {'random' if args.pretrained == 'none' else 'published by timm'}")
    if args.features is None:  # a random projection would only lose what the encoder knows
        args.features = "projected" if "image_projection" in loaded else "pooled"
        logger.info(f"features: {args.features}")
    elif args.features == "projected" and "image_projection" not in loaded:
        logger.warning("--features projected: these weights have no projection; a random one is used")
    model.requires_grad_(False).eval().to(device)
    if args.compile:
        model.image_encoder.compile()
    out = Path(args.output_dir or f"runs/probe_{args.dataset}_{args.arch}").expanduser().absolute()
    if utils.rank() == 0:
        utils.make_folder(out)

    dtype = utils.amp_dtype(args.amp, device)
    workers = views.default_workers(world) if args.workers is None else args.workers
    partial = out / "partial_features"
    with interrupt.StopRequest() as stop:
        found = {
            split: features.extract(
                model, data, pictures(args, entry, split, data), args, device, dtype, workers, partial / split, stop
            )
            for split, data in splits.items()
        }
    if utils.rank() != 0:
        return
    fit = {"logistic": fit_logistic, "sgd": fit_sgd}[probe]
    predict, selected = fit(found["train"].numpy(), train, args)
    report(args, out, train, test, found, predict(found["test"].numpy()), selected, device)
    shutil.rmtree(partial, ignore_errors=True)


def read_pretrained(args) -> tuple[dict | None, str | None]:
    """Settle --arch, --pretrained and --normalize, from the checkpoint where it says -> its contents and path."""
    contents = path = None
    if args.pretrained not in (None, "none", "timm", "medclip"):
        path = args.pretrained
        contents = checkpoints.read(path)
        saved = checkpoints.own_arguments(contents) or {}
        args.arch = args.arch or saved.get("arch")
        args.normalize = args.normalize or saved.get("normalize")
        args.image_size = args.image_size or saved.get("image_size")
    args.arch, args.image_size = args.arch or "medclip_vit", args.image_size or 224
    args.pretrained = args.pretrained or ("medclip" if args.arch.startswith("medclip_") else "none")
    args.normalize = args.normalize or models.default_normalize(args.arch, args.pretrained)
    if args.pretrained == "medclip":
        path = checkpoints.download_medclip(args.arch)
        contents = checkpoints.read(path)
    return contents, path


def load_split(args, entry: dict, split: str) -> datasets.Labelled:
    """A split whose images can all be read, or with --skip-broken what is left of it."""
    data = datasets.labelled_set(entry, split)
    broken = images.unreadable((image for image in data.images if isinstance(image, str)), decode=args.skip_broken)
    if broken and not args.skip_broken:
        raise InputError(next(iter(broken.values())) + (f" ({len(broken)} such files)" if len(broken) > 1 else ""))
    for reason in broken.values():
        logger.warning(f"left out: {reason}")
    data = data.without(set(broken)) if broken else data
    counts = np.bincount(data.labels, minlength=len(data.classes))
    named = ", ".join(f"{count} {name}" for name, count in zip(data.classes, counts, strict=True))
    patients = f" of {len(set(data.patients))} patients" if data.patients else ""
    logger.info(f"{split}: {len(data):,} images{patients}" + (f": {named}" if len(counts) <= 10 else ""))
    if split == "train" and np.count_nonzero(counts) < 2:
        raise InputError(f"{entry['path']}: the training split has fewer than two classes")
    return data


def pictures(args, entry: dict, split: str, data):
    """The pictures of a split, from a cache if --cache asks for one."""
    if args.cache == "none":
        return data
    if not isinstance(data.images[0], str):
        logger.warning(f"--cache: not for type '{entry['type']}', whose images are no files of their own")
        return data
    path = data.images.__getitem__
    return cache.pictures(args.cache, entry["path"], f"{args.dataset}-{split}", path, len(data), args.image_size)


def fit_logistic(rows: np.ndarray, data, args):
    """Logistic regression on standardised features; C by the log loss of 5 folds within the training split.

    Folds are stratified by class and keep a patient's images together. Returns (features -> probabilities), selected.
    """
    counts = np.bincount(data.labels)
    folds = int(min(5, counts[counts > 0].min()))
    if data.patients:
        least = min(len({data.patients[i] for i in np.flatnonzero(data.labels == k)}) for k in np.unique(data.labels))
        folds = min(folds, least)
    if folds < 2:
        raise InputError(f"--dataset {args.dataset}: a class has fewer than two training images or patients: no folds")
    make = StratifiedGroupKFold if data.patients else StratifiedKFold
    everything = set(data.labels)
    while folds >= 2:  # grouped folds may miss a class: fewer then
        splitter = make(folds, shuffle=True, random_state=args.seed)
        cv = list(splitter.split(rows, data.labels, data.patients))
        if all(set(data.labels[part]) == everything for pair in cv for part in pair):
            break
        folds -= 1
    else:
        raise InputError(f"--dataset {args.dataset}: its patients cannot be dealt into folds that hold every class")
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    search = GridSearchCV(
        model, {"logisticregression__C": GRID}, scoring="neg_log_loss", cv=cv,
        n_jobs=len(os.sched_getaffinity(0)), error_score="raise",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(rows.astype(np.float64), data.labels)
    chosen = float(search.best_params_["logisticregression__C"])
    if chosen in (GRID[0], GRID[-1]):
        logger.warning(f"C {chosen:g} is at the end of the grid")

    def predict(unseen):
        probabilities = np.zeros((len(unseen), len(data.classes)))
        probabilities[:, search.classes_] = search.predict_proba(unseen.astype(np.float64))
        return probabilities

    return predict, {"probe": "logistic", "C": chosen, "folds": folds, "cv_log_loss": -float(search.best_score_)}


def fit_sgd(table: np.ndarray, data, args):
    """SLIP's main_linear.py on the cached features: SGD with momentum, a cosine per epoch, no choice by test data.

    The learning rate is --lr times batch size / 256, whatever the number of devices.
    """
    defaults = {"epochs": 90, "lr": 0.1, "momentum": 0.9, "wd": 0.0}
    epochs, lr, momentum, decay = (
        value if getattr(args, name) is None else getattr(args, name) for name, value in defaults.items()
    )
    rows, labels = torch.from_numpy(table), torch.from_numpy(data.labels).long()
    classifier = torch.nn.Linear(rows.shape[1], len(data.classes))
    torch.nn.init.normal_(classifier.weight, std=0.01, generator=torch.Generator().manual_seed(args.seed))
    torch.nn.init.zeros_(classifier.bias)
    peak = lr * args.batch_size / 256
    optimizer = torch.optim.SGD(classifier.parameters(), peak, momentum=momentum, weight_decay=decay)
    order = torch.Generator().manual_seed(args.seed)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = peak * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        for batch in torch.randperm(len(rows), generator=order).split(args.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(classifier(rows[batch]), labels[batch]).backward()
            optimizer.step()

    @torch.no_grad()
    def predict(unseen):
        return F.softmax(classifier(torch.from_numpy(unseen)).double(), dim=1).numpy()

    return predict, {"probe": "sgd", "epochs": epochs, "lr": lr, "momentum": momentum, "wd": decay}


def report(args, out, train, test, found, probabilities, selected, device) -> None:
    """Write results.json, predictions.csv, features.pt and the plots; print the Markdown row."""
    from tools.plots import plot_confusion, plot_roc

    scores = metrics.classification_report(test.labels, probabilities, test.classes)
    name = (
        args.name
        or f"{args.arch} ({Path(args.pretrained).name if os.path.exists(args.pretrained) else args.pretrained})"
    )
    results = {
        "dataset": args.dataset,
        "encoder": {"arch": args.arch, "pretrained": args.pretrained, "features": args.features, "name": name},
        "n_train": len(train),
        "n_test": len(test),
        "classes": test.classes,
        **scores,
        "ci95": metrics.bootstrap_intervals(test.labels, probabilities, test.classes, test.patients, seed=args.seed),
        "selected": selected,
        "run": utils.provenance(vars(args), device),
    }
    table = pd.DataFrame(
        {
            "id": test.ids,
            "patient": test.patients or "",
            "label": [test.classes[k] for k in test.labels],
            "predicted": [test.classes[k] for k in probabilities.argmax(axis=1)],
            **{f"p_{one}": probabilities[:, k] for k, one in enumerate(test.classes)},
        }
    )
    utils.write_text(out / "predictions.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.17g"))
    saved = {split: {"features": found[split], "labels": torch.from_numpy(data.labels), "ids": data.ids}
             for split, data in (("train", train), ("test", test))}  # fmt: skip
    utils.save_tensors({**saved, "classes": test.classes}, out / "features.pt")
    title = f"{args.dataset}: {name}"
    plot_roc(out / "roc.png", test.labels, probabilities, test.classes, title)
    plot_confusion(out / "confusion.png", test.labels, probabilities.argmax(axis=1), test.classes, title)
    utils.write_json(out / "results.json", results)
    print_row(name, scores, results["ci95"])
    logger.info(f"results, predictions and plots: {out}")


def print_row(name: str, scores: dict, intervals: dict) -> None:
    """The published table's columns, in percent; a set without the class MALIGNANT has N/A in its two."""

    def percent(value):
        return "N/A" if value is None else f"{100 * value:.2f}"

    macro, malignant = scores["macro"], scores["per_class"].get("MALIGNANT", {"precision": None, "recall": None})
    values = [macro[key] for key in ("auroc", "f1", "precision", "recall")]
    values += [malignant["precision"], malignant["recall"]]
    print("| " + " | ".join(COLUMNS) + " |")
    print("| --- |" + " ---: |" * len(values))
    print(f"| {name} | " + " | ".join(percent(value) for value in values) + " |", flush=True)
    if intervals.get("auroc"):
        low, high = intervals["auroc"]
        logger.info(f"AUROC 95% interval {percent(low)} to {percent(high)} (bootstrap over the test split's patients)")


if __name__ == "__main__":
    utils.run_script(main, ARGS)
