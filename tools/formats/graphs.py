"""Both towers as programs of torch.export, for the formats that hold a graph: of any batch size and caption length."""

import copy
from collections.abc import Callable

import torch
from torch import nn

from utils import InputError, one_line

SHAPES = ((1, 3), (5, 21))  # images and captions, tokens: what an export is tried on besides what it was traced with
INPUTS = {"image": ("pixels",), "text": ("input_ids", "attention_mask")}
LARGEST = 1e-4  # difference there, as in tools/export.py


def part(model: nn.Module, tower: str) -> nn.Module:
    """A copy of a models.MedSLIP with the encoder and the projection of one tower alone."""
    found = copy.copy(model)
    children = {name: child for name, child in model.named_children() if name.startswith(f"{tower}_")}
    found._modules, found._parameters, found._buffers = copy.deepcopy(children), {}, {}
    return found.to(memory_format=torch.contiguous_format)  # torch.export.save warns of other orders


class ImageTower(nn.Module):
    """`pixels` (B, 3, S, S), normalised -> (B, embed_dim), not L2-normalised."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = part(model, "image")

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.encode_image(pixels)


class TextTower(nn.Module):
    """`input_ids` and `attention_mask` (B, T) int64 -> (B, embed_dim), not L2-normalised."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = part(model, "text")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model.encode_text(input_ids, attention_mask)


def example(encoder, batch: int, tokens: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """`pixels`, and with a text tower `input_ids` and `attention_mask` whose first row has no padding, of a seed."""
    draw, size = torch.Generator().manual_seed(seed), encoder.args.image_size
    given = {"pixels": torch.randn(batch, 3, size, size, generator=draw)}
    if encoder.load_tokenizer is not None:
        tokens = encoder.pad_to or min(tokens, encoder.args.context_length)
        lengths = torch.randint(1, tokens + 1, (batch, 1), generator=draw)
        lengths[0] = tokens
        given["input_ids"] = torch.randint(encoder.model.vocab_size, (batch, tokens), generator=draw)
        given["attention_mask"] = (torch.arange(tokens) < lengths).long()
    return given


def programs(encoder, name: str) -> dict[str, torch.export.ExportedProgram]:
    """{"image": the image tower, and with a text tower "text": that}, on the CPU.

    The batch size is free, and so is the length of captions, up to the positions of the text tower. Raises InputError,
    which starts with `--to NAME`, for a tower that torch.export cannot trace.
    """
    given, batch = example(encoder, 2, 16), torch.export.Dim("batch")
    towers = {"image": (ImageTower, {0: batch})}
    if encoder.load_tokenizer is not None:
        length = torch.export.Dim("length", max=encoder.model.positions)
        towers["text"] = (TextTower, {0: batch} if encoder.pad_to else {0: batch, 1: length})
    found = {}
    for tower, (module, free) in towers.items():
        inputs = tuple(given[name] for name in INPUTS[tower])
        try:
            found[tower] = torch.export.export(
                module(encoder.model).eval(), inputs, dynamic_shapes=(free,) * len(inputs), strict=False
            )
        except Exception as error:  # torch raises many kinds
            raise InputError(f"--to {name}: torch.export cannot trace the {tower} tower: {one_line(error)}") from None
    return found


def try_shapes(encoder, read_back: Callable, name: str) -> None:
    """Raises InputError if what was written fails, or differs from the model, on other shapes than it was traced
    with."""
    model = encoder.model
    for seed, shape in enumerate(SHAPES, start=1):
        given = example(encoder, *shape, seed)
        own = {"image": model.encode_image(given["pixels"])}
        if "input_ids" in given:
            own["text"] = model.encode_text(given["input_ids"], given["attention_mask"])
        try:
            found = read_back(given)
        except Exception as error:  # of torch's and onnxruntime's many kinds
            raise InputError(f"--to {name}: does not take {shape[0]} images or captions: {one_line(error)}") from None
        for tower, value in own.items():
            difference = (found[tower] - value).abs().max().item()
            if not difference <= LARGEST:
                raise InputError(
                    f"--to {name}: the {tower} embeddings of a batch of {shape[0]} differ by {difference:.2g} from the "
                    f"model's, by more than {LARGEST:g}: nothing was kept"
                )
