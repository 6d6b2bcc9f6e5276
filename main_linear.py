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
import shutil
from pathlib import Path

import numpy as np
import torch

import checkpoints
import datasets
import distributed
import models
import utils
from data import cache, images, lock
from evaluation import audit, calibration, classifiers, features, probes, results
from evaluation.fitted import Fitted, describe
from training import signals
from utils import InputError, logger


def main(args) -> None:
    device = distributed.init_distributed(args.device, args.dist_backend, args.dist_url)
    contents, path = read_pretrained(args)
    out = folder_of(args)
    with lock.output_folder(out) as held:
        # The data.
        entry = datasets.find_entry(args.catalog, args.dataset, args.root, args.window)
        data = read_data(args, entry)
        probe = probes.choose(args, len(data["train"]), data["train"].multi)
        data = {split: dataclasses.replace(some, fit=view_of(args, probe, some)) for split, some in data.items()}
        leaks = distributed.on_rank0(audit.probe_audit, entry, data["train"], data["test"], args.allow_leakage)
        audit.show(leaks)

        # The encoder, and its features. All processes extract them; only rank 0 goes on.
        torch.manual_seed(args.seed)
        model = make_encoder(args, probe, contents, path, data["test"].classes, device)
        partial = out / "partial_features"
        found = extract_features(args, probe, model, entry, data, device, partial)
        if distributed.rank() != 0:
            return

        # The probe, fitted to the training split and asked about the test split.
        rows = {split: some.numpy() for split, some in found.items()}
        fit = probe.fit_findings if data["train"].multi else probe.fit
        classifier, selected = fit(rows.get("train"), data["train"], args)
        probabilities = classifier(rows["test"])
        kept, calibrated = keep(args, probe, classifier, selected, model, data, rows)

        # The results, written down and printed.
        summary = results.summarise(args, data, probabilities, selected, leaks, device, calibrated)
        held.check()
        results.write_results(out, summary, data, found, probabilities, kept)
        results.print_results(summary)
        logger.info(f"results, predictions and plots: {out}")
        shutil.rmtree(partial, ignore_errors=True)


def folder_of(args) -> Path:
    """The output folder of the probe that `args` asks for, once --arch is settled."""
    return utils.output_folder(args.output_dir, "probe", args.dataset, args.arch)


def read_pretrained(args) -> tuple[dict | None, str | None]:
    """Read --pretrained, and settle --arch, --image-size and --normalize -> the checkpoint's contents and its path.

    A flag that was given counts first, then the probe's recipe, then what the checkpoint was trained with.
    """
    contents, path, saved = None, None, {}
    if args.pretrained not in (None, "none", "medclip") and not models.is_published(args.pretrained):
        path = args.pretrained
        contents = checkpoints.read(path)
        saved = checkpoints.own_arguments(contents) or {}
    recipe = probes.named(args.probe).recipe if args.probe else {}
    for name, value in recipe.items():
        if getattr(args, name) not in (None, value):
            logger.warning(f"--{name.replace('_', '-')} {getattr(args, name)}: the published recipe has {value}")
    for name in ("arch", "image_size", "normalize"):
        setattr(args, name, getattr(args, name) or recipe.get(name, saved.get(name)))
    if args.arch and args.arch == saved.get("arch"):
        args.published = saved.get("published")
    models.settle_defaults(args)
    if args.pretrained == "medclip" or (models.source(args.arch).weights and models.is_published(args.pretrained)):
        contents, path = models.read_weights(args.arch, args.pretrained, args.published)
    return contents, path


def read_data(args, entry: dict) -> dict[str, datasets.Labelled]:
    """The splits "train" and "test" of a catalog entry. Raises InputError if their classes differ."""
    data = {split: distributed.on_rank0(read_split, args, entry, split) for split in ("train", "test")}
    train, test = (one.classes for one in data.values())
    if train != test:
        raise InputError(f"{entry['path']}: the classes of train and test differ: {train} and {test}")
    return data


def read_split(args, entry: dict, split: str) -> datasets.Labelled:
    """A split. An image that cannot be read is an error, or with --skip-broken left out."""
    data = datasets.labelled_set(entry, split)
    broken = images.broken_files((image for image in data.images if isinstance(image, str)), args.skip_broken)
    for reason in broken.values():
        logger.warning(f"left out: {reason}")
    data = data.without(set(broken)) if broken else data
    for name, text in data.notes.items():
        logger.info(f"{split}: {name}: {text}")
    named, lack = count_labels(data)
    patients = f" of {len(set(data.patients))} patients" if data.patients else ""
    logger.info(f"{split}: {len(data):,} images{patients}{named}")
    if split == "train" and lack:
        raise InputError(f"{entry['path']}: the training split has {lack}")
    return data


def count_labels(data: datasets.Labelled) -> tuple[str, str]:
    """The cases of each class, in words, if there are not too many classes; and what is missing to fit a probe."""
    if data.multi:
        positive, known = (data.labels == 1).sum(axis=0), np.isfinite(data.labels).sum(axis=0)
        named = [f"{name} {n} of {of} known" for name, n, of in zip(data.classes, positive, known, strict=True)]
        fits = ((positive > 0) & (positive < known)).any()
        lack = "" if fits else "no finding that is present in one image and absent in another"
    else:
        counts = np.bincount(data.labels, minlength=len(data.classes))
        named = [f"{count} {name}" for name, count in zip(data.classes, counts, strict=True)]
        lack = "fewer than two classes" if np.count_nonzero(counts) < 2 else ""
    most = 20 if data.multi else 10
    return f": {', '.join(named)}" if len(named) <= most else "", lack


def make_encoder(args, probe, contents: dict | None, path: str | None, classes: list[str], device):
    """The frozen model, on the device. Without --features: projected if its weights have a projection, else pooled."""
    model, loaded = probe.make_model(args, contents, path, classes)
    if args.features is None:  # a random projection would only lose what the encoder knows
        args.features = "projected" if "image_projection" in loaded else "pooled"
        logger.info(f"features: {args.features}")
    elif args.features == "projected" and "image_projection" not in loaded:
        logger.warning("--features projected: these weights have no projection; a random one is used")
    model.requires_grad_(False).eval().to(device)
    if args.compile:
        model.image_encoder.compile()
    return model


def view_of(args, probe, data: datasets.Labelled) -> str:
    """The `fit` with which a probe shows the images of a split, see data.views.whole."""
    return "squash" if probe.squash else models.evaluation_view(args, data.fit)


def extract_features(args, probe, model, entry: dict, data: dict, device, folder: Path) -> dict[str, torch.Tensor]:
    """The features of each split that the probe asks for; an extraction that was interrupted goes on in `folder`."""
    dtype, found = utils.amp_dtype(args.amp, device), {}
    with signals.StopRequest() as stop:
        for split in probe.splits:
            some, flips = data[split], probe.flips and split == "train"
            pictures = make_pictures(args, entry, split, some)
            found[split] = features.extract(model, some, pictures, args, device, dtype, folder / split, stop, flips)
    return found


def keep(args, probe, classifier, selected: dict, model, data: dict, rows: dict) -> tuple[Fitted | None, dict | None]:
    """-> the fitted probe as it is saved, calibrated on the training split, and what results.json says of that.

    Both are None for a probe whose `fit` gives a mere function.
    """
    if not classifiers.can_be_saved(classifier):
        logger.info(f"--probe {args.probe}: has no numbers that could be saved: it can neither be calibrated nor kept")
        return None, None
    about = describe(args, model, data["test"], rows["test"].shape[1])
    fitted = Fitted(classifier, data["test"].classes, args.features, None, about)
    said = calibration.calibrate(fitted, probe, rows.get("train"), data["train"], args, selected)
    if fitted.temperature is not None:
        calibration.add_test(said, fitted, rows["test"], data["test"])
    return fitted, said


def make_pictures(args, entry: dict, split: str, data: datasets.Labelled):
    """Decoded pictures of a split, from a cache if --cache asks for one."""
    if args.cache == "none":
        return data
    if not isinstance(data.images[0], str):
        logger.warning(f"--cache has no effect on type '{entry['type']}': its images are not separate files")
        return data
    path, root = data.images.__getitem__, entry["path"] if Path(entry["path"]).is_dir() else Path(entry["path"]).parent
    return cache.pictures(args.cache, root, f"{args.dataset}-{split}", path, len(data), args.image_size)


if __name__ == "__main__":
    distributed.run_script(main, ARGS)
