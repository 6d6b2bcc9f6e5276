"""Applies the parameters that views.py drew to a batch of views, on the device. Nothing is drawn or read here.

The operations are torchvision's (the four of ColorJitter, grayscale, Gaussian blur, flip), in SLIP's order. Each is
applied to the whole batch at once, with a factor for each sample. The columns of the parameters are those of views.py.
"""

import functools

import torch
import torch.nn.functional as F

from data.views import BRIGHTNESS, CONTRAST, FLIP, GRAY, HUE, ORDER, SATURATION, SIGMA

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's and torchvision's grayscale
BLUR_RADIUS = 6  # three standard deviations of the widest blur, sigma 2


def to_gray(x: torch.Tensor) -> torch.Tensor:
    """(n, 1 or 3, H, W) -> (n, 1, H, W)."""
    if x.shape[1] == 1:
        return x
    return LUMA[0] * x[:, :1] + LUMA[1] * x[:, 1:2] + LUMA[2] * x[:, 2:]


def blend(x: torch.Tensor, other: torch.Tensor | float, factor: torch.Tensor) -> torch.Tensor:
    """factor * x + (1 - factor) * other, clamped to [0, 1]."""
    return (factor * x + (1 - factor) * other).clamp(0, 1)


def shift_hue(x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Shift the hue (of HSV) of (n, 3, H, W) by `shift` (n, 1, 1); 1 is a full turn."""
    red, green, blue = x.unbind(1)
    value, low = x.amax(1), x.amin(1)
    chroma = value - low
    safe = torch.where(chroma == 0, 1, chroma)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = hue + 6 * shift
    channels = []
    for offset in (5, 3, 1):
        k = (hue + offset) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)


def jitter(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """ColorJitter, in each sample's own order of its four operations.

    At each of the four places all operations are applied to the whole batch: to each sample the one that stands there
    with its own factor, and the other three with factors that change nothing.
    """
    column = params[:, :, None, None].unbind(1)
    for place in range(4):
        now = column[ORDER + place][:, None]
        x = blend(x, 0.0, torch.where(now == 0, column[BRIGHTNESS][:, None], 1))
        x = blend(x, to_gray(x).mean((1, 2, 3), keepdim=True), torch.where(now == 1, column[CONTRAST][:, None], 1))
        if x.shape[1] == 3:  # gray has no saturation and no hue
            x = blend(x, to_gray(x), torch.where(now == 2, column[SATURATION][:, None], 1))
            x = shift_hue(x, torch.where(now[:, 0] == 3, column[HUE], 0))
    return x


def blur(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian blur of (n, C, H, W), each sample with its own `sigma` (n,), in pixels; 0 leaves it as it is."""
    n, channels, height, width = x.shape
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=x.device, dtype=x.dtype)
    # A sigma of 0.05 is so narrow that the kernel is 1 in the middle and 0 beside it.
    kernel = torch.softmax(-0.5 * (offsets / sigma.clamp(min=0.05)[:, None]) ** 2, dim=1)
    kernel = kernel.repeat_interleave(channels, dim=0)[:, None, None, :]
    x = x.reshape(1, n * channels, height, width)
    x = F.pad(x, (BLUR_RADIUS,) * 4, mode="reflect")
    x = F.conv2d(x, kernel, groups=n * channels)
    x = F.conv2d(x, kernel.transpose(2, 3), groups=n * channels)
    return x.reshape(n, channels, height, width)


def apply(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """SimCLR's operations on (n, 1 or 3, H, W) floats in [0, 1] with parameters (n, N_PARAMS)."""
    x = jitter(x, params)
    if x.shape[1] == 3:
        x = torch.where(params[:, GRAY, None, None, None] > 0, to_gray(x), x)
    x = blur(x, params[:, SIGMA])
    return torch.where(params[:, FLIP, None, None, None] > 0, x.flip(-1), x)


@functools.cache
def channels(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """`values` as (3, 1, 1) on the device, copied there once: copying them at each step would wait for the device."""
    return torch.tensor(values, device=device)[:, None, None]


def make_views(batch: dict, mean, std, device: torch.device) -> list[torch.Tensor]:
    """A batch of views.pack -> its V views (n, 3, S, S), float and normalised, on `device`.

    If V is odd the first view is CLIP's: it is normalised, and no parameters are applied to it.
    """
    mean, std = (channels(tuple(values), device) for values in (mean, std))
    order = batch["order"].to(device, non_blocking=True)
    params = batch["params"].to(device, non_blocking=True).to(std) if "params" in batch else None
    groups = []
    seen = 0
    for name in ("gray", "colour"):
        pixels = batch[name].to(device, non_blocking=True).to(torch.get_default_dtype()) / 255
        rows = None if params is None else params[order.argsort()[seen : seen + len(pixels)]]
        seen += len(pixels)
        if len(pixels) == 0:
            continue
        first = pixels.shape[1] % 2
        if params is not None and pixels.shape[1] > first:
            augmented = apply(pixels[:, first:].flatten(0, 1), rows[:, first:].flatten(0, 1))
            pixels = torch.cat([pixels[:, :first], augmented.unflatten(0, (len(pixels), -1))], dim=1)
        groups.append([(view - mean) / std for view in pixels.unbind(1)])
    return [torch.cat(parts)[order] for parts in zip(*groups, strict=True)]
