"""open_clip's models (Ilharco et al., 2021), BiomedCLIP among them: towers that open_clip builds, as MedSLIP's.

Their projections, which lie inside of them there, become MedSLIP's. openclip_files.py has what lies beside the weights.
"""

import json
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import open_clip
import torch
from open_clip import model as builders
from torch import nn

import checkpoints
from towers.parts import LOGIT_SCALE, Published, Towers
from utils import InputError, logger

POOLERS = {  # open_clip's for Hugging Face's text encoders, in towers.parts.POOLINGS
    "cls_last_hidden_state_pooler": "cls",
    "cls_pooler": "pooler",
    "mean_pooler": "mean",
}


def towers(arch: str, known: Published, with_text: bool, state: dict | None) -> Towers:
    """Both towers as open_clip builds them, their weights random.

    `state` are the weights that are to be loaded, by the model's names: without a configuration of its text encoder
    its dimensions are theirs. Raises InputError.
    """
    model = known.config["model_cfg"]
    dim, activation = model["embed_dim"], model.get("quick_gelu", False)
    try:
        found = image_tower(arch, model["vision_cfg"], dim, activation)
        if with_text:
            found |= text_tower(arch, known.config, dim, activation, state)
    except InputError:
        raise
    except Exception as error:  # a configuration of another release, or dimensions that do not go together
        raise InputError(
            f"--arch {arch}: open_clip {open_clip.__version__} cannot build it: {str(error).splitlines()[0]}"
        ) from None
    return Towers(
        **found,
        embed_dim=dim,
        logit_scale=float(model.get("init_logit_scale", LOGIT_SCALE)),
        logit_bias=model.get("init_logit_bias"),
    )


def linear(matrix: torch.Tensor) -> nn.Linear:
    """`x @ matrix` as a layer."""
    layer = nn.Linear(*matrix.shape, bias=False)
    layer.weight.data = matrix.data.T.contiguous()
    return layer


def image_tower(arch: str, config: dict, dim: int, quick_gelu: bool) -> dict:
    visual = builders._build_vision_tower(dim, {**config, "timm_model_pretrained": False}, quick_gelu)
    if hasattr(visual, "trunk"):  # timm's
        layer = next((one for one in visual.head.modules() if isinstance(one, nn.Linear)), None)
        return {
            "image": visual.trunk,
            "width": layer.in_features if layer else dim,
            "image_projection": visual.head if layer else nn.Identity(),
            "resize": resize_timm(arch, visual.trunk),
        }
    if hasattr(visual, "attnpool"):  # OpenAI's ResNet: the projection is a part of its attention
        visual.set_grad_checkpointing = None  # it would do nothing

        def refuse(size):
            raise InputError(f"--image-size {size}: --arch {arch} takes images of {visual.image_size} pixels alone")

        return {"image": visual, "width": dim, "image_projection": nn.Identity(), "resize": refuse}
    projection, visual.proj, visual.output_tokens = linear(visual.proj), None, False
    width = projection.in_features
    return {"image": visual, "width": width, "image_projection": projection, "resize": resize_vit(arch, visual)}


def resize_timm(arch: str, trunk: nn.Module):
    def resize(size: int) -> None:
        if hasattr(trunk, "set_input_size"):  # a network of convolutions takes any size
            try:
                trunk.set_input_size(img_size=size)
            except (AssertionError, ValueError, TypeError, RuntimeError) as error:
                raise InputError(f"--image-size {size}: --arch {arch} does not take it ({error})") from None

    return resize


def resize_vit(arch: str, visual: nn.Module):
    def resize(size: int) -> None:
        patch = visual.patch_size[0]
        if size % patch:
            raise InputError(f"--image-size {size}: --arch {arch} takes multiples of {patch} pixels")
        visual.image_size, visual.grid_size = (size, size), (size // patch, size // patch)
        state = {"visual.positional_embedding": visual.positional_embedding.data}
        builders.resize_pos_embed(state, SimpleNamespace(visual=visual))
        trained = visual.positional_embedding.requires_grad
        visual.positional_embedding = nn.Parameter(state["visual.positional_embedding"], requires_grad=trained)

    return resize


class NativeText(nn.Module):
    """open_clip's own text transformer without its projection, (B, T) ids -> (B, width) at the token that it pools.

    A causal one takes captions of any length: what comes after the end token reaches no token before it.
    """

    def __init__(self, text: nn.Module):
        super().__init__()
        self.token_embedding, self.positional_embedding = text.token_embedding, text.positional_embedding
        self.transformer, self.ln_final = text.transformer, text.ln_final
        self.pool_type, self.eos_id = text.pool_type, text.eos_id
        self.register_buffer("attn_mask", text.attn_mask, persistent=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        length = input_ids.shape[1]
        tokens = self.token_embedding(input_ids) + self.positional_embedding[:length]
        mask = None if self.attn_mask is None else self.attn_mask[:length, :length]
        tokens = self.ln_final(self.transformer(tokens, attn_mask=mask))
        return builders.text_global_pool(tokens, input_ids, self.pool_type, self.eos_id)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.transformer.grad_checkpointing = enable


def text_tower(arch: str, config: dict, dim: int, quick_gelu: bool, state: dict | None) -> dict:
    text = config["model_cfg"]["text_cfg"]
    if not text.get("hf_model_name"):
        tower = builders._build_text_tower(dim, text, quick_gelu)
        projection = tower.text_projection
        if not isinstance(projection, nn.Linear):
            projection = nn.Identity() if projection is None else linear(projection)
        return {
            "text": NativeText(tower),
            "text_pooling": "own",
            "vocab_size": tower.vocab_size,
            "positions": tower.context_length,
            "text_projection": projection,
        }
    encoder = config["hf_config"] or bert_config(state or {})
    if encoder is None:
        raise InputError(
            f"--arch {arch}: no configuration of its text model {text['hf_model_name']}: put its config.json into the "
            "model's folder"
        )
    with tempfile.TemporaryDirectory() as folder:  # open_clip asks the hub for a name, and takes a folder as it is
        plain = {key: value for key, value in encoder.items() if key not in ("dtype", "torch_dtype")}
        (Path(folder) / "config.json").write_text(json.dumps(plain), encoding="utf-8")
        text = {**text, "hf_model_name": folder, "hf_model_pretrained": False}
        tower = builders._build_text_tower(dim, text)
    settings, positions = tower.config, getattr(tower.config, "max_position_embeddings", None)
    if settings.model_type in ("roberta", "xlm-roberta"):  # their first positions are for padding
        positions -= settings.pad_token_id + 1
    return {
        "text": tower.transformer,
        "text_pooling": POOLERS[text.get("hf_pooler_type", "mean_pooler")],
        "vocab_size": settings.vocab_size,
        "positions": positions,
        "text_projection": tower.proj,
    }


def bert_config(state: dict) -> dict | None:
    """The configuration of a BERT with these weights, its heads 64 wide as in all of BERT's published sizes; None if
    they are another's. Where neither folder nor hub has a configuration, as of BiomedBERT without a network."""
    shapes = {
        checkpoints.canonical(key): value.shape for key, value in state.items() if key.startswith("text_encoder.")
    }
    words, positions, kinds, inner = (
        shapes.get(f"text_encoder.{name}.weight")
        for name in (
            *(f"embeddings.{one}_embeddings" for one in ("word", "position", "token_type")),
            "encoder.layer.0.mlp.fc1",
        )
    )
    if None in (words, positions, kinds, inner) or kinds[0] != 2 or words[1] % 64:  # RoBERTa has one kind
        return None
    layers = {found[1] for key in shapes if (found := re.match(r"text_encoder\.encoder\.layer\.(\d+)\.", key))}
    config = {
        "model_type": "bert", "vocab_size": words[0], "hidden_size": words[1], "num_hidden_layers": len(layers),
        "num_attention_heads": words[1] // 64, "intermediate_size": inner[0], "max_position_embeddings": positions[0],
    }  # fmt: skip
    logger.info(f"text tower: a BERT of the weights' own dimensions, {len(layers)} layers of {words[1]}")
    return config
