"""timm's hub layout: the image tower in model.safetensors, its projection as the classifier, and a config.json."""

import copy
import re

import timm
import torch
from torch import nn

import checkpoints
from data.weights import SAFE
from utils import InputError, logger, one_line

SWIN = "swin_tiny_patch4_window7_224"  # timm's name of the network that medclip_vit is
SWIN_LAYERS = (  # what checkpoints.canonical calls a layer of transformers' Swin, and timm does
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.", ""),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
)


def write(encoder, folder):
    """See tools/export.py. The forward pass gives the projected embedding, and `forward_head(..., pre_logits=True)` the
    pooled feature."""
    layer, name = projection(encoder.model)
    tower, opened = image_tower(encoder)
    settings = getattr(tower, "_model_args", None)  # timm's factory keeps them, which towers/timm_folders.py goes round
    if settings is None:
        settings = (encoder.args.published or {}).get("config", {}).get("arguments", {})
    read_off = ("num_classes", "global_pool", "img_size", "in_chans")  # the model, by timm
    settings = {key: value for key, value in settings.items() if key not in read_off}
    names = {"": "image_encoder."}
    try:
        tower.reset_classifier(layer.out_features if layer else 0)
        if layer:
            head = next(one for one, module in tower.named_modules() if module is tower.get_classifier())
            put(layer, tower.get_submodule(head))
            names = {f"{head}.": f"image_projection.{name}", **names}
            if layer.bias is None:
                names = {f"{head}.bias": None, **names}
        timm.models.save_for_hf(
            tower, str(folder), model_args=settings, safe_serialization=True, data_config=view(encoder)
        )
        again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as error:  # timm raises many kinds
        raise InputError(f"--to timm: --arch {encoder.args.arch}: timm cannot hold it: {one_line(error)}") from None

    def read_back(given):
        features = again.forward_features(given["pixels"])
        return {"image": again(given["pixels"]), "pooled": again.forward_head(features, pre_logits=True)}

    # Without a text tower: as of an objective that trains none.
    return read_back, {"weights": SAFE, "names": names, "objective": "simclr", **opened}


def projection(model: nn.Module) -> tuple[nn.Linear | None, str]:
    """The image projection as one layer, None for none, and where it lies in model.image_projection.

    Raises InputError for a projection of more.
    """
    layers = {
        name: module
        for name, module in model.image_projection.named_modules()
        if not isinstance(module, (nn.Identity, nn.Dropout, nn.Sequential))
    }
    if not layers:
        return None, ""
    ((name, layer), *more) = layers.items()
    if more or not isinstance(layer, nn.Linear):
        raise InputError("--to timm: a classifier of timm's is one linear layer, and this image projection is more")
    return layer, f"{name}." if name else ""


def image_tower(encoder) -> tuple[nn.Module, dict]:
    """A copy of the image tower as a model of timm's, and the arguments of the run that do not go for it."""
    tower, arch, size = encoder.model.image_encoder, encoder.args.arch, encoder.args.image_size
    if type(tower).__module__.startswith("timm.models.") and getattr(tower, "pretrained_cfg", None):
        return copy.deepcopy(tower).to(memory_format=torch.contiguous_format), {}
    if arch != "medclip_vit":
        raise InputError(f"--to timm: the image tower of --arch {arch} is none of timm's: use onnx or torch")
    if size % 224:
        raise InputError(
            f"--to timm: --image-size {size}: timm's Swin pads its windows otherwise than medclip_vit does, so that "
            "only images of a multiple of 224 pixels give the same: use huggingface, onnx or torch"
        )
    again = timm.create_model(SWIN, img_size=size, num_classes=0)
    again.load_state_dict(swin_weights(tower.state_dict()))
    return again.eval(), {"arch": SWIN}


def swin_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of transformers' Swin by timm's names, which has queries, keys and values in one matrix, and the
    merging of patches at the start of a stage."""
    found, parts = {}, {}
    for key, value in state.items():
        key = checkpoints.canonical(key)
        for pattern, new in SWIN_LAYERS:
            key = re.sub(pattern, new, key)
        key = re.sub(r"^layers\.(\d+)\.downsample", lambda stage: f"layers.{int(stage[1]) + 1}.downsample", key)
        if part := re.search(r"\.[qkv]_proj\.", key):  # in this order
            parts.setdefault(key.replace(part[0], ".qkv."), []).append(value)
        elif not checkpoints.DROPPABLE.search(key):
            found[key] = value
    return found | {key: torch.cat(three) for key, three in parts.items()}


def put(layer: nn.Linear, head: nn.Linear) -> None:
    with torch.no_grad():
        head.weight.copy_(layer.weight)
        head.bias.zero_() if layer.bias is None else head.bias.copy_(layer.bias)


def view(encoder) -> dict:
    """What timm calls a data config: how an image is shown to the encoder, as near to its `fit` as timm comes."""
    mode, how, share = encoder.fit, "bilinear", 1.0
    if " " in mode:
        mode, how, *more = mode.split()
        share = float(more[1]) if len(more) > 1 else 1.0
    if mode == "center256":
        share = 0.875
    crop = {"squash": "squash", "longest": "border"}.get(mode, "center")
    if crop == "border":
        logger.warning("timm fills the border of an image with the mean, which this run did not")
    mean, std = encoder.mean_std
    size = (3, encoder.args.image_size, encoder.args.image_size)
    return {
        "input_size": size, "interpolation": how, "mean": mean, "std": std, "crop_pct": share, "crop_mode": crop,
    }  # fmt: skip
