"""What a source of encoders gives: what is known of a published model, and its towers when they are built."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from utils import InputError

EMBED_DIM = 512  # of MedCLIP's projections, and of those that this project adds
LOGIT_SCALE = math.log(1 / 0.07)


class Published(NamedTuple):
    """What is known of a published model before it is built.

    All values are plain, so that a checkpoint keeps them (`args.published`) and needs the model's own folder no more.
    """

    config: dict  # what the source builds the towers from
    mean: list[float]  # and the standard deviation of each channel, for pixels from 0 to 1
    std: list[float]
    image_size: int  # pixels
    fit: str  # the view for evaluation, see data.views.whole
    pretrained: str  # what --pretrained is if it is not given
    context_length: int | None = None  # tokens; None without a text tower
    padded: bool = False  # whether captions are padded to the context length always, because padding takes part


def its_own(arch: str, pretrained: str | None) -> None:
    """Raises InputError for a --pretrained that names another model of the same source: it would not be looked at."""
    prefix, colon, _ = (pretrained or "").partition(":")
    if colon and pretrained != arch and prefix in ("hf", "hf-hub", "local-dir"):
        raise InputError(f"--pretrained {pretrained}: the weights of --arch {arch} are its own, leave it out")


class Towers(NamedTuple):
    """An image tower and perhaps a text tower, with what they bring along. None: as MedSLIP makes it itself."""

    image: nn.Module  # (B, 3, H, W) -> (B, width), pooled
    width: int
    text: nn.Module | None = None  # see POOLINGS for its call
    text_width: int = 0
    text_pooling: str | None = None  # a name in POOLINGS; None: what --text-pooling says
    vocab_size: int = 0  # of the text tower
    positions: int | None = None  # the most tokens that it takes; None: any number
    image_projection: nn.Module | None = None  # (B, width) -> (B, embed_dim)
    text_projection: nn.Module | None = None
    bias: bool = False  # whether the projections that MedSLIP makes have one
    embed_dim: int = EMBED_DIM
    logit_scale: float = LOGIT_SCALE  # its logarithm
    logit_bias: float | None = None  # SigLIP's, if it has one
    resize: Callable[[int], None] | None = None  # lets the image tower take images of another size, its weights kept


class Pooled:
    """Mixed into a model of transformers': a call gives its pooled feature alone, (B, 3, H, W) -> (B, hidden)."""

    def forward(self, pixels):
        return super().forward(pixels).pooler_output


def mean_over(tokens: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """(B, T, hidden) -> (B, hidden), the mean over the tokens where `counted` (B, T) is 1."""
    counted = counted.unsqueeze(-1).to(tokens.dtype)
    return (tokens * counted).sum(dim=1) / counted.sum(dim=1)


def three_layers(text: nn.Module, input_ids, mask) -> torch.Tensor:
    """(B, T, hidden), the mean of the hidden states 1, 2 and last, as MedCLIP's modeling_medclip.py has it."""
    states = text(input_ids=input_ids, attention_mask=mask, output_hidden_states=True).hidden_states
    return (states[1] + states[2] + states[-1]) / 3


def last_four_layers(text: nn.Module, input_ids, mask) -> torch.Tensor:
    """(B, T, hidden), the sum of the last four hidden states."""
    states = text(input_ids=input_ids, attention_mask=mask, output_hidden_states=True).hidden_states
    return states[-4] + states[-3] + states[-2] + states[-1]


def last_layer(text: nn.Module, input_ids, mask) -> torch.Tensor:
    """(B, T, hidden)"""
    return text(input_ids=input_ids, attention_mask=mask).last_hidden_state


def end_token(text: nn.Module, input_ids, mask) -> torch.Tensor:
    tokens = last_layer(text, input_ids, mask)
    return tokens[torch.arange(len(tokens), device=tokens.device), mask.sum(dim=1) - 1]


POOLINGS = {  # name: (text encoder, input_ids (B, T), attention_mask (B, T)) -> (B, hidden)
    "masked": lambda text, ids, mask: mean_over(three_layers(text, ids, mask), mask),  # this project's, of real tokens
    "padded": lambda text, ids, mask: three_layers(text, ids, mask).mean(dim=1),  # MedCLIP's own, padding included
    "cls": lambda text, ids, mask: last_layer(text, ids, mask)[:, 0],
    "mean": lambda text, ids, mask: mean_over(last_layer(text, ids, mask), mask),
    "end": end_token,  # Mammo-CLIP's
    "last_four": lambda text, ids, mask: mean_over(last_four_layers(text, ids, mask), mask),  # GLoRIA's
    "pooler": lambda text, ids, mask: text(input_ids=ids, attention_mask=mask).pooler_output,
    "own": lambda text, ids, mask: text(ids),  # the tower pools, and knows its padding
}
