"""preprocessing.json and tokenizer.json: all that stands between a JPEG or a string and a tower's inputs, in words and
numbers that a program without this code can follow. onnx_client.py is one."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

import utils
from tools.formats import onnx_client
from tools.samples import can_tokenize
from utils import logger

CLIENT = Path(onnx_client.__file__)
NAME, TOKENIZER = "preprocessing.json", "tokenizer.json"


def write(encoder, folder) -> None:
    """Write both into a folder; the second where the tokenizer is at hand, and of the library tokenizers."""
    model = encoder.model
    described = {"image": image(encoder)}
    if encoder.load_tokenizer is not None:
        bias = getattr(model, "logit_bias", None)
        described["text"] = text(encoder, folder)
        described["similarity"] = {
            "normalize": "divide each embedding by its L2 norm",
            "logit_scale": model.logit_scale.exp().item(),
            "logit_bias": 0.0 if bias is None else bias.item(),
            "logits": "logit_scale * image_embeddings @ text_embeddings.T + logit_bias",
        }
    utils.write_json(folder / NAME, described)


def read_back(folder, given: dict) -> dict[str, torch.Tensor]:
    """What the two files make of the images and texts that are given, followed as onnx_client.py does: `pixels`, and
    `input_ids` unless open_clip is to clean the texts."""
    how = json.loads(utils.read_text(folder / NAME))
    found = {}
    if "images" in given:
        rows = [onnx_client.pixels(image, how["image"]) for image in given["images"]]
        found["pixels"] = torch.from_numpy(np.concatenate(rows))
    if "texts" in given and (folder / TOKENIZER).exists() and not how["text"]["clean"]:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        found["input_ids"] = torch.from_numpy(onnx_client.tokens(given["texts"], tokenizer, how["text"])["input_ids"])
    return found


def image(encoder) -> dict:
    """The steps from an image's file to `pixels`, in their order. See data.views.whole for `fit`."""
    size, mode, how, fill, share = encoder.args.image_size, encoder.fit, "bilinear", 0, 1.0
    ours = " " not in mode  # not a published model's
    if ours:
        share = {"center256": 7 / 8}.get(mode, 1.0)
    else:
        mode, how, *more = mode.split()
        fill, share = int(more[0]) if more else 0, float(more[1]) if len(more) > 1 else 1.0
    pixels = round(size * 8 / 7) if mode == "center256" else math.floor(size / share + 1e-6)
    mean, std = encoder.mean_std
    return {
        "convert": "RGB; 16 bits divided by 257, transparent pixels on black, gray in all three channels",
        "resize": {
            "side": {"squash": "both", "longest": "longer"}.get(mode, "shorter"),
            "pixels": pixels,
            "other_side": "round" if ours or mode == "longest" else "floor",
            "interpolation": how,
            "antialias": True,
        },
        "pad": {"pixels": pixels, "gray_level": fill} if mode == "longest" else None,
        "crop": {"pixels": size, "offset": "floor" if ours or mode == "middle" else "round"},
        "scale": 1 / 255,
        "mean": list(mean),
        "std": list(std),
        "layout": "NCHW float32",
    }


def text(encoder, folder) -> dict:
    """The steps from a string to `input_ids` and `attention_mask`."""
    cut = {"context_length": encoder.args.context_length, "truncation": "right"}
    if not can_tokenize(encoder):
        return {"tokenizer": None, **cut}
    tokenizer = encoder.tokenizer
    own = getattr(tokenizer, "tokenizer", tokenizer)  # within a PaddingTokenizer: open_clip's
    clean = getattr(own, "clean_fn", None)
    backend = getattr(getattr(own, "tokenizer", own), "backend_tokenizer", None)
    if isinstance(backend, Tokenizer):
        backend = Tokenizer.from_str(backend.to_str())
        backend.no_padding()
        backend.no_truncation()
        backend.save(str(folder / TOKENIZER))
    else:
        backend = None
        logger.warning(f"{type(own).__name__} is no tokenizer of the library tokenizers: no {TOKENIZER} is written")
    return {
        "tokenizer": TOKENIZER if backend else type(own).__name__,
        "clean": clean.__name__.removeprefix("_clean_") if clean else None,  # open_clip's name of it
        "strip_sep_token": getattr(own, "strip_sep_token", False),
        **cut,
        "padding": "right",
        "pad_to": encoder.pad_to,
        "pad_id": tokenizer.pad_token_id,
    }
