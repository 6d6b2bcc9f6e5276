"""Image and text towers, their projections and the SimCLR head, put together in one class for every architecture.

MedCLIP (Wang et al., EMNLP 2022; RyanWangZf/MedCLIP) projects a Swin-T or ResNet-50 and Bio_ClinicalBERT to 512
dimensions. MedSLIP adds SLIP's SimCLR head (Mu et al., ECCV 2022; Chen et al., ICML 2020) on the projected image.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import checkpoints
from distributed import batch_norms
from options import BIO_CLINICAL_BERT, OBJECTIVES
from towers.parts import POOLINGS, Published, Towers
from towers.text import text_encoder
from utils import InputError, queued, resolve

MEAN_STD = {  # name: (mean, std) of each channel, for pixels from 0 to 1
    "medclip": ((0.5862785803043838,) * 3, (0.27950088968644304,) * 3),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class Source(NamedTuple):
    """Where encoders come from: "module:function" each, imported when they are used. The first two are of a source of
    image encoders, which takes its text tower from --text-model; the others of one of whole models."""

    encoder: str | None = None  # see `image_encoder` for what it takes and gives
    mean_std: str | None = None  # an arch -> what its published weights were trained with, see `mean_std`
    published: str | None = None  # (arch, --pretrained or None) -> towers.parts.Published
    # (arch, --pretrained, Published) -> the path of the weights that it publishes, or a dict of them, by our names
    # after "published.", and what they are called
    weights: str | None = None
    towers: str | None = None  # (arch, Published, whether text is needed, a state dict or None) -> towers.parts.Towers
    tokenizer: str | None = None  # (arch, Published, what it returned before or None) -> tokenizer, a text to keep


SOURCES = {  # a name of --arch, or all of it up to a colon, with that; docs/EXTENDING.md adds one
    "open_clip:": Source(
        published="towers.openclip_files:published",
        weights="towers.openclip_files:weights",
        towers="towers.openclip:towers",
        tokenizer="towers.openclip_files:tokenizer",
    ),
    "medclip_vit": Source("towers.swin:swin_encoder"),
    "hf:": Source(
        published="towers.hugging_face:published",
        weights="towers.hugging_face:weights",
        towers="towers.hugging_face:towers",
        tokenizer="towers.hugging_face:tokenizer",
    ),
    **dict.fromkeys(
        ("hf-hub:", "local-dir:"),  # as timm spells them
        Source(
            published="towers.timm_folders:published",
            weights="towers.timm_folders:weights",
            towers="towers.timm_folders:towers",
        ),
    ),
    "gloria": Source(
        published="towers.gloria:published", weights="towers.gloria:weights", towers="towers.gloria:towers"
    ),
    **dict.fromkeys(
        ("mammo_clip_b2", "mammo_clip_b5"),
        Source(
            published="towers.mammo_clip:published",
            weights="towers.mammo_clip:weights",
            towers="towers.mammo_clip:towers",
        ),
    ),
    "": Source("towers.timm_encoders:timm_encoder", "towers.timm_encoders:timm_mean_std"),  # every other name
}


def source(arch: str) -> Source:
    prefix, colon, _ = arch.partition(":")
    return SOURCES.get(prefix + colon, SOURCES[""])


def image_encoder(arch: str, pretrained: bool = False, image_size: int = 224) -> tuple[nn.Module, int]:
    """An encoder (B, 3, H, W) -> (B, width) and its width; `pretrained` takes the weights that its source publishes.

    Raises InputError for an unknown name, or if weights cannot be had.
    """
    return resolve(source(arch).encoder)(arch, pretrained, image_size)


def projection_head(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """SimCLR's three-layer projection head as SLIP has it: (B, in_dim) -> (B, out_dim)."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, out_dim),
    )


class MedSLIP(nn.Module):
    """Two towers, their projections, a SimCLR head on the projected image, and a logit scale.

    What `towers` does not bring along is made here: projections without bias to 512. `ssl_dims` is (hidden, out) of
    the SimCLR head or None.
    """

    def __init__(self, towers: Towers, ssl_dims: tuple[int, int] | None = None):
        super().__init__()
        self.text_pooling = towers.text_pooling
        self.embed_dim, self.width = towers.embed_dim, towers.width
        self.vocab_size, self.positions = towers.vocab_size, towers.positions
        self.locked = []
        self.frozen_norms = False
        self.image_encoder = towers.image.to(memory_format=torch.channels_last)  # faster convolutions, on CPU and GPU
        self.image_projection = towers.image_projection or nn.Linear(towers.width, towers.embed_dim, towers.bias)
        if towers.text is not None:
            self.text_encoder = towers.text
            self.text_projection = towers.text_projection or nn.Linear(towers.text_width, towers.embed_dim, towers.bias)
            self.logit_scale = nn.Parameter(torch.tensor(towers.logit_scale))
            if towers.logit_bias is not None:  # given to the losses; none of this project's has a use for it
                self.register_buffer("logit_bias", torch.tensor(towers.logit_bias))
        if ssl_dims is not None:
            self.ssl_head = projection_head(towers.embed_dim, *ssl_dims)

    def encode_image(self, pixels: torch.Tensor, projected: bool = True) -> torch.Tensor:
        """(B, 1 or 3, H, W) normalised -> (B, embed_dim), or pooled (B, width) if not `projected`. No L2 norm."""
        if pixels.shape[1] == 1:
            pixels = pixels.expand(-1, 3, -1, -1)
        features = self.image_encoder(pixels)
        return self.image_projection(features) if projected else features

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, projected: bool = True):
        """(B, T) int64 ids and their mask -> (B, embed_dim), or pooled (B, hidden) if not `projected`. No L2 norm.

        `text_pooling` says how tokens become one vector: see towers.parts.POOLINGS.
        """
        pooled = POOLINGS[self.text_pooling](self.text_encoder, input_ids, attention_mask)
        return self.text_projection(pooled) if projected else pooled

    def encode(self, image=None, input_ids=None, attention_mask=None, aug1=None, aug2=None, text_order=None) -> dict:
        """Pooled features, before any projection, of what is given: `image`, `text`, `aug1`, `aug2`, (B, width) each.

        `input_ids` and `attention_mask` are of the whole batch, or lists of chunks of captions of like length, see
        tokens.Tokens.batch. On a GPU all views go through the encoder at once, unless it has batch norms that train:
        those take their statistics of one view at a time.
        """
        features = {}
        pixels = {name: x for name, x in (("image", image), ("aug1", aug1), ("aug2", aug2)) if x is not None}
        apart = any(norm.training for norm in batch_norms(self.image_encoder))
        if apart or not all(queued(x.device) for x in pixels.values()):
            features = {name: self.encode_image(x, projected=False) for name, x in pixels.items()}
        else:
            together = self.encode_image(torch.cat(list(pixels.values())), projected=False)
            features = dict(zip(pixels, together.split([len(x) for x in pixels.values()]), strict=True))
        if input_ids is not None:
            if torch.is_tensor(input_ids):
                input_ids, attention_mask = [input_ids], [attention_mask]
            chunks = [
                self.encode_text(*chunk, projected=False) for chunk in zip(input_ids, attention_mask, strict=True)
            ]
            features["text"] = torch.cat(chunks) if text_order is None else torch.cat(chunks)[text_order]
        return features

    def project(self, features: dict) -> dict:
        """The features of `encode` -> their embeddings.

        `image_embed`, `text_embed`, `logit_scale` (already exp) and perhaps `logit_bias` if there are features of
        `image` and `text`; `aug1_embed` and `aug2_embed` if there are those of `aug1` and `aug2`.
        """
        outputs = {}
        if "image" in features:
            outputs["image_embed"] = self.image_projection(features["image"])
            outputs["text_embed"] = self.text_projection(features["text"])
            outputs["logit_scale"] = self.logit_scale.exp()
            if hasattr(self, "logit_bias"):
                outputs["logit_bias"] = self.logit_bias
        if "aug1" in features:
            outputs["aug1_embed"] = self.ssl_head(self.image_projection(features["aug1"]))
            outputs["aug2_embed"] = self.ssl_head(self.image_projection(features["aug2"]))
        return outputs

    def forward(
        self, image=None, input_ids=None, attention_mask=None, aug1=None, aug2=None, text_order=None,
        project=True, anchor=False,
    ) -> dict:  # fmt: skip
        """`encode`, then `project`: features and embeddings in one dict; with `project=False` the features alone.

        `anchor` adds an output that is zero and depends on every parameter outside of the encoders.
        DistributedDataParallel waits for the gradient of each parameter, and so gets one even without `project`.
        """
        outputs = self.encode(image, input_ids, attention_mask, aug1, aug2, text_order)
        if project:
            outputs |= self.project(outputs)
        if anchor:
            heads = [p for name, p in self.named_parameters() if "_encoder." not in name and p.requires_grad]
            outputs["anchor"] = sum((0 * p).sum() for p in heads)
        return outputs

    def lock(self, *towers: str) -> None:
        """Freeze "image_encoder" or "text_encoder": no gradient, and norms and dropout stay in eval mode."""
        for name in towers:
            getattr(self, name).requires_grad_(False).eval()
        self.locked = list(towers)

    def freeze_batch_norms(self) -> int:
        """Let the image encoder's batch norms use their running statistics, unchanged -> the number of batch norms.

        Their weights and biases still train.
        """
        self.frozen_norms = True
        return len(batch_norms(self.image_encoder))

    def train(self, mode: bool = True):
        super().train(mode)
        for name in self.locked:
            getattr(self, name).eval()
        for norm in batch_norms(self.image_encoder) if self.frozen_norms else ():
            norm.eval()
        return self

    def checkpoint_gradients(self) -> None:
        """Recompute the encoders' activations in the backward pass instead of keeping them."""
        for encoder in (self.image_encoder, getattr(self, "text_encoder", None)):
            if callable(getattr(encoder, "set_grad_checkpointing", None)):  # timm, open_clip
                encoder.set_grad_checkpointing(True)
            elif encoder is not None:
                names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # transformers renames it
                enable = next((getattr(encoder, name) for name in names if hasattr(encoder, name)), None)
                if enable is None:
                    raise InputError(f"--grad-checkpointing: {type(encoder).__name__} cannot recompute its activations")
                enable({"use_reentrant": False})


def create_model(
    arch: str = "medclip_vit",
    objective: str | None = "slip",
    pretrained: str = "none",
    text_model: str | None = None,
    text_pooling: str = "masked",
    vocab_size: int | None = None,
    ssl_mlp_dim: int = 4096,
    ssl_emb_dim: int = 256,
    image_size: int | None = None,
    published: dict | None = None,
    weights: tuple[dict, str] | None = None,
) -> MedSLIP:
    """Build what `objective` needs (a name in options.OBJECTIVES, or None for the image tower alone).

    `pretrained` is "none", "medclip", "published" (what the source of `arch` publishes; of timm's archs, whose text
    tower is Hugging Face's `text_model`, the weights of both; "timm" is the same), a value of the source's own, or a
    file or folder in any layout of checkpoints.py. `weights`, a checkpoint's contents and path, count before it.
    `loaded` of the model are the parts of it that have weights from there.

    `text_model` defaults to Bio_ClinicalBERT, `image_size` to the published model's or 224. `published` is what a
    checkpoint's arguments say of a published model; without it the source is asked. Raises InputError.
    """
    found, known = source(arch), None
    if found.published:
        known = Published(**published) if published else resolve(found.published)(arch, pretrained)
    asks = weights is None and is_published(pretrained)
    image_size = image_size or (known.image_size if known else 224)
    if weights is None and (found.towers or not is_published(pretrained)) and pretrained != "none":
        weights = read_weights(arch, pretrained, known and known._asdict())
    with_text = objective is not None and OBJECTIVES[objective].text
    if found.towers:
        state = checkpoints.translate(*weights)[1] if weights else None
        towers = resolve(found.towers)(arch, known, with_text, state)
        if vocab_size is not None and towers.text is not None and vocab_size > towers.vocab_size:
            raise InputError(
                f"--arch {arch}: its tokenizer has {vocab_size} entries, its text tower {towers.vocab_size}: they are "
                "not of one model"
            )
    else:
        image, width = image_encoder(arch, asks, image_size)
        towers = Towers(image, width)
    if with_text and towers.text is None:
        if towers.text_pooling and text_pooling != "masked":
            raise InputError(f"--text-pooling {text_pooling}: --arch {arch} has one of its own, leave it out")
        text = text_encoder(text_model or BIO_CLINICAL_BERT, vocab_size, asks)
        if isinstance(towers.text_projection, nn.Identity) and text.config.hidden_size != towers.embed_dim:
            raise InputError(
                f"--text-model {text_model}: {text.config.hidden_size} wide, and --arch {arch}, which does not project "
                f"texts, needs {towers.embed_dim}"
            )
        towers = towers._replace(
            text=text, text_width=text.config.hidden_size, text_pooling=towers.text_pooling or text_pooling,
            vocab_size=text.config.vocab_size, positions=getattr(text.config, "max_position_embeddings", None),
        )  # fmt: skip
    with_views = objective is not None and OBJECTIVES[objective].views
    model = MedSLIP(towers, (ssl_mlp_dim, ssl_emb_dim) if with_views else None)
    # A checkpoint of main.py has weights for the images of its run, published ones for those of their own size.
    if towers.resize is not None:
        run = (checkpoints.own_arguments(weights[0]) or {}) if weights else {"image_size": image_size}
        trained = run.get("image_size", known.image_size)
        if trained != known.image_size:
            towers.resize(trained)
    model.loaded = checkpoints.load_weights(model, *weights, arch) if weights else set()
    if towers.resize is not None and image_size != trained:
        towers.resize(image_size)
    check_patches(model.image_encoder, arch, image_size)
    return model


def check_patches(encoder: nn.Module, arch: str, image_size: int) -> None:
    """Raises InputError for a ViT of timm's whose patches do not fill an image; it would say so at the first step."""
    patches = getattr(encoder, "patch_embed", None)
    strict, pads = (getattr(patches, name, True) for name in ("strict_img_size", "dynamic_img_pad"))
    if not (strict or pads) and any(image_size % side for side in patches.patch_size):
        raise InputError(f"--image-size {image_size}: --arch {arch} takes multiples of {patches.patch_size[0]} pixels")


def is_published(pretrained: str) -> bool:
    """Whether --pretrained asks for weights that the source of the arch publishes."""
    prefix, colon, _ = pretrained.partition(":")
    return pretrained in ("published", "timm") or (bool(colon) and prefix + colon in SOURCES)


def read_weights(arch: str, pretrained: str, published: dict | None) -> tuple[dict, str]:
    """The contents of --pretrained, downloaded if need be, and the path or name that they go by. Raises InputError."""
    path = pretrained
    if pretrained == "medclip":
        path = checkpoints.download_medclip(arch)
    elif is_published(pretrained):
        path = resolve(source(arch).weights)(arch, pretrained, Published(**published))
    return path if isinstance(path, tuple) else (checkpoints.read(path), path)


def published_text(text_model: str, objective: str) -> str:
    """What `--pretrained timm` takes for the text tower, in words for the log."""
    vocabulary_only = Path(text_model).suffix == ".txt" or text_model == "tiny"
    return "" if vocabulary_only or not OBJECTIVES[objective].text else f" and Hugging Face's {text_model}"


def mean_std(normalize: str, arch: str, published: dict | None = None):
    """Mean and standard deviation of the pixels for --normalize, a tuple of three each.

    Those of "published" ("timm" is the same) are what the published weights were trained with: `published` says so, or
    the source of `arch`. Raises InputError where it does not.
    """
    if normalize not in ("published", "timm"):
        return MEAN_STD[normalize]
    if published:
        return tuple(published["mean"]), tuple(published["std"])
    known = source(arch).mean_std
    if known is None:
        raise InputError(f"--normalize {normalize}: {arch} is not a timm encoder")
    return resolve(known)(arch)


def pixel_statistics(args):
    """`mean_std` for a script's arguments."""
    return mean_std(args.normalize, args.arch, getattr(args, "published", None))


def evaluation_view(args, fit: str) -> str:
    """How an evaluation shows an image to the encoder, see data.views.whole: as a published model's configuration says,
    else as `fit` says."""
    published = getattr(args, "published", None)
    return published["fit"] if published else fit


def own_tokenizer(arch: str, published: dict | None, kept: str | None = None):
    """The tokenizer that an arch brings along, and a text to keep in checkpoints; None for an arch that has none.

    `kept` is that text, of the checkpoint to go on with. Raises InputError.
    """
    return resolve(source(arch).tokenizer)(arch, Published(**published), kept) if brings_text(published) else None


def brings_text(published: dict | None) -> bool:
    """Whether a published model has a text tower of its own, and a tokenizer."""
    return bool(published and published["context_length"])


def settle_defaults(args) -> None:
    """Set what neither the command nor a checkpoint has: --arch, --image-size, --pretrained, --normalize, and for a
    training --context-length and --text-model. `args.published` is a published model's towers.parts.Published.

    Raises InputError for arguments that do not fit the arch.
    """
    args.arch = args.arch or "medclip_vit"
    found = source(args.arch).published
    if found and not args.published:
        args.published = resolve(found)(args.arch, args.pretrained)._asdict()
    known = Published(**args.published) if args.published else None
    with_text = brings_text(args.published)
    if with_text and (getattr(args, "text_model", None) or getattr(args, "text_pooling", "masked") != "masked"):
        raise InputError(f"--arch {args.arch} has a text tower of its own: leave out --text-model and --text-pooling")
    args.image_size = args.image_size or (known.image_size if known else 224)
    args.pretrained = args.pretrained or (
        known.pretrained if known else "medclip" if args.arch.startswith("medclip_") else "none"
    )
    prefix, colon, _ = args.pretrained.partition(":")
    if colon and is_published(args.pretrained) and not args.arch.startswith(prefix + colon):
        raise InputError(f"--pretrained {args.pretrained}: has no weights for --arch {args.arch}")
    args.normalize = args.normalize or default_normalize(args.arch, args.pretrained)
    if hasattr(args, "context_length"):
        args.context_length = args.context_length or (known and known.context_length) or 77
        if not with_text:
            args.text_model = args.text_model or BIO_CLINICAL_BERT


def default_normalize(arch: str, pretrained: str) -> str:
    """The normalisation that the initial weights were trained with: what --normalize is if neither it nor a checkpoint
    says."""
    if arch.startswith("medclip_"):
        return "medclip"
    if pretrained == "timm":
        return "timm"
    return "published" if source(arch).published or pretrained == "published" else "imagenet"
