"""What the probes fit, as numbers: each class makes probabilities of features, and can be saved.

A probe's `fit` may return any function from features to probabilities; one of these can be saved beside its results
and applied to new images (fitted.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit
from sklearn.neighbors import KNeighborsClassifier

from utils import InputError


class Classifier:
    """A dataclass of tensors (on the CPU), numbers and bools, for features (M, D) and K classes, or findings."""

    multi = False  # whether each of the K is a finding, with a probability of its own

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Features (M, D) float32 -> probabilities (M, K) float64; nan for a finding without a probe."""
        with torch.no_grad():
            scores = self.scores(torch.from_numpy(rows))
            return (torch.sigmoid(scores) if self.multi else F.softmax(scores, dim=1)).numpy()

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Features (M, D) float -> (M, K) float64, differentiable: the probabilities are their softmax, or of findings
        their sigmoid. A class without training cases has -inf, a finding without a probe nan.

        Raises InputError for a classifier that has no gradient.
        """
        raise NotImplementedError

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """Features (M, D) float32 -> the scores (M, K) float64 that a temperature divides."""
        with torch.no_grad():
            return self.scores(torch.from_numpy(rows)).numpy()

    def unpack(self) -> tuple[dict[str, torch.Tensor], dict]:
        """-> its tensors, and its numbers with its kind: what `build` takes."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        tensors = {name: value.contiguous() for name, value in values.items() if torch.is_tensor(value)}
        return tensors, {"kind": KIND_OF[type(self)]} | {k: v for k, v in values.items() if k not in tensors}


@dataclass
class StandardisedLinear(Classifier):
    """Logistic regression on standardised features, by scikit-learn's operations: the probabilities have its bits."""

    mean: torch.Tensor  # (D,) float64
    scale: torch.Tensor  # (D,) float64
    weight: torch.Tensor  # (D, L) float64; of two classes L is 1, for the second
    bias: torch.Tensor  # (L,) float64
    columns: torch.Tensor  # (L or 2,) int64: the classes that have training cases
    count: int  # K

    @classmethod
    def of(cls, pipeline, count: int) -> "StandardisedLinear":
        """From a fitted StandardScaler and LogisticRegression in a pipeline."""
        scaler, model = pipeline[0], pipeline[-1]
        parts = (scaler.mean_, scaler.scale_, np.ascontiguousarray(model.coef_.T), model.intercept_, model.classes_)
        return cls(*map(torch.from_numpy, parts), count)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        x = rows.astype(np.float64)
        x -= self.mean.numpy()
        x /= self.scale.numpy()
        decision = x @ self.weight.numpy() + self.bias.numpy()
        if decision.shape[1] == 1:
            positive = expit(decision[:, 0])
            found = np.stack([1 - positive, positive], axis=1)
        else:
            found = np.exp(decision - decision.max(axis=1, keepdims=True))
            found /= found.sum(axis=1, keepdims=True)
        probabilities = np.zeros((len(rows), self.count))
        probabilities[:, self.columns.numpy()] = found
        return probabilities

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        mean, scale, weight, bias = (x.to(features.device) for x in (self.mean, self.scale, self.weight, self.bias))
        decision = (features.double() - mean) / scale @ weight + bias
        if decision.shape[1] == 1:
            decision = torch.cat([-decision, decision], dim=1) / 2
        return spread(decision, self.columns, self.count, -torch.inf)


@dataclass
class Linear(Classifier):
    """A linear layer: a softmax over its classes, or of findings a sigmoid each."""

    weight: torch.Tensor  # (L, D) float32
    bias: torch.Tensor  # (L,) float32
    columns: torch.Tensor  # (L,) int64: the findings that have a probe; all classes
    count: int  # K
    multi: bool

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        if not self.multi:
            return super().__call__(rows)
        probabilities = torch.sigmoid(F.linear(torch.from_numpy(rows), self.weight, self.bias).double())
        return spread(probabilities, self.columns, self.count, torch.nan).numpy()

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        outputs = F.linear(features, self.weight.to(features.device), self.bias.to(features.device)).double()
        return spread(outputs, self.columns, self.count, torch.nan)


@dataclass
class TwoLinear(Classifier):
    """Two linear layers with nothing between them."""

    first_weight: torch.Tensor  # (H, D) float32
    first_bias: torch.Tensor
    second_weight: torch.Tensor  # (K, H) float32
    second_bias: torch.Tensor

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        first, first_bias, second, second_bias = (getattr(self, one.name).to(features.device) for one in fields(self))
        return F.linear(F.linear(features, first, first_bias), second, second_bias).double()


@dataclass
class NearestNeighbours(Classifier):
    """The votes of the k nearest training images, see probes.Neighbours; scikit-learn's classifier, made anew."""

    rows: torch.Tensor  # (N, D) float32, the training features
    labels: torch.Tensor  # (N,) int64
    k: int
    count: int  # K

    @cached_property
    def model(self) -> KNeighborsClassifier:
        return neighbours(self.k).fit(self.rows.numpy().astype(np.float64), self.labels.numpy())

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        probabilities = np.zeros((len(rows), self.count))
        probabilities[:, self.model.classes_] = self.model.predict_proba(rows.astype(np.float64))
        return probabilities

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        raise InputError("--probe knn: the votes of neighbours have no gradient: take another probe")

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """The logarithms of the shares with one more vote, shared out evenly: a class without a vote has one too."""
        logits = np.full((len(rows), self.count), -np.inf)
        classes = self.model.classes_
        logits[:, classes] = np.log((self.k * self(rows)[:, classes] + 1 / len(classes)) / (self.k + 1))
        return logits


def neighbours(k: int | None = None) -> KNeighborsClassifier:
    return KNeighborsClassifier(k or 1, metric="cosine", algorithm="brute", weights=votes)


def votes(distances: np.ndarray) -> np.ndarray:
    return np.exp(-distances / 0.07)  # cosine distance is 1 - similarity: the factor exp(1 / 0.07) cancels


@dataclass
class Cosine(Classifier):
    """A softmax over the scaled cosine to each class's direction; of findings over the two of its absence and it."""

    directions: torch.Tensor  # (K, D) float32, L2-normalised; of findings (2K, D), absent and present in turn
    scale: float
    multi: bool

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        if not self.multi:
            return super().__call__(rows)
        return F.softmax(self.scaled(torch.from_numpy(rows)).unflatten(1, (-1, 2)), dim=2)[:, :, 1].numpy()

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        scaled = self.scaled(features)
        return scaled[:, 1::2] - scaled[:, ::2] if self.multi else scaled

    def scaled(self, features: torch.Tensor) -> torch.Tensor:
        return self.scale * (F.normalize(features, dim=-1) @ self.directions.to(features.device).T).double()


@dataclass
class Findings(Classifier):
    """A classifier of absent and present for each finding that has one."""

    each: dict[int, Callable[[np.ndarray], np.ndarray]]  # number of the finding -> its classifier
    count: int  # K
    multi = True

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        probabilities = np.full((len(rows), self.count), np.nan)
        for k, one in self.each.items():
            probabilities[:, k] = one(rows)[:, 1]
        return probabilities

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        pairs = [one.scores(features) for one in self.each.values()]
        odds = torch.stack([pair[:, 1] - pair[:, 0] for pair in pairs], dim=1)
        return spread(odds, torch.tensor(list(self.each)), self.count, torch.nan)

    def logits(self, rows: np.ndarray) -> np.ndarray:
        odds = np.full((len(rows), self.count), np.nan)
        for k, one in self.each.items():
            pair = one.logits(rows)
            odds[:, k] = pair[:, 1] - pair[:, 0]
        return odds

    def unpack(self) -> tuple[dict[str, torch.Tensor], dict]:
        tensors, each = {}, {}
        for k, one in self.each.items():
            found, each[str(k)] = one.unpack()
            tensors |= {f"{k}.{name}": tensor for name, tensor in found.items()}
        return tensors, {"kind": "findings", "each": each, "count": self.count}


def spread(values: torch.Tensor, columns: torch.Tensor, count: int, rest: float) -> torch.Tensor:
    """Values (M, L) of some columns -> (M, count), with `rest` in the others."""
    return values.new_full((len(values), count), rest).index_copy(1, columns.to(values.device), values)


KINDS = {
    "standardised_linear": StandardisedLinear,
    "linear": Linear,
    "two_linear": TwoLinear,
    "nearest_neighbours": NearestNeighbours,
    "cosine": Cosine,
    "findings": Findings,
}
KIND_OF = {kind: name for name, kind in KINDS.items()}


def can_be_saved(classifier) -> bool:
    """Whether it is one of KINDS, and of findings all are."""
    if isinstance(classifier, Findings):
        return all(map(can_be_saved, classifier.each.values()))
    return type(classifier) in KIND_OF


def build(tensors: dict[str, torch.Tensor], numbers: dict) -> Classifier:
    """The classifier of what `unpack` gave. Raises KeyError, TypeError, ValueError or AttributeError for what it did
    not give."""
    numbers = dict(numbers)
    kind = KINDS[numbers.pop("kind")]
    if kind is not Findings:
        return kind(**tensors, **numbers)
    parts = {
        int(k): ({name.partition(".")[2]: x for name, x in tensors.items() if name.startswith(f"{k}.")}, one)
        for k, one in numbers["each"].items()
    }
    return Findings({k: build(*part) for k, part in parts.items()}, numbers["count"])
