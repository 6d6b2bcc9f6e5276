"""The page's pictures: what an encoder saw, and where it looked."""

import matplotlib
import numpy as np
import torch
from PIL import Image

from tools.pages import SIDE, data_uri

HEAT = matplotlib.colormaps["inferno"]
MOST_HEAT = 0.65  # how far the colour covers the picture where the map is greatest


def as_image(pixels: torch.Tensor, mean, std) -> Image.Image:
    """(3, H, W) on any device, normalised with `mean` and `std`, three each -> the picture."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    pixels = pixels.cpu() * std + mean
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def overlay(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """A map (h, w) from 0 to 1 over a picture, bilinearly enlarged to it: where it is 0 the picture is as it was."""
    heat = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(image.size, Image.BILINEAR))[..., None]
    blended = (
        np.asarray(image.convert("RGB")) * (1 - MOST_HEAT * heat) + 255 * MOST_HEAT * heat * HEAT(heat[..., 0])[..., :3]
    )
    return Image.fromarray(blended.round().astype(np.uint8))


def heat_scale() -> str:
    """The colours of `overlay` over a middle gray, from 0 to 1."""
    return data_uri(overlay(Image.new("RGB", (SIDE, 8), (128,) * 3), np.linspace(0, 1, SIDE)[None].repeat(8, axis=0)))
