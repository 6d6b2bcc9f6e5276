"""Every image file read and decoded once: what cannot be read, and the sizes, depths and hashes of the rest.

A JPEG is decoded at a fraction of its size, which reads all its bytes, and so finds what a full decoding would, in a
third of the time. What neither finds is a JPEG that lacks its middle and has its end: it is decoded with a flat part.
"""

import hashlib
import io
import itertools
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image

from data import images, locations
from evaluation import audit
from tools.checks.section import Example, Section
from tools.checks.subject import Subject
from utils import InputError

MOST = 100_000  # files that are decoded; of a larger set so many, evenly spaced
SIDE = 256  # pixels that the shorter side of a JPEG keeps at least
THUMB = 32  # pixels of a thumbnail's sides
BLANK = 2.0  # the standard deviation of a thumbnail's grey levels below which it shows nothing
DARK = 32  # the brightest level of a thumbnail that is taken for too dark
EDGES = (64, 128, 224, 256, 512, 1024, 2048, 4096)
MODES = {"1": "1 bit", "L": "8 bits", "P": "palette", "RGB": "8 bits x 3", "I": "32 bits", "F": "32 bits, float"}


@dataclass
class Look:
    """One image file. `reason` says why it cannot be read; nothing else is known of it then."""

    reason: str = ""
    digest: int = 0  # of its bytes
    size: tuple[int, int] = (0, 0)  # width, height
    depth: str = ""
    thumb: np.ndarray = field(default_factory=lambda: np.zeros((THUMB, THUMB), np.uint8))  # gray, squashed


@dataclass
class Looks:
    """What was seen of `files`, numbers of `Subject.files` (M,): arrays of M rows each."""

    files: np.ndarray
    reasons: dict[int, str]  # of all files that cannot be read, by their numbers
    digests: np.ndarray
    sizes: np.ndarray  # (M, 2)
    depths: list[str]
    thumbs: np.ndarray  # (M, THUMB, THUMB) uint8
    hashes: np.ndarray  # (M,) uint64, audit.perceptual_hash


def look(location: str) -> Look:
    """Read and decode one file, shrunk."""
    try:
        if not locations.is_file(location):  # a named pipe would wait for its writer
            images.read_image(location)
        contents = locations.read(location)
        digest = int.from_bytes(hashlib.blake2b(contents, digest_size=8).digest(), "big")
        shown, size, depth = decode(location, contents)
    except InputError as error:
        return Look(str(error))
    except (OSError, EOFError) as error:
        return Look(f"{locations.show(location)}: {error}")
    thumb = cv2.resize(np.asarray(shown.convert("L")), (THUMB, THUMB), interpolation=cv2.INTER_AREA)
    return Look("", digest, size, depth, thumb)


def decode(location: str, contents: bytes) -> tuple[Image.Image, tuple[int, int], str]:
    """-> an image in mode "L" or "RGB", shrunk if it is a JPEG; its size in the file, and its depth in words."""
    dicom = locations.suffix(location) in images.DICOM or images.has_dicom_mark(contents)
    try:
        with Image.open(io.BytesIO(b"" if dicom else contents)) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            size, mode, kind = image.size, image.mode, image.format
            image.draft(None, (SIDE, SIDE))
            image.load()
            shown = images.to_gray_or_rgb(image)
    except Exception:  # Pillow raises a dozen kinds; the run's own reader has the last word, and the words
        shown = images.read_image(location)
        size, kind, mode = shown.size, "DICOM" if dicom else "other", shown.mode
    bits = dicom_depth(contents) if dicom else "16 bits" if mode.startswith("I;16") else MODES.get(mode, mode)
    return shown, size, f"{kind}, {bits}, {'gray' if shown.mode == 'L' else 'colour'}"


def dicom_depth(contents: bytes) -> str:
    """What a DICOM file's header says of its pixels."""
    import pydicom  # slow, and there only where DICOM files are read

    tags = ["BitsStored", "PhotometricInterpretation"]
    header = pydicom.dcmread(io.BytesIO(contents), stop_before_pixels=True, force=True, specific_tags=tags)
    return f"{header.get('BitsStored', '?')} bits, {header.get('PhotometricInterpretation', '?')}"


def look_at_all(subject: Subject) -> Looks:
    """Decode the files, or MOST of them; of the others see whether they start and end as they should, as a run does."""
    total = len(subject.files)
    chosen = np.unique(np.linspace(0, total - 1, min(total, MOST)).astype(np.int64)) if total else np.zeros(0, np.int64)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        looks = list(pool.map(look, (subject.files[i] for i in chosen)))
    reasons = {int(i): one.reason for i, one in zip(chosen, looks, strict=True) if one.reason}
    if total > len(chosen):
        rest = {subject.files[i]: int(i) for i in np.setdiff1d(np.arange(total), chosen)}
        reasons |= {rest[file]: why for file, why in images.unreadable(rest).items()}
    whole = [k for k, one in enumerate(looks) if not one.reason]
    looks = [looks[k] for k in whole]
    thumbs = np.stack([one.thumb for one in looks]) if looks else np.zeros((0, THUMB, THUMB), np.uint8)
    return Looks(
        chosen[whole],
        reasons,
        np.array([one.digest for one in looks], np.uint64),
        np.array([one.size for one in looks], np.int64).reshape(-1, 2),
        [one.depth for one in looks],
        thumbs,
        np.array([audit.perceptual_hash(one) for one in thumbs], np.uint64),
    )


def describe(subject: Subject, looks: Looks, skip_broken: bool) -> Section:
    """What cannot be read or shows nothing; sizes and depths."""
    section = Section("Images")
    seen = len(looks.files)
    some = f"; {seen:,} of them decoded, evenly spaced" if len(subject.files) > MOST else ""
    section.say(f"{len(subject.files):,} image files{some}")
    skipped = " (left out by --skip-broken)" if skip_broken else ": a run would stop (or give --skip-broken)"
    broken = sorted(looks.reasons)
    section.find("images cannot be read", (subject.shorten(looks.reasons[i]) for i in broken), skipped, not skip_broken)
    if not seen:
        return section
    depths = Counter(looks.depths)
    section.say("depths: " + "; ".join(f"{depth}: {count:,}" for depth, count in depths.most_common(8)))
    short = looks.sizes.min(axis=1)
    section.say("shorter side, pixels: " + histogram(short, EDGES))
    shapes = [looks.sizes[k] for k in (short.argmin(), looks.sizes.prod(axis=1).argmax())]
    section.say("the smallest is {} x {} pixels, the largest {} x {}".format(*shapes[0], *shapes[1]))
    flat = looks.thumbs.reshape(seen, -1).std(axis=1) < BLANK
    dark = ~flat & (looks.thumbs.reshape(seen, -1).max(axis=1) < DARK)
    for what, rows in (
        ("images show nothing", flat),
        ("images are nearly black", dark),
        ("images have a side more than 5 times the other", looks.sizes.max(axis=1) > 5 * short),
        ("images are smaller than 32 pixels", short < 32),
    ):
        numbers = looks.files[rows]
        section.find(what, (subject.show(i) for i in numbers), examples=examples(subject, numbers))
    return section


def histogram(values: np.ndarray, edges: tuple[int, ...]) -> str:
    """The counts between `edges`, in words; empty bins are left out."""
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    names = [f"below {edges[0]}", *(f"{a}-{b - 1}" for a, b in itertools.pairwise(edges)), f"{edges[-1]}+"]
    return ", ".join(f"{name}: {count:,}" for name, count in zip(names, counts, strict=True) if count)


def examples(subject: Subject, numbers):
    """Each file with its first sample."""
    for number in numbers:
        sample = next(subject.samples(int(number)))
        yield Example(subject.show(number), [sample])
