"""The probes: what is fitted on features of a frozen encoder, and chosen on the training split alone."""

import dataclasses
import math
import os
import warnings
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import models
from evaluation.classifiers import Findings, Linear, NearestNeighbours, StandardisedLinear, TwoLinear, neighbours
from options import PROBES
from utils import InputError, logger, resolve

GRID = np.logspace(-5, 3, 13)  # C, the inverse of the L2 penalty
LOGISTIC_ROWS = 50_000  # training rows above which that grid takes hours
NEIGHBOURS = (1, 3, 5, 10, 20, 50, 100, 200)
SMALL = 300_000  # numbers: with fewer, one process has fitted the grid before others would have started
FLIP_CHANCE = 0.3  # the published recipe's, of each of the two flips


class Probe:
    """A probe, and what it is to be given. A new one is a subclass with its own `fit`, and a line in options.PROBES."""

    recipe: ClassVar[dict] = {}  # its `image_size` and `normalize`, where they are not to be the checkpoint's
    squash = False  # whether images are squashed to the square, however their data set is shown
    flips = False  # whether its training features are (N, 4, D): each image in all of features.FLIPS
    splits = ("train", "test")  # those whose features it needs; without "train", `fit` is given None for them
    takes_findings = True  # whether it can be fitted to multi-label sets
    multi = False  # whether the set that it is chosen for is multi-label
    calibration_folds = 1  # of five: each takes as long as four fifths of `refit` of all

    def make_model(self, args, contents: dict | None, path: str | None, classes: list[str]):
        """-> models.MedSLIP with the weights of a checkpoint, and the names of the parts that it has weights for.

        `contents` and `path` are the checkpoint's; without one (--pretrained timm, none) both are None.
        """
        model = models.create_model(
            args.arch, None, args.pretrained, image_size=args.image_size, published=args.published,
            weights=None if contents is None else (contents, path),
        )  # fmt: skip
        if contents is None:
            logger.info(f"weights: {'random' if args.pretrained == 'none' else 'published by timm'}")
        return model, model.loaded

    def fit(self, rows: np.ndarray, data, args):
        """From the training split (datasets.Labelled) and its features (N, D) float32 -> a function from the features
        of unseen images (M, D) to probabilities (M, K), and a dict of what was selected.

        A function that is one of classifiers.KINDS is calibrated, and saved with the results.
        """
        raise NotImplementedError

    def fit_findings(self, rows: np.ndarray, data, args):
        """`fit` for a multi-label training split: each finding by itself, on the cases where it is known.

        A finding without a probe has probabilities of nan, and is logged: it is not known to be both present and
        absent, or `fit` refuses it. Raises InputError if that is so of all.
        """
        fitted, selected = {}, {}
        for k in findings_to_fit(data):
            known, some = one_finding(data, k)
            try:
                fitted[k], selected[data.classes[k]] = self.fit(rows[known], some, args)
            except InputError as error:
                logger.warning(f"{data.classes[k]}: no probe, N/A: {error}")
                continue
            logger.info(f"{data.classes[k]}: {selected[data.classes[k]]}")
        if not fitted:
            raise InputError(f"--probe {args.probe}: no finding of --dataset {args.dataset} has cases enough for it")
        return Findings(fitted, len(data.classes)), {"findings": selected}

    def refit(self, rows: np.ndarray, data, args, selected: dict):
        """The function of `fit` for a part of the training split, with what was `selected` on all of it; a probe that
        selects nothing is fitted as it is."""
        return self.fit(rows, data, args)[0]

    def refit_findings(self, rows: np.ndarray, data, args, selected: dict) -> Findings:
        """`refit` for a part of a multi-label split; without the findings that are of one kind in it."""
        fitted, each = {}, selected["findings"]
        for k in np.flatnonzero(kinds(data).all(axis=0)):
            if data.classes[k] in each:
                known, some = one_finding(data, k)
                fitted[int(k)] = self.refit(rows[known], some, args, each[data.classes[k]])
        return Findings(fitted, len(data.classes))


def take(data, keep: np.ndarray):
    """The cases `keep` (n,) of datasets.Labelled."""
    patients = [data.patients[i] for i in keep] if data.patients else None
    images = torch.utils.data.Subset(data.images, keep.tolist())  # none of which is read
    return dataclasses.replace(
        data, ids=[data.ids[i] for i in keep], labels=data.labels[keep], patients=patients, images=images
    )


def one_finding(data, k: int):
    """-> the cases of a multi-label set in which finding k is known, (n,), and these as a set of two classes."""
    known = np.flatnonzero(np.isfinite(data.labels[:, k]))
    labels = data.labels[known, k].astype(np.int64)
    return known, dataclasses.replace(take(data, known), labels=labels, classes=["absent", "present"])


def kinds(data) -> np.ndarray:
    """Whether each finding of a multi-label set is absent in some case, and present in some: (2, K) bool."""
    return np.stack([(data.labels == value).any(axis=0) for value in (0, 1)])


def findings_to_fit(data) -> list[int]:
    """The findings of a multi-label set that are present in some case and absent in another; the others are logged."""
    found = kinds(data)
    for name, (absent, present) in zip(data.classes, found.T, strict=True):
        if not (absent and present):
            lacks = "positive" if absent else "negative" if present else "known"
            logger.warning(f"{name}: no probe, N/A: the training split has no {lacks} case")
    return np.flatnonzero(found.all(axis=0)).tolist()


def named(name: str) -> Probe:
    """The probe of a name in options.PROBES."""
    probe = resolve(PROBES[name])()
    assert "test" in probe.splits and probe.recipe.keys() <= {"image_size", "normalize"}, f"{name}: see Probe"
    return probe


def choose(args, rows: int, multi: bool = False) -> Probe:
    """The probe of --probe; without it, by the number of training rows, the logistic one or SLIP's SGD.

    Raises InputError for one that cannot be fitted to a multi-label set, if it is for one.
    """
    if args.probe is None:
        args.probe = "logistic" if rows <= LOGISTIC_ROWS else "sgd"
        if args.probe == "sgd":
            logger.warning(f"{rows:,} training rows: the probe is sgd; --probe logistic is exact but takes hours")
    probe = named(args.probe)
    if multi and not probe.takes_findings:
        others = ", ".join(name for name in PROBES if named(name).takes_findings)
        raise InputError(f"--probe {args.probe}: --dataset {args.dataset} has several findings an image: take {others}")
    probe.multi = multi
    return probe


def make_folds(data, args) -> list[tuple[np.ndarray, np.ndarray]]:
    """Five folds or fewer, each (rows to train on, rows held out): stratified by class, a patient's images in one fold.

    Raises InputError if no two folds can both hold every class.
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
    while folds >= 2:  # folds of whole patients may miss a class: then there are fewer
        splitter = make(folds, shuffle=True, random_state=args.seed)
        cv = list(splitter.split(np.zeros(len(data.labels)), data.labels, data.patients))
        if all(set(data.labels[part]) == everything for pair in cv for part in pair):
            return cv
        folds -= 1
    raise InputError(f"--dataset {args.dataset}: its patients cannot be dealt into folds that hold every class")


def fit_plain(rows: np.ndarray, data, penalty: float) -> StandardisedLinear:
    """The logistic probe with a given C."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=2000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows.astype(np.float64), data.labels)
    return StandardisedLinear.of(model, len(data.classes))


class Logistic(Probe):
    """Logistic regression on standardised features; C has the least log loss over `make_folds`."""

    calibration_folds = 5

    def fit(self, rows: np.ndarray, data, args):
        cv = make_folds(data, args)
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        search = GridSearchCV(
            model, {"logisticregression__C": GRID}, scoring="neg_log_loss", cv=cv,
            n_jobs=len(os.sched_getaffinity(0)) if rows.size > SMALL else 1, error_score="raise",
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            search.fit(rows.astype(np.float64), data.labels)
        chosen = float(search.best_params_["logisticregression__C"])
        if chosen in (GRID[0], GRID[-1]):
            logger.warning(f"the chosen C, {chosen:g}, is at an end of the grid: one beyond it may do better")
        selected = {"C": chosen, "folds": len(cv), "cv_log_loss": -float(search.best_score_)}
        return StandardisedLinear.of(search.best_estimator_, len(data.classes)), selected

    def refit(self, rows: np.ndarray, data, args, selected: dict):
        return fit_plain(rows, data, selected["C"])


class Neighbours(Probe):
    """The k nearest training images by cosine similarity, each with a vote of weight exp(similarity / 0.07) (Wu et al.,
    CVPR 2018; facebookresearch/dinov2, eval/knn.py); k has the highest macro AUROC over `make_folds`."""

    calibration_folds = 5

    def fit(self, rows: np.ndarray, data, args):
        cv = make_folds(data, args)
        fewest = min(len(train) for train, _ in cv)

        def macro_auroc(model, unseen, labels):
            probabilities = model.predict_proba(unseen)
            each = [roc_auc_score(labels == k, probabilities[:, i]) for i, k in enumerate(model.classes_)]
            return float(np.mean(each))

        search = GridSearchCV(
            neighbours(), {"n_neighbors": [k for k in NEIGHBOURS if k <= fewest]}, scoring=macro_auroc, cv=cv,
            error_score="raise", refit=False,
        )  # fmt: skip
        search.fit(rows.astype(np.float64), data.labels)
        chosen = int(search.best_params_["n_neighbors"])
        selected = {"k": chosen, "folds": len(cv), "cv_auroc": float(search.best_score_)}
        return keep_neighbours(rows, data, chosen), selected

    def refit(self, rows: np.ndarray, data, args, selected: dict):
        return keep_neighbours(rows, data, min(selected["k"], len(rows)))


def keep_neighbours(rows: np.ndarray, data, k: int) -> NearestNeighbours:
    return NearestNeighbours(torch.from_numpy(rows), torch.from_numpy(data.labels).long(), k, len(data.classes))


class SGD(Probe):
    """SLIP's linear classifier, on features that were extracted once: SGD with momentum, its learning rate on a cosine
    over the epochs, and the last epoch's weights.

    The learning rate begins at --lr times batch size / 256, whatever the number of devices.
    """

    def fit(self, table: np.ndarray, data, args):
        labels = torch.from_numpy(data.labels).long()
        classifier, selected = self.train(table, labels, len(data.classes), F.cross_entropy, args)
        return linear(classifier, np.arange(len(data.classes)), len(data.classes)), selected

    def fit_findings(self, table: np.ndarray, data, args):
        """All findings at once. Their losses are added, so that each takes the steps it would take alone."""
        return self.train_findings(table, data, findings_to_fit(data), args)

    def refit_findings(self, table: np.ndarray, data, args, selected: dict):
        return self.train_findings(table, data, np.flatnonzero(kinds(data).all(axis=0)), args)[0]

    def train_findings(self, table: np.ndarray, data, fitted, args):
        labels = torch.from_numpy(data.labels[:, fitted])
        classifier, selected = self.train(table, labels, len(fitted), known_cross_entropy, args)
        return linear(classifier, fitted, len(data.classes), multi=True), selected

    def train(self, table: np.ndarray, labels: torch.Tensor, outputs: int, loss, args):
        """-> the classifier, and the settings that it was trained with."""
        defaults = {"epochs": 90, "lr": 0.1, "momentum": 0.9, "wd": 0.0}
        epochs, lr, momentum, decay = (
            value if getattr(args, name) is None else getattr(args, name) for name, value in defaults.items()
        )
        rows = torch.from_numpy(table)
        classifier = torch.nn.Linear(rows.shape[1], outputs)
        torch.nn.init.normal_(classifier.weight, std=0.01, generator=torch.Generator().manual_seed(args.seed))
        torch.nn.init.zeros_(classifier.bias)
        peak = lr * args.batch_size / 256
        optimizer = torch.optim.SGD(classifier.parameters(), peak, momentum=momentum, weight_decay=decay)
        order = torch.Generator().manual_seed(args.seed)
        for epoch in range(epochs):
            optimizer.param_groups[0]["lr"] = peak * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
            for batch in torch.randperm(len(rows), generator=order).split(args.batch_size):
                optimizer.zero_grad()
                loss(classifier(rows[batch]), labels[batch]).backward()
                optimizer.step()
        return classifier, {"epochs": epochs, "lr": lr, "momentum": momentum, "wd": decay}


def linear(layer: torch.nn.Linear, columns, count: int, multi: bool = False) -> Linear:
    return Linear(layer.weight.detach(), layer.bias.detach(), torch.as_tensor(columns), count, multi)


def known_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of labels (B, K) of 0, 1 or nan (left out): the sum over findings, the mean over cases."""
    known = labels.isfinite()
    return F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), known.float(), reduction="sum") / len(labels)


class PublishedRecipe(Probe):
    """The recipe of the published rows, as far as it is known.

    The training images come in their order, unshuffled; in every epoch each is flipped left to right and upside down,
    both with a probability of 0.3; the head is two linear layers with nothing between them, and the last epoch's
    counts. The encoder is in eval mode, so the features of every image and its flips can be extracted beforehand.
    """

    recipe: ClassVar[dict] = {"image_size": 384, "normalize": "imagenet"}
    squash = flips = True
    takes_findings = False

    def fit(self, table: np.ndarray, data, args):
        epochs, batch, peak, restart = 15, 16, 1e-3 * 16 / 256, 5
        rows, labels = torch.from_numpy(table), torch.from_numpy(data.labels).long()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(args.seed)
            head = torch.nn.Sequential(torch.nn.Linear(rows.shape[-1], 1024), torch.nn.Linear(1024, len(data.classes)))
        optimizer = torch.optim.AdamW(head.parameters(), peak)
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, restart)
        for epoch in range(epochs):
            which = draw_flips(len(rows), epoch, args.seed)
            for some in torch.arange(len(rows)).split(batch):
                optimizer.zero_grad()
                F.cross_entropy(head(rows[some, which[some]]), labels[some]).backward()
                optimizer.step()
                schedule.step()
        selected = {
            "label": "medslip recipe", "epochs": epochs, "batch_size": batch, "lr": peak,
            "restart_every_steps": restart, "flip_chance": FLIP_CHANCE,
        }  # fmt: skip
        parts = (x.detach() for layer in head for x in (layer.weight, layer.bias))
        return TwoLinear(*parts), selected


def draw_flips(n: int, epoch: int, seed: int) -> torch.Tensor:
    """Which of features.FLIPS each of n images is shown in during an epoch: (n,) int64."""
    left_right, upside_down = np.random.default_rng((seed, epoch)).random((2, n)) < FLIP_CHANCE
    return torch.from_numpy(left_right + 2 * upside_down).long()
