"""Image and text towers, their projections and the SimCLR head, put together in one class for every architecture.

MedCLIP (Wang et al., EMNLP 2022; RyanWangZf/MedCLIP) projects a Swin-T or ResNet-50 and Bio_ClinicalBERT to 512
dimensions. MedSLIP adds SLIP's SimCLR head (Mu et al., ECCV 2022; Chen et al., ICML 2020) on the projected image.
"""

import math
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, SwinConfig, SwinModel
from transformers import logging as transformers_logging

import checkpoints
from data import hub
from distributed import batch_norms
from options import BIO_CLINICAL_BERT, OBJECTIVES
from utils import InputError, queued, resolve

EMBED_DIM = 512
MEAN_STD = {  # name: (mean, std) of each channel, for pixels from 0 to 1
    "medclip": ((0.5862785803043838,) * 3, (0.27950088968644304,) * 3),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
TIMM_NAMES = {  # what a name of MedCLIP's or SLIP's is in timm, and with which arguments
    "medclip_resnet": ("resnet50", {}),
    "vit_small_mocov3_patch16_224": ("vit_small_patch16_224", {"num_heads": 12}),
}
BERT_CONFIGS = {  # built in: no network is needed for the architecture
    BIO_CLINICAL_BERT: BertConfig(vocab_size=28996),
    "tiny": BertConfig(
        vocab_size=4096, hidden_size=256, num_hidden_layers=3, num_attention_heads=4, intermediate_size=1024
    ),
}

transformers_logging.set_verbosity_error()


class PooledSwin(SwinModel):
    """Swin-T as microsoft/swin-tiny-patch4-window7-224: (B, 3, H, W) -> (B, 768), the mean over the last stage."""

    def forward(self, pixels):
        return super().forward(pixels).pooler_output


class Source(NamedTuple):
    """Where image encoders come from: "module:function" each, imported when they are used."""

    encoder: str  # see `image_encoder` for what it takes and gives
    mean_std: str | None = None  # an arch -> what its published weights were trained with, see `mean_std`


SOURCES = {  # a name of --arch, or all of it up to a colon, with that; docs/EXTENDING.md adds one
    "medclip_vit": Source("models:swin_encoder"),
    "": Source("models:timm_encoder", "models:timm_mean_std"),  # every other name
}


def source(arch: str) -> Source:
    prefix, colon, _ = arch.partition(":")
    return SOURCES.get(prefix + colon, SOURCES[""])


def image_encoder(arch: str, pretrained: bool = False, image_size: int = 224) -> tuple[nn.Module, int]:
    """An encoder (B, 3, H, W) -> (B, width) and its width; `pretrained` takes the weights that its source publishes.

    Raises InputError for an unknown name, or if weights cannot be had.
    """
    return resolve(source(arch).encoder)(arch, pretrained, image_size)


def swin_encoder(arch: str, pretrained: bool, image_size: int) -> tuple[nn.Module, int]:
    """MedCLIP's ViT."""
    if pretrained:
        raise InputError(f"--pretrained timm has no weights for {arch}: use medclip, none or a file")
    if image_size < 224:
        raise InputError(f"--image-size {image_size}: {arch}'s last stage has a window of 7 patches: 224 or more")
    config = SwinConfig(image_size=image_size)
    return PooledSwin(config), config.hidden_size


def timm_encoder(arch: str, pretrained: bool, image_size: int) -> tuple[nn.Module, int]:
    """Any encoder of timm's, by its name there or one of TIMM_NAMES."""
    name, arguments = TIMM_NAMES.get(arch, (arch, {}))
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:4]
        hint = f"; timm has {', '.join(close)}" if close else ""
        raise InputError(f"--arch {arch}: neither medclip_vit, medclip_resnet nor a timm name{hint}")
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size and config.input_size[-1] != image_size:
        arguments = {**arguments, "img_size": image_size}
    if pretrained:
        hub.reach()
    try:
        encoder = timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments)
    except Exception as error:  # timm and the hub raise a dozen kinds: no weights, offline, bad size
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"--arch {arch}{' --pretrained timm' if pretrained else ''}: {first_line}") from None
    return encoder, getattr(encoder, "head_hidden_size", encoder.num_features)


def text_encoder(text_model: str, vocab_size: int | None = None, pretrained: bool = False) -> nn.Module:
    """A Hugging Face encoder without pooler. `text_model`: a name, a folder, a `vocab.txt`, or "tiny".

    `vocab_size` replaces the built-in configuration's. Raises InputError if the architecture or the weights cannot
    be had.
    """
    path = Path(text_model)
    vocabulary_only = path.suffix == ".txt" or (path.is_dir() and not (path / "config.json").exists())
    name = BIO_CLINICAL_BERT if vocabulary_only else text_model
    if pretrained and name != "tiny" and not vocabulary_only:
        try:
            return hub.load(AutoModel.from_pretrained, text_model, add_pooling_layer=False, dtype=torch.float32)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"--text-model {text_model}: no weights: {str(error).splitlines()[0]}: give a folder that has them"
            ) from None
    if name in BERT_CONFIGS:
        config = BertConfig.from_dict(BERT_CONFIGS[name].to_dict())
        if name == "tiny" and vocab_size is not None:
            config.vocab_size = vocab_size
    else:
        try:
            config = hub.load(AutoConfig.from_pretrained, text_model)
        except (OSError, ValueError) as error:
            raise InputError(
                f"--text-model {text_model}: no such folder, and no configuration of that name on the Hugging Face hub "
                f"({str(error).splitlines()[0]}): give a folder"
            ) from None
    if vocab_size is not None and vocab_size > config.vocab_size:
        raise InputError(
            f"--text-model {text_model}: its vocabulary has {vocab_size} entries, the model {config.vocab_size}"
        )
    try:
        return AutoModel.from_config(config, add_pooling_layer=False)
    except TypeError:  # not every architecture has a pooler to leave out
        return AutoModel.from_config(config)


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
    """Two towers, projections without bias to 512, a SimCLR head on the projected image, and a logit scale.

    `text` is a text encoder or None; `ssl_dims` is (hidden, out) of the SimCLR head or None.
    """

    def __init__(self, image: nn.Module, width: int, text: nn.Module | None, ssl_dims, text_pooling: str = "masked"):
        super().__init__()
        self.text_pooling = text_pooling
        self.locked = []
        self.frozen_norms = False
        self.image_encoder = image.to(memory_format=torch.channels_last)  # faster convolutions, on CPU and GPU
        self.image_projection = nn.Linear(width, EMBED_DIM, bias=False)
        if text is not None:
            self.text_encoder = text
            self.text_projection = nn.Linear(text.config.hidden_size, EMBED_DIM, bias=False)
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        if ssl_dims is not None:
            self.ssl_head = projection_head(EMBED_DIM, *ssl_dims)

    def encode_image(self, pixels: torch.Tensor, projected: bool = True) -> torch.Tensor:
        """(B, 1 or 3, H, W) normalised -> (B, 512), or pooled (B, width) if not `projected`. Not L2-normalised."""
        if pixels.shape[1] == 1:
            pixels = pixels.expand(-1, 3, -1, -1)
        features = self.image_encoder(pixels)
        return self.image_projection(features) if projected else features

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, projected: bool = True):
        """(B, T) int64 ids and their mask -> (B, 512), or pooled (B, hidden) if not `projected`. Not L2-normalised.

        The mean of the hidden states 1, 2 and last (MedCLIP's modeling_medclip.py), then the mean over the real tokens
        of a caption; with text_pooling "padded" over all T positions, padding included, as in MedCLIP.
        """
        states = self.text_encoder(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True
        ).hidden_states
        tokens = (states[1] + states[2] + states[-1]) / 3
        if self.text_pooling == "padded":
            pooled = tokens.mean(dim=1)
        else:
            mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
            pooled = (tokens * mask).sum(dim=1) / mask.sum(dim=1)
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

        `image_embed`, `text_embed` and `logit_scale` (already exp) if there are features of `image` and `text`;
        `aug1_embed` and `aug2_embed` if there are those of `aug1` and `aug2`.
        """
        outputs = {}
        if "image" in features:
            outputs["image_embed"] = self.image_projection(features["image"])
            outputs["text_embed"] = self.text_projection(features["text"])
            outputs["logit_scale"] = self.logit_scale.exp()
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
            if hasattr(encoder, "set_grad_checkpointing"):  # timm
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
    image_size: int = 224,
) -> MedSLIP:
    """Build what `objective` needs (a name in options.OBJECTIVES, or None for the image tower alone).

    `pretrained` is "none", "medclip", "timm" (the published weights of timm and, for text, of Hugging Face), or a
    file or folder in any layout of checkpoints.py. `text_model` defaults to Bio_ClinicalBERT. Raises InputError.
    """
    published = pretrained == "timm"
    image, width = image_encoder(arch, published, image_size)
    text = ssl_dims = None
    if objective is not None and OBJECTIVES[objective].text:
        text = text_encoder(text_model or BIO_CLINICAL_BERT, vocab_size, published)
    if objective is not None and OBJECTIVES[objective].views:
        ssl_dims = ssl_mlp_dim, ssl_emb_dim
    model = MedSLIP(image, width, text, ssl_dims, text_pooling)
    if pretrained not in ("none", "timm"):
        path = checkpoints.download_medclip(arch) if pretrained == "medclip" else pretrained
        checkpoints.load_weights(model, checkpoints.read(path), path, arch)
    return model


def published_text(text_model: str, objective: str) -> str:
    """What `--pretrained timm` takes for the text tower, in words for the log."""
    vocabulary_only = Path(text_model).suffix == ".txt" or text_model == "tiny"
    return "" if vocabulary_only or not OBJECTIVES[objective].text else f" and Hugging Face's {text_model}"


def mean_std(normalize: str, arch: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels for --normalize: of "timm" those that the source of `arch` publishes.

    Raises InputError where it publishes none.
    """
    if normalize != "timm":
        return MEAN_STD[normalize]
    published = source(arch).mean_std
    if published is None:
        raise InputError(f"--normalize timm: {arch} is not a timm encoder")
    return resolve(published)(arch)


def timm_mean_std(arch: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    config = timm.get_pretrained_cfg(TIMM_NAMES.get(arch, (arch, {}))[0])
    return config.mean, config.std


def settle_defaults(args) -> None:
    """Set --arch, --image-size, --pretrained and --normalize where neither the command nor a checkpoint has."""
    args.arch, args.image_size = args.arch or "medclip_vit", args.image_size or 224
    args.pretrained = args.pretrained or ("medclip" if args.arch.startswith("medclip_") else "none")
    args.normalize = args.normalize or default_normalize(args.arch, args.pretrained)


def default_normalize(arch: str, pretrained: str) -> str:
    """The normalisation that the initial weights were trained with: what --normalize is if neither it nor a checkpoint
    says."""
    if arch.startswith("medclip_"):
        return "medclip"
    return "timm" if pretrained == "timm" else "imagenet"
