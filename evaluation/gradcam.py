"""Where an encoder looks: Grad-CAM (Selvaraju et al., ICCV 2017) on its last stage, through a linear probe.

The library grad-cam (1.5.7) gives the same maps, to 1e-7, where it gives any. It is not used: it fails on an encoder
whose weights are frozen and on a stage that returns a tuple (transformers' Swin), stretches each map from its least to
its greatest value, so that a map of nothing looks like one of something, and needs ttach, which nothing else does.
"""

import math

import torch
from torch import nn

from utils import InputError


def last_stage(encoder: nn.Module) -> nn.Module:
    """The module whose output is the last map before pooling: of a ResNet its fourth layer, of a Swin its fourth stage.

    Of a ViT that pools its class token, which is all that its last block hands on, it is the first norm of that block,
    whose tokens the class token attends to. Raises InputError for an encoder where it is not known.
    """
    if getattr(encoder, "global_pool", None) == "token" and hasattr(encoder, "blocks"):  # timm's ViT
        return encoder.blocks[-1].norm1
    if getattr(encoder, "feature_info", None):  # timm's: where its stages end
        return encoder.get_submodule(encoder.feature_info[-1]["module"])
    if hasattr(encoder, "bn1") and hasattr(encoder, "conv_head"):  # Mammo-CLIP's EfficientNet
        return encoder.bn1
    layers = getattr(getattr(encoder, "encoder", None), "layers", None)
    if layers and type(layers[-1]).__name__ == "SwinStage":  # transformers'
        return layers[-1]
    raise InputError(f"no Grad-CAM: {type(encoder).__name__} has no last stage of which the map is known here")


def as_maps(output: torch.Tensor, encoder: nn.Module) -> torch.Tensor:
    """A stage's output -> (B, C, h, w): (B, C, h, w), (B, h, w, C) of timm's Swin, or (B, T, C) tokens in rows."""
    if output.ndim == 4:
        return output.permute(0, 3, 1, 2) if getattr(encoder, "output_fmt", "NCHW") == "NHWC" else output
    first = getattr(encoder, "num_prefix_tokens", 0)  # class token and registers
    side = math.isqrt(output.shape[1] - first)
    if output.ndim != 3 or side * side != output.shape[1] - first:
        raise InputError(f"no Grad-CAM: the last stage of {type(encoder).__name__} gives {tuple(output.shape)}, no map")
    return output[:, first:].transpose(1, 2).unflatten(2, (side, side))


def grad_cam(model, scores, pixels: torch.Tensor, targets: torch.Tensor, projected: bool) -> torch.Tensor:
    """The maps (B, T, h, w) of B images for T classes each: the channels of the last stage, each weighted with the mean
    of the gradient of the class's score over the map, summed; what is below 0 is 0. Not scaled.

    `model` is a models.MedSLIP with frozen weights in eval mode, pixels (B, 3, H, W) are normalised, targets (B, T) are
    numbers of classes, and scores (B, D) features, `projected` or not, -> (B, K) is a probe's function before its
    softmax. A class's score is counted from the mean over all classes: what is added to all of them changes no
    probability. A class whose score is not finite, for want of training cases, has a map of 0.

    Raises InputError if the encoder has no map, or no score depends on it.
    """
    encoder, kept = model.image_encoder, []

    def keep(module, inputs, output):  # the graph begins here: nothing before it is needed
        first, *others = output if isinstance(output, tuple) else (output,)
        kept.append(first.detach().requires_grad_())
        first = kept[0].clone()  # what follows may change it in place
        return (first, *others) if isinstance(output, tuple) else first

    hook = last_stage(encoder).register_forward_hook(keep)
    try:
        with torch.enable_grad():
            found = scores(model.encode_image(pixels, projected))
    finally:
        hook.remove()
    scored = found.isfinite()
    mean = found.where(scored, 0).sum(dim=1, keepdim=True) / scored.sum(dim=1, keepdim=True)
    found = (found - mean).where(scored, 0)
    (output,) = kept
    maps, depends = [], False
    for wanted in targets.T:
        score = found.gather(1, wanted[:, None]).sum()  # an image's score depends on its own map alone
        (gradient,) = torch.autograd.grad(score, output, retain_graph=True)
        gradient, activation = as_maps(gradient, encoder), as_maps(output.detach(), encoder)
        depends = depends or bool(gradient.any())
        maps.append((gradient.mean(dim=(2, 3), keepdim=True) * activation).sum(dim=1).relu())
    if not depends:
        raise InputError(f"no Grad-CAM: what {type(encoder).__name__} pools does not depend on its last map")
    return torch.stack(maps, dim=1)
