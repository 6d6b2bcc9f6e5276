"""Whole models as transformers saves them: CLIP (PubMedCLIP's layout), SigLIP (MedSigLIP's) and DINOv2 (RAD-DINO's).

Names are hf:ORG/NAME, on the Hugging Face hub or in its cache, or hf:FOLDER. CLIP and SigLIP bring both towers; DINOv2
is an image tower alone, without a projection, and its feature is the class token of the last layer, normalised, as
RAD-DINO has it (Pérez-García et al., Nature Machine Intelligence 2025).
"""

import json
import os
import tempfile
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPTextModel,
    CLIPVisionModel,
    Dinov2Model,
    SiglipTextModel,
    SiglipVisionModel,
)
from transformers import logging as transformers_logging

from data import hub, tokens
from data.weights import refusal
from towers.parts import Pooled, Published, Towers, its_own
from utils import InputError, one_line

transformers_logging.disable_progress_bar()  # of weights that are loaded in a second: lines in a log file
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
UNUSED = "mask_token"  # DINOv2's, for its own pretraining alone


class CLIPImage(Pooled, CLIPVisionModel):
    pass


class SigLIPImage(Pooled, SiglipVisionModel):
    pass


class DINOv2Image(Pooled, Dinov2Model):
    pass


class SigLIPText(SiglipTextModel):
    """(B, T) ids, padded to one length always -> (B, hidden), from the last position: padding takes part."""

    def forward(self, input_ids):
        return super().forward(input_ids).pooler_output


IMAGES = {"clip": CLIPImage, "siglip": SigLIPImage, "dinov2": DINOv2Image}  # by the configuration's model_type
PREFIXES = {  # transformers' names of a whole model's parts: ours
    "vision_model.": "image_encoder.",
    "visual_projection.": "image_projection.",
    "text_model.": "text_encoder.",
    "text_projection.": "text_projection.",
}


def name_of(arch: str) -> str:
    return os.path.expanduser(arch.partition(":")[2])


def published(arch: str, pretrained: str | None) -> Published:
    """Raises InputError for a name or folder that is none, another kind of model, or one without its preprocessing."""
    name = name_of(arch)
    its_own(arch, pretrained)
    try:
        config = hub.load(AutoConfig.from_pretrained, name, trust_remote_code=False)
    except Exception as error:  # transformers and the hub raise many kinds
        there = name and Path(name).is_dir()
        what = (
            "its config.json cannot be read"
            if there
            else "no such folder, and no model of that name on the Hugging Face hub"
        )
        raise InputError(f"--arch {arch}: {what} ({one_line(error)})") from None
    if config.model_type not in IMAGES:
        raise InputError(f"--arch {arch}: a model of type {config.model_type}; hf: takes {', '.join(IMAGES)}")
    try:
        shown = hub.load(AutoImageProcessor.from_pretrained, name, trust_remote_code=False)
    except Exception as error:
        raise InputError(
            f"--arch {arch}: has no preprocessor_config.json that can be read, so that the mean and standard deviation "
            f"its weights were trained with cannot be known ({one_line(error)}): put the model's own there"
        ) from None
    text = getattr(config, "text_config", None)
    size, fit = view_of(shown, arch)
    return Published(
        json.loads(config.to_json_string(use_diff=False)), mean=list(shown.image_mean), std=list(shown.image_std),
        image_size=size, fit=fit, pretrained="published",
        context_length=None if text is None else text.max_position_embeddings, padded=config.model_type == "siglip",
    )  # fmt: skip


def view_of(shown, arch: str) -> tuple[int, str]:
    """An image processor -> the side of its images in pixels, and their `fit`, see data.views.published_view."""
    resized, cropped = shown.size, shown.crop_size if shown.do_center_crop else None
    square = cropped or resized
    side, short = square.height, resized.shortest_edge or resized.height
    how = RESAMPLE.get(int(shown.resample))
    plain = shown.do_resize and shown.do_rescale and shown.do_normalize and abs(shown.rescale_factor * 255 - 1) < 1e-6
    if not (plain and how and side and side == square.width and resized.height == resized.width):
        raise InputError(
            f"--arch {arch}: its preprocessor_config.json asks for images that are not resized to a square by bilinear "
            "or bicubic interpolation, scaled to 0 to 1 and normalised: such preprocessing is not known here"
        )
    return side, f"{'middle' if resized.shortest_edge else 'squash'} {how} 0 {side / short}"


def weights(arch: str, pretrained: str, known: Published) -> tuple[dict, str]:
    """The published weights, by the model's names, and what they are called. Raises InputError."""
    try:
        model, found = hub.load(
            AutoModel.from_pretrained, name_of(arch), dtype=torch.float32, output_loading_info=True,
            trust_remote_code=False,
        )  # fmt: skip
    except Exception as error:  # transformers, safetensors and pickle raise many kinds
        raise InputError(f"--arch {arch}: its weights cannot be loaded: {refusal(error)}") from None
    absent = sorted(found["missing_keys"]) + [one[0] for one in found["mismatched_keys"]]
    if absent:
        raise InputError(f"--arch {arch}: its weights do not fit its config.json: {', '.join(absent[:6])}")
    state = {}
    for key, value in model.state_dict().items():
        if known.context_length is None:
            key = "image_encoder." + key
        for theirs, ours in PREFIXES.items():
            if key.startswith(theirs):
                key = ours + key.removeprefix(theirs)
                break
        if not key.endswith(UNUSED):
            state[f"published.{key}"] = value.reshape(()) if key in ("logit_scale", "logit_bias") else value
    return state, arch


def towers(arch: str, known: Published, with_text: bool, state: dict | None) -> Towers:
    config = AutoConfig.for_model(**known.config)
    kind = config.model_type
    if kind == "dinov2":
        config.use_mask_token = False  # it has no gradient in a training of ours
        return Towers(DINOv2Image(config), config.hidden_size)
    image, width = IMAGES[kind](config.vision_config), config.vision_config.hidden_size
    embed_dim = config.projection_dim if kind == "clip" else width
    found = Towers(
        image, width, embed_dim=embed_dim, resize=lambda size: resize(image, size),
        image_projection=nn.Linear(width, embed_dim, bias=False) if kind == "clip" else nn.Identity(),
    )  # fmt: skip
    if not with_text:
        return found
    found = found._replace(vocab_size=config.text_config.vocab_size, positions=known.context_length)
    if kind == "siglip":
        return found._replace(
            text=SigLIPText(config.text_config), text_width=embed_dim, text_projection=nn.Identity(),
            text_pooling="own", logit_bias=0.0,
        )  # fmt: skip
    return found._replace(
        text=CLIPTextModel(config.text_config), text_width=config.text_config.hidden_size, text_pooling="pooler",
        text_projection=nn.Linear(config.text_config.hidden_size, embed_dim, bias=False),
    )  # fmt: skip


def tokenizer(arch: str, known: Published, kept: str | None) -> tuple:
    """-> the model's own tokenizer, and a text of its files, so that a checkpoint needs the folder no more.

    `kept` is such a text. Raises InputError if there is none.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            if kept is not None:
                tokens.unpack(kept, Path(folder))
            found = hub.load(AutoTokenizer.from_pretrained, folder if kept else name_of(arch), trust_remote_code=False)
            found.save_pretrained(folder)
            kept = tokens.pack(Path(folder))
        if len(found) <= len(found.all_special_ids):  # transformers makes such of a folder without vocabulary
            raise OSError("there is a configuration, and no vocabulary")
        if found.pad_token_id is None:
            raise ValueError("it has no token for padding")
    except Exception as error:  # tokenizers and sentencepiece raise many kinds
        raise InputError(f"--arch {arch}: its tokenizer cannot be loaded: {one_line(error)}") from None
    if not found.is_fast:
        found.lazy_from = tokens.PaddingTokenizer.lazy_from
    return found, kept


def resize(image: nn.Module, size: int) -> None:
    """Interpolate the position embeddings for images of `size` pixels, as transformers does."""
    there = image.embeddings
    grid, extra = size // there.patch_size, there.num_positions - there.num_patches
    with torch.no_grad():
        table = there.interpolate_pos_encoding(torch.zeros(1, grid**2 + extra, there.embed_dim), size, size)[0]
    image.config.image_size = there.image_size = size
    there.num_patches, there.num_positions = grid**2, grid**2 + extra
    there.position_embedding = nn.Embedding.from_pretrained(table.clone(), freeze=False)
    there.position_ids = torch.arange(grid**2 + extra).expand(1, -1)
