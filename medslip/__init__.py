"""A trained MedSLIP model as a library: embeddings of images and texts. docs/using.md shows it.

    encoder = medslip.load("runs/vit")
    encoder.encode_image(["one.png", "two.dcm"])  # (2, D), not L2-normalised
    encoder.encode_text(["mass in the left breast"])  # (1, D)

In a clone this package stands on the modules beside it. `pip install` puts those that it needs inside of it: setup.py.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from evaluation.encoder import Encoder, ImageLike, open_encoder, open_probed, similarity
from evaluation.fitted import Fitted, open_fitted
from utils import InputError

__version__ = "0.1.0"
__all__ = ["Encoder", "ImageLike", "InputError", "Probe", "load", "load_probe", "similarity"]


def load(
    path: str | os.PathLike, device: torch.device | str | None = None, amp: str | None = "off", text: bool = True
) -> Encoder:
    """The encoder of a run's folder (its best checkpoint, else its latest), a checkpoint, or an export with weights.

    `device` None is a GPU if there is one, else the CPU. `amp` "bf16" or "fp16" computes in mixed precision, None in
    the device's best. `text=False` leaves the text tower out. Raises InputError, a ValueError, in one line.
    """
    return open_encoder(path, device, amp, text)


@dataclass
class Probe:
    """A fitted probe of main_linear.py, and the encoder whose features it was fitted to."""

    encoder: Encoder
    fitted: Fitted

    @property
    def classes(self) -> list[str]:
        return self.fitted.classes

    def predict(self, images: Iterable[ImageLike], batch_size: int = 64) -> np.ndarray:
        """N images as Encoder.encode_image takes them -> probabilities (N, K), calibrated if the probe is; of findings
        each has its own. Raises InputError."""
        projected = self.fitted.features == "projected"
        return self.fitted.calibrated(self.encoder.encode_image(images, projected, batch_size).numpy())


def load_probe(
    folder: str | os.PathLike, device: torch.device | str | None = None, weights: str | None = None
) -> Probe:
    """The probe in an output folder of main_linear.py. `weights` is where its checkpoint lies now, if it was moved.

    Raises InputError if the probe, or the weights that it was fitted to, are not there.
    """
    fitted = open_fitted(folder)
    return Probe(open_probed(folder, device, fitted.about["args"]["amp"], weights), fitted)
