"""A trained model that is ready to be asked: images or texts in, embeddings out, shown to it as in its evaluation."""

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import checkpoints
import models
import utils
from data import augment, locations, views
from data.images import as_picture, read_image, to_gray_or_rgb
from data.tokens import Tokens, from_json, load_tokenizer
from options import OBJECTIVES
from training.saver import BEST, LATEST
from utils import InputError

EXPORT = "medslip.json"  # beside every export: what it is of, and under "open" how `open_encoder` opens it
VALIDATION_FIT = "center"  # how retrieval.validation_loader makes an image square where no published model says


@dataclass
class Encoder:
    """A model in eval mode on its device, and all that its inputs need.

    `args` has what a script's arguments have of it: `arch`, `pretrained`, `image_size`, `normalize`, `published`,
    `text_pooling`, `context_length`, `seed`. `fit` is how images are made square, see data.views.whole, and `window`
    ("40/400") how DICOM files are shown, "" for each file's own. `load_tokenizer` is called when texts come.
    """

    model: models.MedSLIP
    args: Namespace
    fit: str
    path: Path  # of the weights, or what they are called
    device: torch.device
    dtype: torch.dtype | None  # of autocast
    load_tokenizer: Callable | None = None  # None without a text tower
    window: str = ""

    @cached_property
    def tokenizer(self):
        """Raises InputError without a text tower, or if the tokenizer of its text model cannot be had."""
        if self.load_tokenizer is None:
            raise InputError(f"{self.path}: has no text tower: give a model that was trained with captions")
        return self.load_tokenizer()

    @property
    def mean_std(self) -> tuple:
        """Mean and standard deviation of the pixels, three each, for pixels from 0 to 1."""
        return models.pixel_statistics(self.args)

    @property
    def pad_to(self) -> int | None:
        """The tokens that every caption is padded to; None where padding takes no part."""
        padded = self.model.text_pooling == "padded" or (self.args.published or {}).get("padded")
        return self.args.context_length if padded else None

    def pixels(self, images: Sequence) -> torch.Tensor:
        """B paths, PIL images or arrays -> (B, 3, S, S) float32, normalised, on the device. Raises InputError."""
        pictures = [as_picture(self.read(image)) for image in images]
        batch = views.WholeImages(pictures, None, self.args.image_size, self.fit).__getitems__(range(len(pictures)))
        return augment.make_views(batch, *self.mean_std, self.device)[0]

    def read(self, image) -> Image.Image:
        """A path or location (data/locations.py), a PIL image, or an array (H, W) or (H, W, 3) of uint8 or uint16 ->
        mode "L" or "RGB". Raises InputError."""
        if isinstance(image, (str, Path)):
            return read_image(locations.make(str(image), window=self.window) if self.window else str(image))
        if isinstance(image, np.ndarray):
            if image.dtype not in (np.uint8, np.uint16) or not (image.ndim == 2 or image.shape[2:] == (3,)):
                shape = f"{image.shape} of {image.dtype}"
                raise InputError(f"an array of {shape} is no image: give (H, W) or (H, W, 3) of uint8 or uint16")
            image = Image.fromarray(image if image.dtype == np.uint8 else (image // 257).astype(np.uint8))
        return to_gray_or_rgb(image)

    def tokens(self, texts: Sequence[str]) -> dict:
        """B texts -> `input_ids`, `attention_mask` and `text_order` as Tokens.batch gives them. Raises InputError as
        `tokenizer` does."""
        return Tokens(self.tokenizer, list(texts), self.args.context_length, self.pad_to).batch(range(len(texts)))

    @torch.no_grad()
    def encode_image(self, images: Sequence, projected: bool = True, batch_size: int = 64) -> torch.Tensor:
        """N paths, PIL images or arrays -> (N, D) float32 on the CPU, not L2-normalised. Raises InputError."""
        rows = [torch.zeros(0, self.model.embed_dim if projected else self.model.width)]
        for start in range(0, len(images), batch_size):
            pixels = self.pixels(images[start : start + batch_size])
            with utils.autocast(self.device, self.dtype):
                rows.append(self.model.encode_image(pixels, projected).float().cpu())
        return torch.cat(rows)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        """N texts -> (N, D) float32 on the CPU, not L2-normalised. Raises InputError."""
        rows = [torch.zeros(0, self.model.embed_dim)]
        for start in range(0, len(texts), batch_size):
            batch = self.tokens(texts[start : start + batch_size])
            with utils.autocast(self.device, self.dtype):
                chunks = [
                    self.model.encode_text(ids.to(self.device), mask.to(self.device)).float().cpu()
                    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
                ]
            rows.append(torch.cat(chunks)[batch["text_order"]])
        return torch.cat(rows)


def open_encoder(
    path: str | Path, device: torch.device | str = "cpu", amp: str | None = "off", text: bool = True
) -> Encoder:
    """The model of a run's folder (its best checkpoint, else its latest), of a checkpoint of main.py, or of an export
    that holds weights. `text` builds its text tower too, if it has one. Raises InputError."""
    path = Path(path).expanduser()
    if path.is_dir() and (path / EXPORT).is_file():
        saved, path, contents = read_export(path)
    else:
        path = checkpoint_of(path)
        contents = checkpoints.read(path)
        saved = checkpoints.own_arguments(contents)
        if saved is None or not isinstance(contents["model"], dict):
            raise InputError(f"{path}: not a checkpoint of main.py: give one, or a run's folder")
    try:
        with_text = text and OBJECTIVES[saved["objective"]].text
        args = Namespace(**{**saved, "published": saved.get("published"), "pretrained": str(path)})
        words = contents.get("model", contents).get("text_encoder.embeddings.word_embeddings.weight")
        model = models.create_model(
            args.arch, "clip" if with_text else None, "none", args.text_model, args.text_pooling,
            None if words is None else len(words), image_size=args.image_size, published=args.published,
            weights=(contents, path),
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: does not say which model it is of: {error}") from None
    kept = contents.get("tokenizer")
    return ready(model, args, path, device, amp, partial(open_tokenizer, args, kept) if with_text else None)


def ready(model, args: Namespace, path, device, amp, load_tokenizer=None, fit: str = VALIDATION_FIT) -> Encoder:
    """An Encoder of a model that is built. `fit` counts where no published model says how images are made square."""
    device = torch.device(device)
    window = getattr(args, "window", None)
    return Encoder(
        model.requires_grad_(False).eval().to(device), args, models.evaluation_view(args, fit), path, device,
        utils.amp_dtype(amp, device), load_tokenizer, "{:g}/{:g}".format(*window) if window else "",
    )  # fmt: skip


def checkpoint_of(run: Path) -> Path:
    """A checkpoint, or of a run's folder its best one, else its latest. Raises InputError."""
    if not run.is_dir():
        return run
    for name in (BEST, LATEST):
        if (run / name).exists():
            return run / name
    raise InputError(f"{run}: holds neither {BEST} nor {LATEST}: give a run's folder or a checkpoint")


def read_export(folder: Path) -> tuple[dict, Path, dict]:
    """-> the arguments of the run that an export is of, the path of its weights, and their contents.

    Raises InputError if it is of a format that this code does not open.
    """
    try:
        known = json.loads(utils.read_text(folder / EXPORT))
        opened = known["open"]
        if opened is None:
            raise InputError(
                f"{folder}: an export to {known['format']}, which other programs open: give the run, or another export"
            )
        saved = {**known["args"], **opened}
        saved |= {name: str(folder / opened[name]) for name in ("tokenizer", "text_model") if name in opened}
        if saved["arch"].endswith("local-dir:"):  # the export's own folder
            saved["arch"] += str(folder)
        weights, names = folder / opened["weights"], saved.pop("names", None)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder / EXPORT}: damaged ({error}): export the run again") from None
    contents = checkpoints.read(weights)
    # As a checkpoint of the run: its arguments say for which size of images the weights are.
    return saved, weights, {"model": contents if names is None else renamed(contents, names), "args": saved}


def renamed(contents: dict, names: dict[str, str | None]) -> dict:
    """Weights by the model's names: of `names` the first with which a key starts is replaced; None leaves it out."""
    found = {}
    for key, value in contents.items():
        start = next((one for one in names if key.startswith(one)), None)
        if start is None:
            found[key] = value
        elif names[start] is not None:
            found[names[start] + key.removeprefix(start)] = value
    return found


def open_tokenizer(args: Namespace, kept: str | None):
    """The tokenizer of a run: its own (beside an export, or `kept` with the checkpoint), or that of its text model."""
    if getattr(args, "tokenizer", None):
        return load_tokenizer(args.tokenizer)
    if models.brings_text(args.published):
        return models.own_tokenizer(args.arch, args.published, kept)[0]
    return from_json(kept) if kept else load_tokenizer(args.text_model)
