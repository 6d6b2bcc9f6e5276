"""From pictures to batches: crop every view, and draw every parameter of every view in the worker.

All randomness of a sample comes from one generator of (seed, epoch, sample), so a batch is the same on any number of
workers and ranks. Colour, blur and flips are left to augment.py, which applies the parameters sent along.
"""

import math

import cv2
import numpy as np
import torch
from PIL import Image

from data.images import Picture
from options import OBJECTIVES

# Columns of a view's parameters: the crop in pixels of the image, then augment.py's. An operation that is not
# applied has its neutral value. `ORDER` starts four columns, the order of the jitter's four operations.
LEFT, TOP, WIDTH, HEIGHT, BRIGHTNESS, CONTRAST, SATURATION, HUE, ORDER, GRAY, SIGMA, FLIP = (*range(9), 12, 13, 14)
N_PARAMS = 15
CLIP_SCALE, SSL_SCALE = (0.5, 1.0), (0.08, 1.0)  # area of the crop, SLIP's main.py and datasets.py

cv2.setNumThreads(0)  # the loader's processes are the threads


def draw_crop(rng: np.random.Generator, width: int, height: int, scale) -> tuple[int, int, int, int]:
    """RandomResizedCrop's box (left, top, width, height), as torchvision draws it: ratio 3/4 to 4/3, ten tries."""
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
    """One view's parameters (N_PARAMS,). SLIP's: jitter (.4, .4, .4, .1) at p=.8, gray .2, blur .5, flip .5."""
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
    """Add levels of half the size until no crop that fills `size` needs to shrink by two."""
    levels, scales = list(picture.levels), list(picture.scales)
    while min(levels[-1].shape[:2]) >= 2 * size:
        height, width = (side // 2 for side in levels[-1].shape[:2])
        even = levels[-1][: 2 * height, : 2 * width]  # the mean of 2 x 2 pixels is then fast
        levels.append(cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA))
        scales.append((scales[-1][0] / 2, scales[-1][1] / 2))
    return picture._replace(levels=levels, scales=scales)


def crop(picture: Picture, row: np.ndarray, size: int, out: np.ndarray) -> None:
    """Cut a view's box and resize it into `out`, (size, size) or (size, size, 3) uint8.

    Bilinear from the smallest level in which no side of the box is below `size`: averaged down first, then sampled,
    as a texture is from its mipmaps (Williams, SIGGRAPH 1983).
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
    """The view for evaluation, (size, size) or (size, size, 3) uint8, bilinear and antialiased: "squash" to the square;
    "center", the middle of the shorter side at `size`; "center256", at size * 8/7 as SLIP's linear probe."""
    short = round(size * 8 / 7) if fit == "center256" else size
    level = next((one for one in reversed(picture.levels) if min(one.shape[:2]) >= short), picture.levels[0])
    image = Image.fromarray(level)
    if fit == "squash":
        return np.asarray(image.resize((size, size), Image.BILINEAR))
    scale = short / min(picture.width, picture.height)
    image = image.resize([max(short, round(side * scale)) for side in (picture.width, picture.height)], Image.BILINEAR)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def pack(pictures, n: int, views: int, size: int, fill) -> dict[str, torch.Tensor]:
    """The views of n pictures, taken one at a time -> `gray` (n1, V, 1, S, S), `colour` (n3, V, 3, S, S), `order` (n,).

    `fill(picture, i, v, out)` writes view v of the i-th into `out`, (S, S) or (S, S, 3) uint8. Radiographs are nearly
    all gray: they travel as one plane. `order` puts torch.cat([gray, colour]) back in order.
    """
    arrays = [
        np.empty((n, views, size, size, *more), np.uint8) for more in ((), (3,))
    ]  # what is not used costs nothing
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
        self.scales = (CLIP_SCALE,) * needs.text + (SSL_SCALE,) * 2 * needs.views

    def draw(self, epoch: int, i: int) -> tuple[Picture, np.ndarray]:
        """-> the picture and its views' parameters (V, N_PARAMS); the CLIP view first, then SimCLR's two."""
        picture = halvings(self.pictures[i], self.image_size)
        rng = np.random.default_rng((self.seed, epoch, i))
        rows = [draw_view(rng, picture.width, picture.height, scale, ssl=scale is SSL_SCALE) for scale in self.scales]
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
            **pack(pictures(), len(keys), len(self.scales), self.image_size, fill),
            "params": torch.from_numpy(np.stack(rows)),
            "sample": torch.tensor([i for _, i in keys]),
        }
        if self.tokens is not None:
            batch |= self.tokens.batch([i for _, i in keys])
        return batch


class WholeImages(torch.utils.data.Dataset):
    """Batches for evaluation: one whole or centred view of each picture, and the captions' tokens."""

    def __init__(self, pictures, tokens, image_size: int, fit: str):
        self.pictures, self.tokens, self.image_size, self.fit = pictures, tokens, image_size, fit

    def __getitems__(self, indices) -> dict[str, torch.Tensor]:
        def fill(picture, i, view, out):
            out[:] = whole(picture, self.image_size, self.fit)

        batch = pack((self.pictures[i] for i in indices), len(indices), 1, self.image_size, fill)
        if self.tokens is not None:
            batch |= self.tokens.batch(indices)
        return batch
