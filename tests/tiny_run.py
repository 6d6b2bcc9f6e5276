"""A run of main.py's as it lies in its folder, made without training: seconds matter, and random weights will do."""

from pathlib import Path

import torch

import models
import options
from data.tokens import from_json, train_bpe

CAPTIONS = ["Mammogram showing a mass", "Chest x-ray with an effusion on the left", "Axial CT", "no finding"]


def make_run(folder: Path, seed: int = 0, name: str = "checkpoint.pt", **arguments) -> Path:
    """Save a model of 32 pixels and a tiny text tower -> its checkpoint. `arguments` are main.py's, by their names."""
    given = {
        "arch": "resnet10t", "text_model": "tiny", "pretrained": "none", "normalize": "imagenet", "image_size": 32,
        "context_length": 24, "ssl_mlp_dim": 16, "ssl_emb_dim": 8, **arguments,
    }  # fmt: skip
    args = {**options.plain(options.parse(options.train_parser(), [])), **given}
    kept = train_bpe(CAPTIONS, 300)
    torch.manual_seed(seed)
    model = models.create_model(
        args["arch"], args["objective"], "none", args["text_model"], args["text_pooling"], len(from_json(kept)),
        args["ssl_mlp_dim"], args["ssl_emb_dim"], args["image_size"],
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict(), "args": args, "tokenizer": kept}, folder / name)
    return folder / name
