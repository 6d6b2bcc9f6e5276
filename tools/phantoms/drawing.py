"""Shapes on an "L" canvas, and from a canvas to grey levels."""

import numpy as np
from PIL import Image, ImageFilter

from tools.phantoms.noise import texture


def oval(draw, cx, cy, rx, ry, fill):
    """Filled ellipse; centre and radii as fractions of the canvas."""
    w, h = draw.im.size
    draw.ellipse(((cx - rx) * w, (cy - ry) * h, (cx + rx) * w, (cy + ry) * h), fill=fill)


def polar(centre, r, angle):
    """Polygon corners [(x, y), ...] at distances r (px) from the centre in directions angle (rad)."""
    return list(zip(centre[0] + r * np.cos(angle), centre[1] + r * np.sin(angle), strict=True))


def resized(a, h, w):
    """Array [h0, w0] resampled to [h, w] (bicubic)."""
    return np.asarray(Image.fromarray(np.asarray(a, np.float32)).resize((w, h), Image.Resampling.BICUBIC))


def as_uint8(a):
    return (np.clip(a, 0, 1) * 255 + 0.5).astype(np.uint8)


def develop(canvas, h, w, blur, rng):
    """Picture, uint8 [h, w], of a canvas of half its size: enlarged, blurred (px of the canvas), with grain."""
    a = resized(np.asarray(canvas.filter(ImageFilter.GaussianBlur(blur)), np.float32) / 255, h, w)
    a = a * (1 + 0.08 * texture(h, w, 1.6, rng)) + 0.006 * texture(h, w, 0.9, rng)
    return as_uint8(a * rng.uniform(0.85, 1.1))
