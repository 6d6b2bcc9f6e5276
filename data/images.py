"""Image files as pixels: decoded once, gray in one plane, what cannot be read named."""

import itertools
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from utils import InputError

warnings.filterwarnings("ignore", module="PIL")  # for all threads: what is wrong with a file is said in its own line


class Picture(NamedTuple):
    """An image: its file's size in pixels, and (h, w) or (h, w, 3) uint8 at one size or more, the largest first.

    `scales` are the levels' pixels a pixel of the file, (across, down).
    """

    width: int
    height: int
    levels: list[np.ndarray]
    scales: list[tuple[float, float]]


def as_picture(image: Image.Image) -> Picture:
    return Picture(*image.size, [np.asarray(image)], [(1.0, 1.0)])


class Files:
    """The pictures of n files. A JPEG that was found to be gray is decoded as such from then on, in every worker."""

    def __init__(self, path: Callable[[int], str], n: int):
        self.path, self.n = path, n
        self.gray = torch.zeros(n, dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Picture:
        """Raises InputError naming the file."""
        image = read_image(self.path(i), bool(self.gray[i]))
        self.gray[i] = image.mode == "L"
        return as_picture(image)


def read_image(path: str, gray: bool = False) -> Image.Image:
    """Decode a file to mode "L", or to "RGB" if its channels differ. Raises InputError naming the file.

    `gray` says that it is known to be gray: a JPEG's colour is then not decoded.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
        raise InputError(f"{path}: not a file: remove it, or pass --skip-broken")
    try:
        with Image.open(path) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:  # Pillow warns here, and refuses twice as many
                raise Image.DecompressionBombError
            if gray:
                image.draft("L", image.size)
            image.load()
            return to_gray_or_rgb(image)
    except FileNotFoundError:
        raise InputError(f"{path}: the image is not there any more") from None
    except Image.DecompressionBombError:
        raise InputError(f"{path}: more than {Image.MAX_IMAGE_PIXELS:,} pixels: make it smaller or remove it") from None
    except (OSError, SyntaxError, ValueError, EOFError, UnidentifiedImageError, MemoryError) as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        raise InputError(
            f"{path}: the image cannot be read ({reason}): download it again or remove it, or pass --skip-broken"
        ) from None


def read_small(path: str, size: int) -> Image.Image:
    """Decode a file to mode "L", its sides no smaller than `size` where the format can be decoded at a fraction."""
    try:
        with Image.open(path) as image:
            image.draft("L", (size, size))
            return to_gray_or_rgb(image).convert("L")
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError):
        return read_image(path).convert("L")  # or its error, in words


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
        return image if image.mode == "L" else image.convert("L")
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

    found, paths = {}, iter(paths)
    with ThreadPoolExecutor(16) as pool:
        while some := list(dict.fromkeys(itertools.islice(paths, 65_536))):  # map would hold every path
            found |= {path: why for path, why in zip(some, pool.map(reason, some), strict=True) if why}
    return found
