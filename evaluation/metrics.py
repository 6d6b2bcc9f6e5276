"""Classification and retrieval metrics, and confidence intervals over patients."""

import numpy as np
import torch

RESAMPLES = 2000
BINS = 15  # of the calibration error, equal in width
SPECIFICITIES = (80, 90)  # percent, at which the sensitivity is given
MACRO = ("auroc", "average_precision", "f1", "precision", "recall")  # the means over classes
THRESHOLD = 0.5  # the probability from which a finding of a multi-label set counts as predicted
MOST_SCORES = 5_000_000  # above it no intervals: hours, for a tenth of a percent


def classification_report(labels: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> dict:
    """`macro` and `per_class` of results.json. labels (N,) index `classes`; probabilities (N, K), rows sum to 1.

    AUROC, average precision and the sensitivities are of one class against the rest; a macro metric is the plain mean
    over classes. They are None where no test case is of a class. The prediction is the most probable class; the
    precision of a class that is never predicted is 0. `ece` is the expected calibration error of the most probable
    class over 15 equal bins (Guo et al., ICML 2017); `brier` is the sum over classes of squared errors (Brier 1950),
    from 0 to 2. For multi-label cases, labels (N, K), see `findings_report`.
    """
    if labels.ndim == 2:
        return findings_report(labels, probabilities, classes)
    # Here, not above: it brings SciPy's statistics, which take two seconds, and a training needs neither.
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score, roc_curve

    predicted = probabilities.argmax(axis=1)
    numbers = np.arange(len(classes))
    precision, recall, f1, n = precision_recall_fscore_support(labels, predicted, labels=numbers, zero_division=0)
    per_class = {}
    for k, name in enumerate(classes):
        positive, scores = labels == k, probabilities[:, k]
        defined = 0 < positive.sum() < len(labels)
        per_class[name] = {
            "auroc": float(roc_auc_score(positive, scores)) if defined else None,
            "average_precision": float(average_precision_score(positive, scores)) if defined else None,
            "precision": float(precision[k]),
            "recall": float(recall[k]),
            "f1": float(f1[k]),
            "n": int(n[k]),
        }
        false, true, _ = roc_curve(positive, scores, drop_intermediate=False) if defined else (None, None, None)
        for percent in SPECIFICITIES:
            value = float(true[false <= 1 - percent / 100 + 1e-12].max()) if defined else None
            per_class[name][f"sensitivity_at_{percent}_specificity"] = value

    def mean(metric):
        values = [one[metric] for one in per_class.values()]
        return None if None in values else float(np.mean(values))

    macro = {name: mean(name) for name in MACRO}
    ones = np.ones((1, len(labels)))
    macro["ece"] = float(weighted_ece(labels, probabilities, ones)[0])
    macro["brier"] = float(brier(labels, probabilities).mean())
    return {"macro": macro, "per_class": per_class}


def findings_report(labels: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> dict:
    """`macro` and `per_class` of multi-label cases: labels (N, K) of 0, 1 or nan for unknown, probabilities (N, K).

    A finding is scored on the cases where it is known: `n` positive ones of `n_known`. Its precision, recall and F1 are
    at a probability of 0.5. Its metrics are None where its known cases are not of both kinds, or its probabilities are
    nan; a macro metric is the mean over the findings that have it.
    """
    found, macro = finding_scores(labels, probabilities, np.ones((1, len(labels))))

    def plain(value: float) -> float | None:
        return None if np.isnan(value) else float(value)

    per_class = {}
    for k, name in enumerate(classes):
        counts = {"n": int((labels[:, k] == 1).sum()), "n_known": int(np.isfinite(labels[:, k]).sum())}
        per_class[name] = {metric: plain(values[0, k]) for metric, values in found.items()} | counts
    return {"macro": {name: plain(values[0]) for name, values in macro.items()}, "per_class": per_class}


def flat(scores: dict) -> dict[str, float | None]:
    """What `classification_report` gave in one dict: a macro metric by its name, a class's as `CLASS.metric`."""
    each = {
        f"{name}.{metric}": value
        for name, values in scores["per_class"].items()
        for metric, value in values.items()
        if metric not in ("n", "n_known")
    }
    return {**scores["macro"], **each}


# The bootstrap


def bootstrap_intervals(labels, probabilities, classes, patients=None, resamples: int = RESAMPLES, seed: int = 0):
    """95% percentile intervals of all metrics, {name of `flat`: [low, high]}, over resampled patients.

    A class's metrics are undefined in a resample without a case of it, which then does not count for their intervals.
    The interval of a metric that no resample defines is None; above five million probabilities all of them are.
    """
    if probabilities.size > MOST_SCORES:
        names = flat(classification_report(labels[:1], probabilities[:1], classes))
        return dict.fromkeys(names)
    values = bootstrap(labels, [probabilities], classes, patients, resamples, seed)[0]
    return {name: interval(one) for name, one in values.items()}


def interval(values: np.ndarray) -> list[float] | None:
    """The 2.5% and 97.5% quantiles of those values that are finite."""
    finite = values[np.isfinite(values)]
    return [float(one) for one in np.quantile(finite, (0.025, 0.975))] if len(finite) else None


def bootstrap(labels, tables: list[np.ndarray], classes, patients, resamples: int, seed: int) -> list[dict]:
    """Every metric in every resample, {name: (resamples,)} for each table of probabilities (N, K).

    All tables have the same resamples. Patients are drawn with replacement, each with all their cases (the cluster
    bootstrap; Efron & Tibshirani 1993, chapter 8); where `patients` is None, cases are.
    """
    n = len(labels)
    group = np.arange(n) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    block = max(1, min(resamples, 2_000_000 // n))
    parts = [[] for _ in tables]
    for start in range(0, resamples, block):
        weights = draw_weights(rng, group, min(block, resamples - start))
        for found, probabilities in zip(parts, tables, strict=True):
            found.append(weighted_scores(labels, probabilities, classes, weights))
    return [{name: np.concatenate([part[name] for part in found]) for name in found[0]} for found in parts]


def draw_weights(rng: np.random.Generator, group: np.ndarray, count: int) -> np.ndarray:
    """How often each case is in each of `count` resamples of the groups (N,): (count, N) whole numbers as float64."""
    groups = int(group.max()) + 1
    draws = rng.integers(groups, size=(count, groups)) + groups * np.arange(count)[:, None]
    return np.bincount(draws.ravel(), minlength=count * groups).reshape(count, groups)[:, group].astype(np.float64)


def weighted_scores(labels, probabilities, classes, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of `classification_report` for each row of case weights (R, N) -> {name of `flat`: (R,)}.

    A resample is a weight for each case, so that all resamples are computed by matrix products and cumulative sums.
    """
    if labels.ndim == 2:
        found, macro = finding_scores(labels, probabilities, weights)
        return macro | by_class(found, classes)
    k = len(classes)
    predicted = probabilities.argmax(axis=1)
    is_label, is_predicted = np.eye(k)[labels], np.eye(k)[predicted]
    actual, guessed, hits = weights @ is_label, weights @ is_predicted, weights @ (is_label * is_predicted)
    total = weights.sum(axis=1)
    found = {
        "precision": hits / np.maximum(guessed, 1),
        "recall": hits / np.maximum(actual, 1),
        "f1": 2 * hits / np.maximum(actual + guessed, 1),
    }
    curves = [weighted_curves(labels == c, probabilities[:, c], weights) for c in range(k)]
    found |= {name: np.stack([curve[name] for curve in curves], axis=1) for name in curves[0]}
    macro = {name: found[name].mean(axis=1) for name in MACRO}
    macro["ece"] = weighted_ece(labels, probabilities, weights)
    macro["brier"] = weights @ brier(labels, probabilities) / total
    return macro | by_class(found, classes)


def by_class(found: dict[str, np.ndarray], classes: list[str]) -> dict[str, np.ndarray]:
    """{metric: (R, K)} -> {CLASS.metric: (R,)}."""
    return {f"{one}.{name}": values[:, c] for c, one in enumerate(classes) for name, values in found.items()}


def finding_scores(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> tuple[dict, dict]:
    """The metrics of `findings_report` for each row of case weights (R, N) -> {name: (R, K)}, and macro {name: (R,)}.

    nan for None. A macro metric is over the same findings in every row: nan where one of them is undefined.
    """
    sensitivities = (f"sensitivity_at_{percent}_specificity" for percent in SPECIFICITIES)
    found = {name: np.full((len(weights), labels.shape[1]), np.nan) for name in (*MACRO, *sensitivities)}
    both = (labels == 0).any(axis=0) & (labels == 1).any(axis=0)
    scored = np.flatnonzero(both & np.isfinite(probabilities).all(axis=0))
    for k in scored:
        known = np.isfinite(labels[:, k])
        positive, scores, some = labels[known, k] == 1, probabilities[known, k], weights[:, known]
        predicted = scores >= THRESHOLD
        actual, guessed, hits = (some @ one.astype(float) for one in (positive, predicted, positive & predicted))
        values = weighted_curves(positive, scores, some) | {
            "f1": 2 * hits / np.maximum(actual + guessed, 1),
            "precision": hits / np.maximum(guessed, 1),
            "recall": hits / np.maximum(actual, 1),
        }
        for name, one in values.items():
            found[name][:, k] = np.where(np.isnan(values["auroc"]), np.nan, one)
    with np.errstate(invalid="ignore"):  # 0 / 0 is nan where no finding is scored
        return found, {name: found[name][:, scored].sum(axis=1) / len(scored) for name in MACRO}


def weighted_curves(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of the ROC and precision-recall curves: positive (N,) bool, scores (N,), weights (R, N) -> (R,) each.

    nan where a row has no positive or no negative case. Cases with equal scores share a threshold.
    """
    order = np.argsort(-scores, kind="stable")
    scores, positive, weights = scores[order], positive[order], weights[:, order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # of each run of equal scores
    true = np.cumsum(weights * positive, axis=1)[:, last]
    false = np.cumsum(weights * ~positive, axis=1)[:, last]
    positives, negatives = true[:, -1], false[:, -1]
    new_true, new_false = np.diff(true, axis=1, prepend=0), np.diff(false, axis=1, prepend=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        # The positives that score above a negative count in full, those that tie with it count half.
        auroc = (new_false * (true - new_true / 2)).sum(axis=1) / (positives * negatives)
        precision = true / np.maximum(true + false, 1)
        found = {"auroc": auroc, "average_precision": (new_true * precision).sum(axis=1) / positives}
        undefined = ~((positives > 0) & (negatives > 0))
        for percent in SPECIFICITIES:
            allowed = 100 * false <= (100 - percent) * negatives[:, None]  # in whole numbers, so without rounding
            value = np.where(allowed, true, 0).max(axis=1) / positives
            found[f"sensitivity_at_{percent}_specificity"] = value
    return {name: np.where(undefined, np.nan, value) for name, value in found.items()}


def weighted_ece(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error of the most probable class, for each row of weights (R, N) -> (R,)."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gap = np.eye(BINS)[bins] * (correct - confidence)[:, None]
    return np.abs(weights @ gap).sum(axis=1) / weights.sum(axis=1)


def brier(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The sum over classes of the squared errors of each case's probabilities: (N,)."""
    return ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1)


def paired_difference(labels, ours, theirs, classes, patients=None, resamples: int = RESAMPLES, seed: int = 0) -> dict:
    """Each metric of table `ours` minus that of `theirs`, on the same cases -> {name: {difference, ci95, p}}.

    Both are scored on the same resampled patients. `p` is two-sided and 1 at most: twice the share of resamples whose
    difference is on the rarer side of 0, the data counted as one more (Davison & Hinkley 1997, section 4.2).
    """
    points = [flat(classification_report(labels, table, classes)) for table in (ours, theirs)]
    first, second = bootstrap(labels, [ours, theirs], classes, patients, resamples, seed)
    result = {}
    for name in points[0]:
        if points[0][name] is None or points[1][name] is None:
            continue
        values = first[name] - second[name]
        values = values[np.isfinite(values)]
        rarer = min((values <= 0).sum(), (values >= 0).sum())
        result[name] = {
            "difference": points[0][name] - points[1][name],
            "ci95": interval(values),
            "p": float(min(1, 2 * (rarer + 1) / (len(values) + 1))),
        }
    return result


# Retrieval


def retrieval_ranks(image_embed: torch.Tensor, text_embed: torch.Tensor, block: int = 1024) -> dict[str, torch.Tensor]:
    """The rank of each query's own pair, from 0: {"i2t": (N,), "t2i": (N,)} for N pairs (N, D), L2-normalised.

    A pair that ties with others has the middle of their ranks: a model that gives all the same embedding is no better
    than chance.
    """
    ranks = {}
    for name, queries, gallery in (("i2t", image_embed, text_embed), ("t2i", text_embed, image_embed)):
        places = []
        for start in range(0, len(queries), block):
            scores = queries[start : start + block] @ gallery.T
            own = scores.diagonal(offset=start)[:, None]
            above, tied = (~(scores <= own)).sum(dim=1), ((scores == own).sum(dim=1) - 1).clamp(min=0)
            places.append(above + tied / 2)
        ranks[name] = torch.cat(places)
    return ranks


def recalls(ranks: dict[str, torch.Tensor], ks=(1, 5, 10)) -> dict[str, float]:
    """Recall at k in percent, and the median rank counted from 1, in both directions."""
    result = {}
    for name, places in ranks.items():
        result |= {f"{name}_r{k}": 100 * (places < k).float().mean().item() for k in ks}
        result[f"{name}_median_rank"] = 1 + places.float().quantile(0.5).item()
    return result


def retrieval(image_embed: torch.Tensor, text_embed: torch.Tensor, ks=(1, 5, 10), block: int = 1024) -> dict:
    """`recalls` of N pairs (N, D), L2-normalised; row i matches row i."""
    return recalls(retrieval_ranks(image_embed, text_embed, block), ks)


def recall_intervals(ranks: dict[str, torch.Tensor], groups: np.ndarray, resamples: int = RESAMPLES, seed: int = 0):
    """95% intervals of `recalls`, {name: [low, high]}, over resampled queries.

    The queries of a group (N,) are drawn together; every resample searches the same, whole gallery.
    """
    groups = np.unique(groups, return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    places = {name: one.double().cpu().numpy() for name, one in ranks.items()}
    parts = []
    block = max(1, min(resamples, 2_000_000 // len(groups)))
    for start in range(0, resamples, block):
        weights = draw_weights(rng, groups, min(block, resamples - start))
        total = weights.sum(axis=1, keepdims=True)
        values = {}
        for name, one in places.items():
            values |= {f"{name}_r{k}": 100 * (weights @ (one < k)) / total[:, 0] for k in (1, 5, 10)}
            order = np.argsort(one)
            reached = np.cumsum(weights[:, order], axis=1) >= total / 2
            values[f"{name}_median_rank"] = 1 + one[order][reached.argmax(axis=1)]
        parts.append(values)
    return {name: interval(np.concatenate([part[name] for part in parts])) for name in parts[0]}


def gallery_recalls(image_embed: torch.Tensor, text_embed: torch.Tensor, size: int = 1000, seed: int = 0) -> dict:
    """The mean of `retrieval` over as many disjoint random galleries of `size` pairs as fit; {} if not one does."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(image_embed))).to(image_embed.device)
    galleries = [retrieval(image_embed[part], text_embed[part]) for part in order.split(size) if len(part) == size]
    return {f"g{size}_{name}": float(np.mean([one[name] for one in galleries])) for name in (galleries or [{}])[0]}


def alignment(first: torch.Tensor, second: torch.Tensor) -> float:
    """The mean squared distance of pairs (N, D), L2-normalised: 0 to 4, the lower the closer (Wang & Isola 2020)."""
    return (first - second).square().sum(dim=1).mean().item()


def uniformity(x: torch.Tensor, block: int = 1024) -> float:
    """The log of the mean of exp(-2 d^2) over the distances d between rows (N, D), L2-normalised.

    The lower, the more evenly they are spread (Wang & Isola, ICML 2020, with t = 2); nan for fewer than two rows.
    """
    total, n = 0.0, len(x)
    for start in range(0, n, block):
        square = 2 - 2 * x[start : start + block].double() @ x.double().T
        total += torch.exp(-2 * square).sum().item()
    return float(np.log((total - n) / (n * (n - 1)))) if n > 1 else float("nan")
