"""From pictures to batches, in the loader's workers: draw the parameters of every view, and cut its crop.

All random numbers of a sample come from one generator seeded with (seed, epoch, sample), so that a batch is the same on
any number of workers and ranks. The parameters of colour, blur and flip are sent along; augment.py applies them on the
device.
"""

import math

import cv2
import numpy as np
import torch
from PIL import Image

from data.images import Picture
from options import OBJECTIVES

# Columns of a view's parameters: the crop in pixels of the image file, then what augment.py applies. An operation that
# is left out has its neutral value. Four columns from ORDER on hold the order of the four operations of ColorJitter.
LEFT, TOP, WIDTH, HEIGHT = range(4)
BRIGHTNESS, CONTRAST, SATURATION, HUE, ORDER = range(4, 9)
GRAY, SIGMA, FLIP = range(ORDER + 4, ORDER + 7)
N_PARAMS = FLIP + 1
CLIP_SCALE, SSL_SCALE = (0.5, 1.0), (0.08, 1.0)  # a crop's share of the area, as in SLIP's main.py and datasets.py


def draw_crop(rng: np.random.Generator, width: int, height: int, scale) -> tuple[int, int, int, int]:
    """Draw the box (left, top, width, height) of torchvision's RandomResizedCrop: ratio 3/4 to 4/3, ten tries."""
    area = width * height
    for _ in range(10):
        target = area * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    if width / height < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif width / height > 4 / 3:
        w, h = round(height * (4 / 3)), height
    else:
        w, h = width, height
    return (width - w) // 2, (height - h) // 2, w, h


def draw_view(rng: np.random.Generator, width: int, height: int, scale, ssl: bool) -> np.ndarray:
    """Draw a view's parameters (N_PARAMS,): a crop, and with `ssl` the rest of SLIP's SimCLR views.

    ColorJitter(.4, .4, .4, .1) at p=.8, grayscale at p=.2, blur of sigma 0.1 to 2 at p=.5, horizontal flip at p=.5.
    """
    row = np.zeros(N_PARAMS, np.float32)
    row[LEFT : HEIGHT + 1] = draw_crop(rng, width, height, scale)
    row[BRIGHTNESS : SATURATION + 1] = 1
    row[ORDER : ORDER + 4] = range(4)
    if ssl:
        if rng.random() < 0.8:
            row[BRIGHTNESS : SATURATION + 1] = rng.uniform(0.6, 1.4, 3)
            row[HUE] = rng.uniform(-0.1, 0.1)
            row[ORDER : ORDER + 4] = rng.permutation(4)
        row[GRAY] = rng.random() < 0.2
        row[SIGMA] = rng.uniform(0.1, 2.0) if rng.random() < 0.5 else 0
        row[FLIP] = rng.random() < 0.5
    return row


def halvings(picture: Picture, size: int) -> Picture:
    """Add levels, each half as large as the last, while both sides are at least twice `size`."""
    levels, scales = list(picture.levels), list(picture.scales)
    while min(levels[-1].shape[:2]) >= 2 * size:
        height, width = (side // 2 for side in levels[-1].shape[:2])
        even = levels[-1][: 2 * height, : 2 * width]  # OpenCV has a fast way for means of exactly 2 x 2 pixels
        levels.append(cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA))
        scales.append((scales[-1][0] / 2, scales[-1][1] / 2))
    return picture._replace(levels=levels, scales=scales)


def crop(picture: Picture, row: np.ndarray, size: int, out: np.ndarray) -> None:
    """Cut a view's box out of `picture` and resize it into `out`, (size, size) or (size, size, 3) uint8.

    It is sampled bilinearly from the smallest level in which both sides of the box have `size` pixels or more, as a
    texture is from its mipmaps (Williams, SIGGRAPH 1983).
    """
    left, top, width, height = row[LEFT : HEIGHT + 1].tolist()
    for (x, y), level in zip(reversed(picture.scales), reversed(picture.levels), strict=True):  # noqa: B007
        if min(width * x, height * y) >= size:
            break
    x_step, y_step = width * x / size, height * y / size
    matrix = np.array([[x_step, 0, left * x + (x_step - 1) / 2], [0, y_step, top * y + (y_step - 1) / 2]])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cv2.warpAffine(level, matrix, (size, size), out, flags=how, borderMode=cv2.BORDER_REPLICATE)


def whole(picture: Picture, size: int, fit: str) -> np.ndarray:
    """The view for evaluation, (size, size) or (size, size, 3) uint8, resized with antialiasing, bilinearly by default.

    `fit` "squash": the whole image, its sides changed to `size`. "center": the shorter side is brought to `size`, and
    the middle is cut out. "center256": the same after the shorter side is brought to size * 8/7 (224: 256), as in
    SLIP's linear probe. "shortest bicubic", "squash bilinear" and so on are open_clip's modes, see `published_view`.
    """
    if " " in fit:
        return published_view(picture, size, *fit.split())
    short = round(size * 8 / 7) if fit == "center256" else size
    level = next((one for one in reversed(picture.levels) if min(one.shape[:2]) >= short), picture.levels[0])
    image = Image.fromarray(level)
    if fit == "squash":
        return np.asarray(image.resize((size, size), Image.BILINEAR))
    scale = short / min(picture.width, picture.height)
    image = image.resize([max(short, round(side * scale)) for side in (picture.width, picture.height)], Image.BILINEAR)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def published_view(
    picture: Picture, size: int, mode: str, interpolation: str, fill: str = "0", share: str = "1"
) -> np.ndarray:
    """The view for evaluation that a published model's configuration asks for, to the pixel.

    `mode` "shortest": the shorter side is brought to `size`, and the middle is cut out (open_clip, timm); "middle": the
    same, the middle rounded as transformers does; "squash": both sides are; "longest": the longer side is, and what is
    left of the square has the gray level `fill`. With a `share` all this is done at `size` / `share`, and the middle is
    cut out.
    """
    how = Image.BILINEAR if interpolation == "bilinear" else Image.BICUBIC
    longest, target = mode == "longest", math.floor(size / float(share) + 1e-6)
    side = max if longest else min  # the side that is to have `target` pixels
    level = next((one for one in reversed(picture.levels) if side(one.shape[:2]) >= target), picture.levels[0])
    image, sides = Image.fromarray(level), (picture.width, picture.height)
    if longest:
        ratio = max(sides) / target
        image = image.resize([max(1, round(one / ratio)) for one in sides], how)
        square = Image.new(image.mode, (target, target), int(fill) if image.mode == "L" else (int(fill),) * 3)
        square.paste(image, ((target - image.width) // 2, (target - image.height) // 2))
        image = square
    else:
        image = image.resize(
            [target] * 2 if mode == "squash" else [int(target * one / min(sides)) for one in sides], how
        )
    left, top = ((int if mode == "middle" else round)((one - size) / 2) for one in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def pack(pictures, n: int, views: int, size: int, fill) -> dict[str, torch.Tensor]:
    """V views each of n pictures -> `gray` (n1, V, 1, S, S), `colour` (n3, V, 3, S, S), `order` (n,); n1 + n3 = n.

    Radiographs are nearly all gray, and gray pictures are sent to the device as one plane. `order` puts the rows of
    torch.cat([gray, colour]) back in the order of the pictures. `fill(picture, i, v, out)` is called to write view v of
    the i-th picture into `out`, (S, S) or (S, S, 3) uint8; `pictures` is iterated over once.
    """
    # Memory that is never written to takes no room.
    arrays = [np.empty((n, views, size, size, *more), np.uint8) for more in ((), (3,))]
    places = [], []
    for i, picture in enumerate(pictures):
        coloured = picture.levels[0].ndim == 3
        for view in range(views):
            fill(picture, i, view, arrays[coloured][len(places[coloured]), view])
        places[coloured].append(i)
    gray, colour = (array[: len(rows)] for array, rows in zip(arrays, places, strict=True))
    return {
        "gray": torch.from_numpy(gray[:, :, None]),
        "colour": torch.from_numpy(np.ascontiguousarray(colour.transpose(0, 1, 4, 2, 3))),
        "order": torch.from_numpy(np.argsort(places[0] + places[1])),
    }


class TrainViews(torch.utils.data.Dataset):
    """The training batches of an objective: (epoch, sample) pairs -> packed crops, parameters and token ids."""

    def __init__(self, pictures, tokens, objective: str, image_size: int, seed: int):
        self.pictures, self.tokens, self.image_size, self.seed = pictures, tokens, image_size, seed
        needs = OBJECTIVES[objective]
        # (scale, ssl) of each view, see `draw_view`
        self.kinds = ((CLIP_SCALE, False),) * needs.text + ((SSL_SCALE, True),) * 2 * needs.views

    def draw(self, epoch: int, i: int) -> tuple[Picture, np.ndarray]:
        """-> the picture and its views' parameters (V, N_PARAMS); the CLIP view first, then SimCLR's two."""
        picture = halvings(self.pictures[i], self.image_size)
        rng = np.random.default_rng((self.seed, epoch, i))
        rows = [draw_view(rng, picture.width, picture.height, *kind) for kind in self.kinds]
        return picture, np.stack(rows)

    def __getitems__(self, keys) -> dict[str, torch.Tensor]:
        rows = []

        def pictures():
            for key in keys:
                picture, drawn = self.draw(*key)
                rows.append(drawn)
                yield picture

        def fill(picture, i, view, out):
            crop(picture, rows[i][view], self.image_size, out)

        batch = {
            **pack(pictures(), len(keys), len(self.kinds), self.image_size, fill),
            "params": torch.from_numpy(np.stack(rows)),
            "sample": torch.tensor([i for _, i in keys]),
        }
        if self.tokens is not None:
            batch |= self.tokens.batch([i for _, i in keys])
        return batch


class WholeImages(torch.utils.data.Dataset):
    """The batches of an evaluation: indices -> one view of each picture, see `whole`, and the captions' token ids."""

    def __init__(self, pictures, tokens, image_size: int, fit: str):
        self.pictures, self.tokens, self.image_size, self.fit = pictures, tokens, image_size, fit

    def __getitems__(self, indices) -> dict[str, torch.Tensor]:
        def fill(picture, i, view, out):
            out[:] = whole(picture, self.image_size, self.fit)

        batch = pack((self.pictures[i] for i in indices), len(indices), 1, self.image_size, fill)
        if self.tokens is not None:
            batch |= self.tokens.batch(indices)
        return batch
