"""Temperature scaling (Guo et al., ICML 2017, section 4.2): one number that divides all logits of a fitted probe, or of
findings one each. It has the least log loss over logits of training cases by probes that were fitted without them, and
changes neither a case's most probable class nor the order of a finding's cases."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from evaluation import metrics
from evaluation.fitted import Fitted
from evaluation.probes import LOGISTIC_ROWS, Probe, make_folds, take
from utils import InputError, logger

FOLDS = 5
RANGE = 0.1, 100.0  # of a temperature; cases that are all told apart would ask for 0


def calibrate(fitted: Fitted, probe: Probe, rows: np.ndarray | None, data, args, selected: dict) -> dict:
    """Give `fitted` its temperature, from the training split alone: its features (N, D) and datasets.Labelled.

    `selected` is what `fit` of the probe selected. -> what results.json says of it. A probe without training features,
    or whose training cases are too few for folds, has no temperature, and is logged.
    """
    try:
        if rows is None:
            raise InputError(f"--probe {args.probe} has no training features")
        logits, folds = out_of_fold(probe, rows, data, args, selected)
    except InputError as error:
        logger.warning(f"not calibrated: {error}")
        return {"temperature": None, "why": str(error)}
    said = {"method": "temperature scaling", "folds": folds}
    if not data.multi:
        temperature, found = fit_temperature(logits, data.labels)
        if np.isnan(temperature):
            logger.warning(f"not calibrated: {found['why']}")
        else:
            fitted.temperature = temperature
        return {**said, **found}
    each = {name: fit_temperature(*finding(logits, data.labels, k)) for k, name in enumerate(data.classes)}
    fitted.temperature = np.array([temperature for temperature, _ in each.values()])
    return {**said, "per_class": {name: found for name, (_, found) in each.items()}}


def out_of_fold(probe: Probe, rows: np.ndarray, data, args, selected: dict) -> tuple[np.ndarray, int]:
    """The logits (N, K) of each training case by a probe that was fitted without its patient, with the hyperparameters
    that were `selected`, and the number of folds; nan for cases that are in no fold, and findings without a probe.

    As many folds of five are held out as the probe says, above LOGISTIC_ROWS one. Raises InputError as `make_folds`.
    """
    folds = deal_patients(data, args.seed) if data.multi else make_folds(data, args)
    folds = folds[: 1 if len(rows) > LOGISTIC_ROWS else probe.calibration_folds]
    logits = np.full((len(rows), len(data.classes)), np.nan)
    refit = probe.refit_findings if data.multi else probe.refit
    for train, held in folds:
        classifier = refit(rows[train], take(data, train), args, selected)
        unseen = rows[held]
        logits[held] = classifier.logits(unseen[:, 0] if probe.flips else unseen)  # not flipped, as in the test
    return logits, len(folds)


def deal_patients(data, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds of a multi-label set, a patient's images in one of them: the same for all findings."""
    group = np.unique(np.asarray(data.patients or data.ids), return_inverse=True)[1]
    fold = (np.random.default_rng(seed).permutation(group.max() + 1) % FOLDS)[group]
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(FOLDS) if (fold == k).any()]


def finding(logits: np.ndarray, labels: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels (N, K) -> those of finding k where it is known, as two classes: (n, 2) and (n,)."""
    known = np.isfinite(labels[:, k])
    positive = logits[known, k]
    return np.stack([np.zeros_like(positive), positive], axis=1), labels[known, k].astype(np.int64)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> tuple[float, dict]:
    """Logits (N, K) and labels (N,) -> the temperature, and what is said of it: the log loss before and after.

    Cases with logits of nan are left out; without two kinds of case among the others the temperature is nan. One that
    lowers the loss by nothing is not taken: it is 1.
    """
    scored = ~np.isnan(logits).any(axis=1)
    logits, labels = logits[scored], labels[scored]
    if len(np.unique(labels)) < 2:
        return np.nan, {"temperature": None, "why": "no logits of cases of two kinds"}

    def loss(log_temperature: float) -> float:  # convex in 1 / temperature, so with one valley
        return log_loss(logits / np.exp(log_temperature), labels)

    ends = np.log(RANGE)
    best = float(minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-5}).x)
    if not loss(best) < loss(0.0):  # all have a probability of 1, at any temperature
        best = 0.0
    if min(abs(best - ends)) < 1e-3:
        logger.warning(
            f"the temperature, {np.exp(best):.3g}, is at an end of its range: the cases say too little of it"
        )
    said = {"n": len(labels), "log_loss": {"before": loss(0.0), "after": loss(best)}}
    return float(np.exp(best)), {"temperature": float(np.exp(best)), "out_of_fold": said}


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


def add_test(said: dict, fitted: Fitted, rows: np.ndarray, test) -> None:
    """Add to what `calibrate` said the errors on the test split, of which the features (N, D) are, before and after."""
    tables = {"before": fitted(rows), "after": fitted.calibrated(rows)}
    if not test.multi:
        said["test"] = {when: errors(table, test.labels) for when, table in tables.items()}
        return
    for k, name in enumerate(test.classes):
        known = np.isfinite(test.labels[:, k])
        labels = test.labels[known, k].astype(np.int64)
        pairs = {when: np.stack([1 - x[known, k], x[known, k]], axis=1) for when, x in tables.items()}
        if known.any() and np.isfinite(pairs["before"]).all():
            said["per_class"][name]["test"] = {when: errors(pair, labels) for when, pair in pairs.items()}


def errors(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The expected calibration error of the most probable class, as metrics has it, and the log loss, in which a
    probability of 0 counts as 1e-15."""
    own = probabilities[np.arange(len(labels)), labels]
    ece = metrics.weighted_ece(labels, probabilities, np.ones((1, len(labels))))[0]
    return {"ece": float(ece), "log_loss": float(-np.log(np.maximum(own, 1e-15)).mean())}
