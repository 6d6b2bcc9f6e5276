"""A trained model that is ready to be asked: images or texts in, embeddings out, shown to it as in its evaluation."""

import os
import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import checkpoints
import models
import utils
from data import augment, locations, views
from data.images import as_picture, read_image, to_gray_or_rgb
from data.tokens import Tokens, from_json, load_tokenizer
from evaluation.exports import EXPORT, read_export
from evaluation.features import weights_crc
from evaluation.fitted import IMAGE_PARTS, open_fitted
from options import OBJECTIVES
from training.saver import BEST, LATEST
from utils import InputError, one_line

ImageLike = str | os.PathLike | Image.Image | np.ndarray  # what `Encoder.read` takes
VALIDATION_FIT = "center"  # how retrieval.validation_loader makes an image square where no published model says


@dataclass
class Encoder:
    """A model in eval mode on its device, and all that its inputs need.

    `args` has what a script's arguments have of it: `arch`, `pretrained`, `image_size`, `normalize`, `published`,
    `text_pooling`, `context_length`, `seed`. `fit` is how images are made square, see data.views.whole, and `window`
    ("40/400") how DICOM files are shown, "" for each file's own. `load_tokenizer` is called when texts come.
    """

    model: models.MedSLIP = field(repr=False)
    args: Namespace = field(repr=False)
    fit: str
    path: Path  # of the weights, or what they are called
    device: torch.device
    dtype: torch.dtype | None  # of autocast
    load_tokenizer: Callable | None = field(default=None, repr=False)  # None without a text tower
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
    def image_size(self) -> int:
        """S, the height and width in pixels of what the model sees."""
        return self.args.image_size

    @property
    def embed_dim(self) -> int:
        """D of the embeddings, which images and texts share."""
        return self.model.embed_dim

    @property
    def logit_scale(self) -> float | None:
        """What the training multiplied cosine similarities with before its softmax; None without a text tower."""
        return self.model.logit_scale.exp().item() if hasattr(self.model, "logit_scale") else None

    @property
    def pad_to(self) -> int | None:
        """The tokens that every caption is padded to; None where padding takes no part."""
        padded = self.model.text_pooling == "padded" or (self.args.published or {}).get("padded")
        return self.args.context_length if padded else None

    def pixels(self, images: Sequence[ImageLike]) -> torch.Tensor:
        """B paths, PIL images or arrays -> (B, 3, S, S) float32, normalised, on the device. Raises InputError."""
        pictures = [as_picture(self.read(image)) for image in images]
        batch = views.WholeImages(pictures, None, self.args.image_size, self.fit).__getitems__(range(len(pictures)))
        return augment.make_views(batch, *self.mean_std, self.device)[0]

    def read(self, image: ImageLike) -> Image.Image:
        """A path or location (data/locations.py), a PIL image, or an array (H, W) or (H, W, 3) of uint8 or uint16 ->
        mode "L" or "RGB". 16 bits keep their high byte, as those of files do. Raises InputError."""
        if isinstance(image, str | os.PathLike):
            location = os.fspath(image)
            try:
                return read_image(locations.make(location, window=self.window) if self.window else location)
            except InputError as error:  # the flag is of scripts that read whole data sets
                raise InputError(str(error).removesuffix(", or pass --skip-broken")) from None
            except ValueError:  # it has a "\0", and what comes after it makes no location
                raise InputError(f"{location[:200]!a}: neither a path nor a location") from None
        if isinstance(image, np.ndarray):
            known = image.dtype in (np.uint8, np.uint16) and (image.ndim == 2 or image.shape[2:] == (3,))
            if not known or image.size == 0:
                shape = f"{image.shape} of {image.dtype}"
                raise InputError(f"an array of {shape} is no image: give (H, W) or (H, W, 3) of uint8 or uint16")
            if image.dtype == np.uint16 and image.max() > 255:
                image = image // 257
            image = Image.fromarray(image.astype(np.uint8))
        if not isinstance(image, Image.Image):
            kind = f"{type(image).__module__}.{type(image).__qualname__}"
            raise InputError(f"{kind}: no image: give a path, a PIL image, or an array of uint8 or uint16")
        if 0 in image.size:
            raise InputError(f"an image of {image.width} x {image.height} pixels shows nothing: leave it out")
        try:
            image.load()  # Pillow decodes what it opened when it comes to be used
            return to_gray_or_rgb(image)
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            where = getattr(image, "filename", "") or "an image of Pillow's"
            raise InputError(f"{where}: cannot be read ({one_line(error)}): open another copy of it") from None

    def tokens(self, texts: Sequence[str]) -> dict:
        """B texts -> `input_ids`, `attention_mask` and `text_order` as Tokens.batch gives them. Raises InputError, also
        as `tokenizer` does."""
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"{text!r:.60}: no text: give strings")
            if re.search("[\ud800-\udfff]", text):
                raise InputError(f"{text[:60]!a}: no text of UTF-8: half of a character is missing")
        return Tokens(self.tokenizer, list(texts), self.args.context_length, self.pad_to).batch(range(len(texts)))

    @torch.no_grad()
    def encode_image(self, images: Iterable[ImageLike], projected: bool = True, batch_size: int = 64) -> torch.Tensor:
        """N paths, PIL images or arrays -> (N, D) float32 on the CPU, not L2-normalised; without `projected` what is
        before the projection, (N, width). Raises InputError."""
        rows = [torch.zeros(0, self.model.embed_dim if projected else self.model.width)]
        for some in in_batches(images, batch_size, "images"):
            pixels = self.pixels(some)
            with utils.autocast(self.device, self.dtype):
                rows.append(self.model.encode_image(pixels, projected).float().cpu())
        return torch.cat(rows)

    @torch.no_grad()
    def encode_text(self, texts: Iterable[str], batch_size: int = 256) -> torch.Tensor:
        """N texts -> (N, D) float32 on the CPU, not L2-normalised. Raises InputError."""
        rows = [torch.zeros(0, self.model.embed_dim)]
        for some in in_batches(texts, batch_size, "texts"):
            batch = self.tokens(some)
            with utils.autocast(self.device, self.dtype):
                chunks = [
                    self.model.encode_text(ids.to(self.device), mask.to(self.device)).float().cpu()
                    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
                ]
            rows.append(torch.cat(chunks)[batch["text_order"]])
        return torch.cat(rows)


def in_batches(things: Iterable, size: int, what: str) -> Iterator[list]:
    """Lists of up to `size` things. Raises InputError for one thing instead of several: a string would be taken for its
    characters, and an array for its rows."""
    if size < 1:
        raise InputError(f"batch_size {size}: give 1 or more")
    if isinstance(things, str | bytes | os.PathLike | np.ndarray | torch.Tensor) or not isinstance(things, Iterable):
        raise InputError(f"{what}: give a list of them, also of a single one, not {type(things).__name__}")
    left = iter(things)
    while some := list(islice(left, size)):
        yield some


def similarity(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Embeddings (N, D) and (M, D) -> their cosine similarities (N, M)."""
    return F.normalize(one, dim=1) @ F.normalize(other, dim=1).T


def open_encoder(
    path: str | os.PathLike, device: torch.device | str | None = "cpu", amp: str | None = "off", text: bool = True
) -> Encoder:
    """The model of a run's folder (its best checkpoint, else its latest), of a checkpoint of main.py, or of an export
    that holds weights. `text` builds its text tower too, if it has one. A `device` of None is a GPU if there is one,
    else the CPU; `amp` is "off", "bf16", "fp16", or None for the device's best. Raises InputError."""
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
    try:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device}: {str(error).splitlines()[0]}") from None
    window = getattr(args, "window", None)
    return Encoder(
        model.requires_grad_(False).eval().to(device), args, models.evaluation_view(args, fit), path, device,
        utils.amp_dtype(amp, device), load_tokenizer, "{:g}/{:g}".format(*window) if window else "",
    )  # fmt: skip


def open_probed(
    folder: str | os.PathLike, device: torch.device | str | None = "cpu", amp: str | None = None,
    weights: str | None = None,
) -> Encoder:  # fmt: skip
    """The image tower that the probe in a folder (fitted.py) was fitted to, which shows images as the probe did.

    `weights` is where its checkpoint, or the folder of its run, lies now, if it was moved. Raises InputError if the
    checkpoint is gone, or if the weights are not those that were probed.
    """
    about = open_fitted(folder).about
    args = Namespace(**about["args"])
    if weights is not None:
        args.pretrained = str(checkpoint_of(Path(weights).expanduser()))
    elif about["from_file"] and not os.path.exists(args.pretrained):
        raise InputError(
            f"{args.pretrained}: the checkpoint that {folder} probed is not there any more: put it back "
            "(tools/predict.py takes it from elsewhere too, as --weights)"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)  # what has no weights from elsewhere is drawn as main_linear.py drew it
        model = models.create_model(
            args.arch, None, args.pretrained, image_size=args.image_size, published=args.published
        )
    if (found := weights_crc(model, IMAGE_PARTS)) != about["weights"]:
        raise InputError(
            f"{args.pretrained}: not the weights that {folder} probed (crc32 {found}, not {about['weights']}): give "
            "those, or fit the probe again"
        )
    encoder = ready(model, args, args.pretrained, device, amp)
    return replace(encoder, fit=about["fit"], window=about["window"])


def checkpoint_of(run: Path) -> Path:
    """A checkpoint, or of a run's folder its best one, else its latest. Raises InputError."""
    if not run.is_dir():
        return run
    for name in (BEST, LATEST):
        if (run / name).exists():
            return run / name
    raise InputError(f"{run}: holds neither {BEST} nor {LATEST}: give a run's folder or a checkpoint")


def open_tokenizer(args: Namespace, kept: str | None):
    """The tokenizer of a run: its own (beside an export, or `kept` with the checkpoint), or that of its text model."""
    if getattr(args, "tokenizer", None):
        return load_tokenizer(args.tokenizer)
    if models.brings_text(args.published):
        return models.own_tokenizer(args.arch, args.published, kept)[0]
    return from_json(kept) if kept else load_tokenizer(args.text_model)
