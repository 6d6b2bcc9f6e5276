"""MedCLIP's ViT: a Swin-T."""

from torch import nn
from transformers import SwinConfig, SwinModel

from towers.parts import Pooled
from utils import InputError


class PooledSwin(Pooled, SwinModel):
    """Swin-T as microsoft/swin-tiny-patch4-window7-224: (B, 3, H, W) -> (B, 768), the mean over the last stage."""


def swin_encoder(arch: str, pretrained: bool, image_size: int) -> tuple[nn.Module, int]:
    """MedCLIP's ViT."""
    if pretrained:
        raise InputError(f"--pretrained published: there are none for {arch}: use medclip, none or a file")
    if image_size < 224:
        raise InputError(f"--image-size {image_size}: {arch}'s last stage has a window of 7 patches: 224 or more")
    config = SwinConfig(image_size=image_size)
    return PooledSwin(config), config.hidden_size
