"""Checkpoints in MedCLIP's published layout, with made-up weights that depend on the key's name and a seed only."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig

from options import BIO_CLINICAL_BERT
from towers import text

FIXTURES = Path(__file__).parent / "fixtures"


def made_up(name: str, shape, seed: int) -> np.ndarray:
    noise = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
    if name.endswith("running_var"):
        return 1 + 0.1 * np.abs(noise)
    if name.endswith("running_mean") or name.endswith("bias"):
        return 0.05 * noise
    if len(shape) < 2:
        return 1 + 0.1 * noise
    if "embeddings" in name and "projection" not in name:
        return 0.5 * noise
    return noise / np.sqrt(np.prod(shape[1:], dtype=np.float32))


def shallow_text(monkeypatch) -> None:
    """Let models of MedCLIP's layout have two layers in their text tower, as `medclip_state(kind, layers=2)` has."""
    config = BertConfig(vocab_size=28996, num_hidden_layers=2)
    monkeypatch.setitem(text.BERT_CONFIGS, BIO_CLINICAL_BERT, config)


def medclip_state(kind: str, seed: int = 1, layers: int = 12) -> dict[str, torch.Tensor]:
    """The state dict of MedCLIP's "vit" or "resnet", with the first `layers` of its text tower."""
    buffers = np.load(FIXTURES / f"buffers_{kind}.npz")
    state = {}
    for name, (shape, dtype) in json.loads((FIXTURES / f"keys_{kind}.json").read_text()).items():
        layer = re.match(r"text_model\.model\.encoder\.layer\.(\d+)", name)
        if layer and int(layer[1]) >= layers:
            continue
        value = buffers[name].copy() if name in buffers else made_up(name, tuple(shape), seed).astype(dtype)
        state[name] = torch.tensor(2.5) if name == "logit_scale" else torch.from_numpy(np.asarray(value))
    return state
