"""From files to batches: decode once, crop every view, and draw every parameter of every view in the worker.

All randomness of a sample comes from one generator of (seed, epoch, sample), so a batch is the same on any number of
workers and ranks. Colour, blur and flips are left to augment.py, which applies the parameters sent along.
"""

import contextlib
import math
import os
import signal
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from utils import InputError

# Columns of a view's parameters: the crop in pixels of the image, then augment.py's. An operation that is not
# applied has its neutral value. `ORDER` starts four columns, the order of the jitter's four operations.
LEFT, TOP, WIDTH, HEIGHT, BRIGHTNESS, CONTRAST, SATURATION, HUE, ORDER, GRAY, SIGMA, FLIP = (*range(9), 12, 13, 14)
N_PARAMS = 15
CLIP_SCALE, SSL_SCALE = (0.5, 1.0), (0.08, 1.0)  # area of the crop, SLIP's main.py and datasets.py


def read_image(path: str) -> Image.Image:
    """Decode a file to mode "L", or to "RGB" if its channels differ. Raises InputError naming the file."""
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
        raise InputError(f"{path}: not a file: remove it, or pass --skip-broken")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return to_gray_or_rgb(image)
    except FileNotFoundError:
        raise InputError(f"{path}: the image is not there any more") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise InputError(f"{path}: more than {Image.MAX_IMAGE_PIXELS:,} pixels: make it smaller or remove it") from None
    except (OSError, SyntaxError, ValueError, EOFError, UnidentifiedImageError, MemoryError) as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        raise InputError(
            f"{path}: the image cannot be read ({reason}): download it again or remove it, or pass --skip-broken"
        ) from None


def to_gray_or_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow's -> "L" or "RGB"; 16 bits keep their high byte, transparency is laid on black."""
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I", "F"):
        pixels = np.asarray(image).astype(np.float32)
        if image.mode != "F" and pixels.max(initial=0) > 255:
            pixels = pixels / 257
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    if image.mode in ("L", "1"):
        return image.convert("L")
    image = image.convert("RGB")
    red, green, blue = image.split()
    pixels = np.asarray(green)
    same = np.array_equal(np.asarray(red), pixels) and np.array_equal(pixels, np.asarray(blue))
    return green if same else image


def looks_whole(path: str) -> bool:
    """Whether a JPEG or PNG file starts and ends as one; other formats are decoded."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            file.seek(-min(32, os.fstat(file.fileno()).st_size), os.SEEK_END)
            end = file.read()
    except OSError:
        return False
    if start[:3] == b"\xff\xd8\xff":
        return b"\xff\xd9" in end
    return start == b"\x89PNG\r\n\x1a\n" and b"IEND" in end


def unreadable(paths, decode: bool = False) -> dict[str, str]:
    """{path: reason} of the files that are cut short or no images, found by their ends; suspects are decoded.

    With `decode` every file is decoded, which also finds damage inside.
    """

    def reason(path):
        if not decode and looks_whole(path):
            return None
        try:
            read_image(path)
        except InputError as error:
            return str(error)
        return None

    paths = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(16) as pool:
        return {path: why for path, why in zip(paths, pool.map(reason, paths), strict=True) if why}


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


def crop(image: Image.Image, row: np.ndarray, size: int) -> np.ndarray:
    """Cut a view's box and resize it (bilinear, antialiased) -> (C, size, size) uint8."""
    left, top, width, height = (int(value) for value in row[LEFT : HEIGHT + 1])
    return planes(image.crop((left, top, left + width, top + height)).resize((size, size), Image.BILINEAR))


def whole(image: Image.Image, size: int, fit: str) -> np.ndarray:
    """The view for evaluation (C, size, size) uint8: "squash" to the square; "center", the middle of the shorter
    side at `size`; "center256", at size * 8/7 as SLIP's linear probe."""
    if fit == "squash":
        return planes(image.resize((size, size), Image.BILINEAR))
    short = round(size * 8 / 7) if fit == "center256" else size
    scale = short / min(image.size)
    image = image.resize([max(short, round(side * scale)) for side in image.size], Image.BILINEAR)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return planes(image.crop((left, top, left + size, top + size)))


def planes(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def pack(samples: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """n samples (V, 1 or 3, S, S) uint8 -> `gray` (n1, V, 1, S, S), `colour` (n3, V, 3, S, S) and `order` (n,).

    Radiographs are nearly all gray: they travel as one plane. `order` puts torch.cat([gray, colour]) back in order.
    """
    empty = np.empty((0, len(samples[0]), 0, *samples[0].shape[2:]), np.uint8)
    places = [[i for i, one in enumerate(samples) if one.shape[1] == count] for count in (1, 3)]
    gray, colour = (
        torch.from_numpy(
            np.stack([samples[i] for i in rows]) if rows else empty.reshape(0, len(samples[0]), c, *empty.shape[3:])
        )
        for rows, c in zip(places, (1, 3), strict=True)
    )
    return {"gray": gray, "colour": colour, "order": torch.from_numpy(np.argsort(places[0] + places[1]))}


class TrainViews(torch.utils.data.Dataset):
    """The training batches of an objective: (epoch, sample) pairs -> packed crops, parameters and token ids."""

    def __init__(self, pairs, tokens, objective: str, image_size: int, seed: int):
        self.pairs, self.tokens, self.image_size, self.seed = pairs, tokens, image_size, seed
        self.scales = {"clip": (CLIP_SCALE,), "simclr": (SSL_SCALE,) * 2}.get(
            objective, (CLIP_SCALE, *(SSL_SCALE,) * 2)
        )

    def sample(self, epoch: int, i: int) -> tuple[np.ndarray, np.ndarray]:
        """-> crops (V, C, S, S) uint8 and parameters (V, N_PARAMS); the CLIP view first, then SimCLR's two."""
        image = read_image(self.pairs.path(i))
        rng = np.random.default_rng((self.seed, epoch, i))
        rows = [draw_view(rng, *image.size, scale, ssl=scale is SSL_SCALE) for scale in self.scales]
        return np.stack([crop(image, row, self.image_size) for row in rows]), np.stack(rows)

    def __getitems__(self, keys) -> dict[str, torch.Tensor]:
        crops, rows = zip(*(self.sample(*key) for key in keys), strict=True)
        batch = {
            **pack(crops),
            "params": torch.from_numpy(np.stack(rows)),
            "sample": torch.tensor([i for _, i in keys]),
        }
        if self.tokens is not None:
            batch["input_ids"], batch["attention_mask"] = self.tokens.batch([i for _, i in keys])
        return batch


class WholeImages(torch.utils.data.Dataset):
    """Batches for evaluation: one uncropped or centred view of `read(i)`, and the captions' tokens if there are any."""

    def __init__(self, read, tokens, image_size: int, fit: str):
        self.read, self.tokens, self.image_size, self.fit = read, tokens, image_size, fit

    def __getitems__(self, indices) -> dict[str, torch.Tensor]:
        batch = pack([whole(self.read(i), self.image_size, self.fit)[None] for i in indices])
        if self.tokens is not None:
            batch["input_ids"], batch["attention_mask"] = self.tokens.batch(indices)
        return batch


class EpochBatches(torch.utils.data.Sampler):
    """The (epoch, sample) keys of each of this rank's batches, from one order of all samples for each (seed, epoch).

    Step t takes the same `batch_size * world * update_freq` samples on any number of ranks; the rest of an epoch's
    order is left out.
    """

    def __init__(self, total: int, batch_size: int, update_freq: int, rank: int, world: int, seed: int):
        self.total, self.batch_size, self.rank, self.seed = total, batch_size, rank, seed
        self.share = batch_size * update_freq
        self.global_batch = self.share * world
        self.epoch = 0
        self.first_step = 0  # of the epoch: where a resumed run goes on

    @property
    def steps(self) -> int:
        """Optimiser steps an epoch."""
        return self.total // self.global_batch

    def __len__(self) -> int:
        return (self.steps - self.first_step) * (self.share // self.batch_size)

    def __iter__(self):
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.total)
        for step in range(self.first_step, self.steps):
            start = step * self.global_batch + self.rank * self.share
            for first in range(start, start + self.share, self.batch_size):
                yield [(self.epoch, int(i)) for i in order[first : first + self.batch_size]]


def as_is(batch):
    """Collate function: batches come whole from `__getitems__`."""
    return batch


@contextlib.contextmanager
def loader(dataset, batches, workers: int, device: torch.device):
    """A DataLoader over a batch sampler (or a list of lists of indices), workers kept between epochs.

    A context manager, which ends the workers: they leave the signals that end a run to the process that started them.
    """
    made = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=as_is,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
    )
    try:
        yield made
    finally:
        iterator = made._iterator  # None without workers; there is no public way to end them
        if iterator is not None:
            iterator._shutdown_workers()
            for worker in iterator._workers:
                if worker.is_alive():
                    worker.kill()


def start_worker(number: int) -> None:
    """In a loader's process: ignore the signals of interrupt.py, and die with the process that started it."""
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(one, signal.SIG_IGN)
    if hasattr(torch.multiprocessing, "_prctl_pr_set_pdeathsig"):  # Linux
        torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)


def rank_batches(total: int, batch_size: int, rank: int, world: int) -> list[list[int]]:
    """Rank r's share of range(total) (every world-th, see utils.gather_rows), cut into batches."""
    share = list(range(rank, total, world))
    return [share[start : start + batch_size] for start in range(0, len(share), batch_size)]


def default_workers(world: int) -> int:
    """Loader processes for each device: this machine's cores shared out, 8 at most."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    return max(1, min(8, len(os.sched_getaffinity(0)) // local))
