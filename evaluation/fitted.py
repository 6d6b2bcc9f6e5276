"""A fitted probe in a file: numbers, and what is needed to show it new images. No code is kept, and none is run."""

import json
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open

import models
import utils
from data import locations
from evaluation import classifiers
from evaluation.features import tensors_crc, weights_crc
from utils import InputError

FILE = "probe.safetensors"
KEY = "medslip"  # of the file's metadata, a JSON text
IMAGE_PARTS = ("image_encoder.", "image_projection.")  # of the model, which make the features
ENCODER_ARGS = "arch pretrained published image_size normalize seed amp batch_size".split()  # which build it anew


@dataclass
class Fitted:
    """A probe that is fitted. `temperature` is a number, one for each finding (nan where there is none), or None where
    the probe is not calibrated. `about` is what else is known of it: `probe`, `dataset`, `width` D of the features,
    and of its encoder `args`, `fit`, `window`, and `weights`, the crc32 of its image tower and projection.
    """

    classifier: classifiers.Classifier
    classes: list[str]
    features: str  # "projected" or "pooled", see MedSLIP.encode_image
    temperature: float | np.ndarray | None
    about: dict

    @property
    def multi(self) -> bool:
        """Whether each class is a finding, with a probability of its own."""
        return self.classifier.multi

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(N, D) float32 -> probabilities (N, K), as predictions.csv has them: not calibrated."""
        return self.classifier(features)

    def calibrated(self, features: np.ndarray) -> np.ndarray:
        """(N, D) float32 -> probabilities (N, K); those of `__call__` where there is no temperature."""
        if self.temperature is None:
            return self(features)
        found = soften(self.classifier.logits(features), self.temperature, self.multi)
        return np.where(np.isnan(self.temperature), self(features), found) if self.multi else found

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """(N, D) float -> logits (N, K) float64, differentiable, see Classifier.scores. Raises InputError for kNN."""
        return self.classifier.scores(features)


def describe(args, model, test, width: int) -> dict:
    """`about` of a Fitted: `args` are main_linear.py's, `test` the test split (datasets.Labelled) as it was shown."""
    from_file = args.pretrained not in ("none", "medclip") and not models.is_published(args.pretrained)
    kept = {name: getattr(args, name) for name in ENCODER_ARGS}
    if from_file:
        kept["pretrained"] = os.path.abspath(os.path.expanduser(args.pretrained))
    window = locations.split(test.images[0]).window if isinstance(test.images[0], str) else None
    return {
        "probe": args.probe,
        "dataset": args.dataset,
        "width": width,
        "args": kept,
        "from_file": from_file,
        "fit": test.fit,
        "window": "{:g}/{:g}".format(*window) if window else "",
        "weights": weights_crc(model, IMAGE_PARTS),
    }


def soften(logits: np.ndarray, temperature, multi: bool) -> np.ndarray:
    """Logits (N, K) divided by a temperature, or by one for each finding -> probabilities (N, K)."""
    divided = torch.from_numpy(logits / temperature)
    return (torch.sigmoid(divided) if multi else F.softmax(divided, dim=1)).numpy()


def save_fitted(fitted: Fitted, folder: Path) -> None:
    """Write probe.safetensors. Raises InputError if the disk is full or cannot be written."""
    tensors, numbers = fitted.classifier.unpack()
    temperature = fitted.temperature
    if fitted.multi and temperature is not None:
        temperature = [None if np.isnan(one) else float(one) for one in temperature]
    metadata = {
        "classes": fitted.classes,
        "features": fitted.features,
        "temperature": temperature,
        "classifier": numbers,
        "tensors": tensors_crc(tensors[name] for name in sorted(tensors)),
        "about": fitted.about,
        "versions": {name: version(name) for name in ("torch", "numpy", "scikit-learn")},
    }
    path = folder / FILE
    contents = safetensors.torch.save(tensors, {KEY: json.dumps(metadata)})
    try:
        with utils.atomic_file(path) as temporary:
            temporary.write_bytes(contents)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}): make room, then try again") from None


def open_fitted(folder: str | os.PathLike) -> Fitted:
    """The probe that main_linear.py left in a folder. Raises InputError if there is none, or its file is damaged."""
    path = Path(folder).expanduser() / FILE
    if not path.is_file():
        raise InputError(f"{path}: no such file: give an output folder of main_linear.py; older ones have to be redone")
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no dict)
        if metadata["tensors"] != tensors_crc(tensors[name] for name in sorted(tensors)):
            raise ValueError("its numbers are altered")
        classifier = classifiers.build(tensors, metadata["classifier"])
        temperature = metadata["temperature"]
        if classifier.multi and temperature is not None:
            temperature = np.array([np.nan if one is None else float(one) for one in temperature])
        fitted = Fitted(classifier, list(metadata["classes"]), metadata["features"], temperature, metadata["about"])
        shape = fitted.calibrated(np.zeros((1, fitted.about["width"]), np.float32)).shape  # it can be applied
        if shape != (1, len(fitted.classes)) or fitted.features not in ("projected", "pooled"):
            raise ValueError("its parts do not fit each other")
    except InputError:
        raise
    except (
        SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, IndexError,
        RecursionError, MemoryError,
    ) as error:  # fmt: skip
        why = utils.one_line(error)
        raise InputError(f"{path}: damaged, or no probe of main_linear.py ({why}): fit the probe again") from None
    return fitted
