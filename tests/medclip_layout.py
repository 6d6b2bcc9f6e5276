"""Checkpoints in MedCLIP's published layout, with made-up weights that depend on the key's name and a seed only."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

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


def medclip_state(kind: str, seed: int = 1) -> dict[str, torch.Tensor]:
    """The state dict of MedCLIP's "vit" or "resnet"."""
    buffers = np.load(FIXTURES / f"buffers_{kind}.npz")
    state = {}
    for name, (shape, dtype) in json.loads((FIXTURES / f"keys_{kind}.json").read_text()).items():
        value = buffers[name].copy() if name in buffers else made_up(name, tuple(shape), seed).astype(dtype)
        state[name] = torch.tensor(2.5) if name == "logit_scale" else torch.from_numpy(np.asarray(value))
    return state
