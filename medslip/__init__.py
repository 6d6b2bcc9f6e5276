"""A trained MedSLIP model as a library: embeddings of images and texts. docs/using.md shows it.

    encoder = medslip.load("runs/vit")
    encoder.encode_image(["one.png", "two.dcm"])  # (2, D), not L2-normalised
    encoder.encode_text(["mass in the left breast"])  # (1, D)

In a clone this package stands on the modules beside it. `pip install` puts those that it needs inside of it: setup.py.
"""

import os

import torch

from evaluation.encoder import Encoder, ImageLike, open_encoder, similarity
from utils import InputError

__version__ = "0.1.0"
__all__ = ["Encoder", "ImageLike", "InputError", "load", "similarity"]


def load(
    path: str | os.PathLike, device: torch.device | str | None = None, amp: str | None = "off", text: bool = True
) -> Encoder:
    """The encoder of a run's folder (its best checkpoint, else its latest), a checkpoint, or an export with weights.

    `device` None is a GPU if there is one, else the CPU. `amp` "bf16" or "fp16" computes in mixed precision, None in
    the device's best. `text=False` leaves the text tower out. Raises InputError, a ValueError, in one line.
    """
    return open_encoder(path, device, amp, text)
