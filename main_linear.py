"""Probe a frozen image encoder with a linear classifier.

python main_linear.py --dataset cbis_calc --root /data/CBIS-DDSM --pretrained runs/vit/checkpoint_best.pt
python main_linear.py --dataset cbis_mass --root /data/CBIS-DDSM --arch medclip_vit --pretrained medclip
torchrun --nproc_per_node=8 main_linear.py --dataset imagenet --arch vit_base_patch16_224 --pretrained slip_base.pt

Features are extracted once; what is chosen is chosen on the training split; the test split is read once, at the end.
"""

import options

if __name__ == "__main__":  # before the heavy imports, so that --help and a wrong flag answer at once
    ARGS = options.parse(options.linear_parser())

import dataclasses
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import checkpoints
import datasets
import distributed
import models
import utils
from data import cache, images, lock
from data.batches import default_workers
from evaluation import audit, features, metrics, probes, zeroshot
from training import signals
from utils import InputError, logger

LOGISTIC_ROWS = 50_000  # above it the cross-validated grid takes hours
FITS = {
    "logistic": probes.fit_logistic, "sgd": probes.fit_sgd, "medslip": probes.fit_medslip, "knn": probes.fit_knn,
}  # fmt: skip
HARDEST = 12  # test cases named in results.json
COLUMNS = ("Model", "AUROC", "F1-Score", "Precision", "Recall", "Precision (Malignant)", "Recall (Malignant)")


def main(args) -> None:
    device = distributed.init_distributed(args.device, args.dist_backend, args.dist_url)
    contents, path = read_pretrained(args)
    out = Path(args.output_dir or f"runs/probe_{args.dataset}_{args.arch}").expanduser().absolute()
    with lock.output_folder(out) as held:
        run(args, device, contents, path, out, held)


def run(args, device, contents: dict | None, path: str | None, out: Path, held) -> None:
    """The probe of the weights in `contents`, while `held` (lock.Lock) keeps others out of the folder."""
    world = distributed.world_size()
    entry = datasets.find_entry(args.catalog, args.dataset, args.root)
    splits = {split: distributed.on_rank0(load_split, args, entry, split) for split in ("train", "test")}
    train, test = splits["train"], splits["test"]
    if train.classes != test.classes:
        raise InputError(f"{entry['path']}: the classes of train and test differ: {train.classes} and {test.classes}")
    probe = args.probe or ("logistic" if len(train) <= LOGISTIC_ROWS else "sgd")
    if args.probe is None and probe == "sgd":
        logger.warning(f"{len(train):,} training rows: the probe is sgd; --probe logistic is exact but takes hours")
    args.probe = probe
    if probe == "medslip":  # squashed whatever the set
        train, test = (dataclasses.replace(data, fit="squash") for data in (train, test))
    leaks = distributed.on_rank0(audit.probe_audit, entry, train, test, args.allow_leakage)
    audit.show(leaks)
    prompts = zeroshot.read_prompts(args.prompts, args.dataset, test.classes) if probe == "zeroshot" else None

    torch.manual_seed(args.seed)
    if probe == "zeroshot":
        model, tokenizer, loaded, context_length = zeroshot.make_model(args, contents, path)
    else:
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

    dtype = utils.amp_dtype(args.amp, device)
    workers = default_workers(world) if args.workers is None else args.workers
    partial = out / "partial_features"
    with signals.StopRequest() as stop:
        found = {
            split: features.extract(
                model, data, pictures(args, entry, split, data), args, device, dtype, workers, partial / split, stop,
                flips=probe == "medslip" and split == "train",
            )
            for split, data in (("train", train), ("test", test))
            if not (probe == "zeroshot" and split == "train")
        }  # fmt: skip
    if distributed.rank() != 0:
        return
    if probe == "zeroshot":
        predict, selected = zeroshot.fit(model, tokenizer, prompts, context_length, device, dtype)
    else:
        predict, selected = FITS[probe](found["train"].numpy(), train, args)
    held.check()
    report(args, out, train, test, found, predict(found["test"].numpy()), selected, leaks, device)
    shutil.rmtree(partial, ignore_errors=True)


def read_pretrained(args) -> tuple[dict | None, str | None]:
    """Settle --arch, --pretrained and --normalize, from the checkpoint where it says -> its contents and path."""
    contents = path = None
    if args.pretrained not in (None, "none", "timm", "medclip"):
        path = args.pretrained
        contents = checkpoints.read(path)
        saved = checkpoints.own_arguments(contents) or {}
        args.arch = args.arch or saved.get("arch")
        if args.probe != "medslip":
            args.normalize = args.normalize or saved.get("normalize")
            args.image_size = args.image_size or saved.get("image_size")
    args.arch = args.arch or "medclip_vit"
    if args.probe == "medslip":
        recipe = {"image_size": 384, "normalize": "imagenet"}
        for name, value in recipe.items():
            if getattr(args, name) not in (None, value):
                logger.warning(f"--{name.replace('_', '-')} {getattr(args, name)}: the published recipe has {value}")
            setattr(args, name, getattr(args, name) or value)
    args.image_size = args.image_size or 224
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


def report(args, out, train, test, found, probabilities, selected, leaks, device) -> None:
    """Write results.json, predictions.csv, features.pt and the plots; print the Markdown row."""
    from tools.plots import plot_confusion, plot_roc

    assert np.isfinite(probabilities).all()
    scores = metrics.classification_report(test.labels, probabilities, test.classes)
    name = (
        args.name
        or f"{args.arch} ({Path(args.pretrained).name if os.path.exists(args.pretrained) else args.pretrained})"
    ) + (f" ({selected['label']})" if "label" in selected else "")
    results = {
        "dataset": args.dataset,
        "encoder": {"arch": args.arch, "pretrained": args.pretrained, "features": args.features, "name": name},
        "n_train": len(train),
        "n_test": len(test),
        "classes": test.classes,
        **scores,
        "ci95": metrics.bootstrap_intervals(test.labels, probabilities, test.classes, test.patients, seed=args.seed),
        "selected": selected,
        "audit": leaks,
        "data": {split: fingerprint(data) for split, data in (("train", train), ("test", test))},
        "hardest": hardest(test, probabilities),
        "run": utils.provenance(vars(args), device, distributed.world_size()),
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
    saved = {
        split: {
            "features": found[split], "labels": torch.from_numpy(data.labels), "ids": data.ids,
            "patients": data.patients or [],
        }
        for split, data in (("train", train), ("test", test)) if split in found
    }  # fmt: skip
    utils.save_tensors({**saved, "classes": test.classes}, out / "features.pt")
    title = f"{args.dataset}: {name}"
    plot_roc(out / "roc.png", test.labels, probabilities, test.classes, title)
    plot_confusion(out / "confusion.png", test.labels, probabilities.argmax(axis=1), test.classes, title)
    utils.write_json(out / "results.json", results)
    print_row(name, scores, results["ci95"])
    logger.info(f"results, predictions and plots: {out}")


def fingerprint(data) -> dict:
    """The number of cases, and a SHA-256 over their ids and labels."""
    rows = "".join(f"{one}\t{data.classes[label]}\n" for one, label in zip(data.ids, data.labels, strict=True))
    return {"images": len(data), "sha256": hashlib.sha256(rows.encode()).hexdigest()}


def hardest(test, probabilities: np.ndarray) -> list[dict]:
    """The test cases whose own class was given the least probability, worst first."""
    own = probabilities[np.arange(len(test)), test.labels]
    return [
        {
            "id": test.ids[i],
            "patient": test.patients[i] if test.patients else "",
            "label": test.classes[test.labels[i]],
            "predicted": test.classes[probabilities[i].argmax()],
            "p_label": float(own[i]),
            "path": test.images[i] if isinstance(test.images[i], str) else "",
        }
        for i in np.argsort(own, kind="stable")[:HARDEST]
    ]


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

    def with_interval(name, value):
        low, high = intervals.get(name) or (None, None)
        return f"{percent(value)} ({percent(low)} to {percent(high)})"

    every = metrics.flat(scores)
    shown = ["auroc", "average_precision", "f1", "precision", "recall", "ece", "brier"]
    shown += [name for name in every if name.startswith("MALIGNANT.")]
    logger.info("with 95% intervals over the test split's patients: "
                + "; ".join(f"{name} {with_interval(name, every[name])}" for name in shown))  # fmt: skip


if __name__ == "__main__":
    distributed.run_script(main, ARGS)
