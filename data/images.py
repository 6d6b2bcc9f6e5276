"""Decoding images: gray ones to one plane, and those that cannot be read to an error that names the file.

An image is named by its location, see locations.py; most are the path of a file.
"""

import itertools
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from data import locations
from utils import InputError, logger

SUFFIXES = tuple(".jpg .jpeg .png .tif .tiff .bmp .gif .webp .ppm .pgm .dcm .dicom".split())  # where folders are listed
DICOM = (".dcm", ".dicom")

warnings.filterwarnings("ignore", module="PIL")  # in all threads; what is wrong with a file is an InputError here


class Picture(NamedTuple):
    """A decoded image: `width` and `height` are the file's, in pixels.

    `levels` are its pixels at one size or more, the largest first, (h, w) or (h, w, 3) uint8. `scales` are the sizes of
    the levels over the file's, (across, down).
    """

    width: int
    height: int
    levels: list[np.ndarray]
    scales: list[tuple[float, float]]


def as_picture(image: Image.Image) -> Picture:
    return Picture(*image.size, [np.asarray(image)], [(1.0, 1.0)])


class Files:
    """The pictures at n locations. Once a JPEG is found to be gray, no worker decodes its colour any more."""

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


def read_image(location: str, gray: bool = False) -> Image.Image:
    """Decode an image to mode "L", or to "RGB" if its channels differ. Raises InputError naming the file.

    `gray` means that the image is known to be gray: the colour of a JPEG is then not decoded.
    """
    path = locations.show(location)
    if not locations.is_file(location) and os.path.exists(locations.split(location).path):
        raise InputError(f"{path}: not a file: remove it, or pass --skip-broken")
    if locations.suffix(location) in DICOM:
        return read_dicom(location)
    try:
        with Image.open(locations.source(location)) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:  # Pillow only warns up to twice as many
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
        if isinstance(error, UnidentifiedImageError) and has_dicom_mark(locations.ends(location, 132)[0]):
            return read_dicom(location)
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        raise InputError(
            f"{path}: the image cannot be read ({reason}): download it again or remove it, or pass --skip-broken"
        ) from None


def read_dicom(location: str) -> Image.Image:
    from data import dicom  # pydicom takes a second to import

    return to_gray_or_rgb(dicom.read(location))


def has_dicom_mark(start: bytes) -> bool:
    """Whether a file that starts so is a DICOM file, whatever its name."""
    return start[128:132] == b"DICM"


def read_small(location: str, size: int) -> Image.Image:
    """Decode an image to mode "L", a JPEG at a fraction of its size if its sides stay at `size` or more."""
    if locations.suffix(location) in DICOM:
        return read_image(location).convert("L")
    try:
        with Image.open(locations.source(location)) as image:
            image.draft("L", (size, size))
            return to_gray_or_rgb(image).convert("L")
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError):
        return read_image(location).convert("L")  # which raises InputError if it fails too


def to_gray_or_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode -> mode "L" or "RGB". 16 bits keep their high byte, transparent pixels become black."""
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


def looks_whole(location: str) -> bool:
    """Whether an image starts and ends as a JPEG or PNG file does, or is a DICOM file as long as its header says.

    False for all other formats.
    """
    if not locations.is_file(location):
        return False
    try:
        start, end = locations.ends(location, 132)
    except OSError:
        return False
    if locations.suffix(location) in DICOM or has_dicom_mark(start):
        from data import dicom

        return dicom.looks_whole(location)
    if start[:3] == b"\xff\xd8\xff":
        return b"\xff\xd9" in end
    return start[:8] == b"\x89PNG\r\n\x1a\n" and b"IEND" in end


def unreadable(images, decode: bool = False) -> dict[str, str]:
    """{location: reason} of the images that are cut short or are none.

    An image is decoded unless it looks whole. With `decode` every one is, which also finds damage between start and
    end.
    """

    def reason(location):
        if not decode and looks_whole(location):
            return None
        try:
            read_image(location)
        except InputError as error:
            return str(error)
        return None

    def reasons(some):
        return {location: why for location in some if (why := reason(location))}

    found, images = {}, iter(images)
    with ThreadPoolExecutor(16) as pool:
        while some := list(dict.fromkeys(itertools.islice(images, 65_536))):  # map would hold every location
            parts = [some[start : start + 64] for start in range(0, len(some), 64)]  # a job costs as much as an image
            for part in pool.map(reasons, parts):
                found |= part
    return found


def broken_files(images, skip: bool) -> dict[str, str]:
    """{location: reason} of the images that --skip-broken (`skip`) leaves out, of which every one is then decoded.

    Without it raises InputError if any is broken; the log names the first 20.
    """
    broken = unreadable(images, decode=skip)
    if broken and not skip:
        for why in list(broken.values())[:20]:
            logger.info(why)
        raise InputError(next(iter(broken.values())) + (f" ({len(broken)} such files)" if len(broken) > 1 else ""))
    return broken
