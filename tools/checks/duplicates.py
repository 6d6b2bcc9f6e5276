"""Images that are there more than once: the same bytes, the same pixels, or nearly the same pixels."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from data import images
from evaluation import audit
from tools.checks.pictures import BLANK, Looks
from tools.checks.section import Example, Section
from tools.checks.subject import Subject
from utils import InputError

ALIKE = 0.99  # the correlation of two thumbnails from which they are taken for one image, encoded or resized again
BLOCK = 32  # hashes that are compared with all later ones at a time
CANDIDATES = 1_000_000  # pairs with alike hashes after which no more are looked for
DECODED = 2_000  # near pairs that are decoded in full, to see whether their pixels are the same


@dataclass
class Duplicates:
    """`same`: groups of files (numbers of `Subject.files`) of the same bytes or pixels; `near`: pairs of others."""

    same: list[list[int]]
    near: list[tuple[int, int, int]]  # two files, and the bits in which their hashes differ
    alike: int  # pairs whose hashes are alike, most of them neighbouring slices or views


def find(subject: Subject, looks: Looks) -> Duplicates:
    _, first, inverse = np.unique(looks.digests, return_index=True, return_inverse=True)
    groups = {}
    for row, group in enumerate(inverse):
        groups.setdefault(int(group), []).append(int(looks.files[row]))
    rows = np.sort(first)
    flat = looks.thumbs[rows].reshape(len(rows), -1).astype(np.float32)
    rows, flat = rows[flat.std(axis=1) >= BLANK], flat[flat.std(axis=1) >= BLANK]
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    near, alike = [], 0
    for left, right, bits in alike_hashes(looks.hashes[rows]):
        alike += len(left)
        close = np.einsum("nd,nd->n", flat[left], flat[right]) >= ALIKE
        pairs = looks.files[rows[left[close]]], looks.files[rows[right[close]]], bits[close]
        near += zip(*(column.tolist() for column in pairs), strict=True)
        if alike > CANDIDATES:
            break
    near.sort(key=lambda pair: pair[2])
    same = [group for group in groups.values() if len(group) > 1]
    return apart(subject, looks, same, near, alike)


def alike_hashes(hashes: np.ndarray):
    """Blocks of (rows, columns, bits): the pairs of hashes that audit.NEAR bits or fewer tell apart, each once."""

    def block(start):
        rows, columns, bits = audit.close_pairs(hashes[start : start + BLOCK], hashes[start:], BLOCK)
        later = columns > rows
        return rows[later] + start, columns[later] + start, bits[later]

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(block, range(0, len(hashes), BLOCK))


def apart(subject: Subject, looks: Looks, same, near, alike) -> Duplicates:
    """Move the pairs whose pixels are the same, in another kind of file, from `near` to `same`."""
    sizes = dict(zip(looks.files.tolist(), map(tuple, looks.sizes.tolist()), strict=True))
    others = []
    for number, (one, other, bits) in enumerate(near):
        if number < DECODED and sizes[one] == sizes[other] and same_pixels(subject.files[one], subject.files[other]):
            same.append([one, other])
        else:
            others.append((one, other, bits))
    return Duplicates(same, others, alike)


def same_pixels(one: str, other: str) -> bool:
    try:
        return np.array_equal(np.asarray(images.read_image(one)), np.asarray(images.read_image(other)))
    except InputError:
        return False


def describe(subject: Subject, found: Duplicates) -> Section:
    section = Section("Duplicate images")
    files = [split.which for split in subject.splits.values() if split.which is not None]
    repeats = sum(len(which) - len(np.unique(which)) for which in files)
    if repeats:
        section.say(f"{repeats:,} samples are of an image file that another sample of the split is of, too")
    section.find(
        "groups of the same image", (names(subject, group) for group in found.same),
        f" ({sum(len(group) - 1 for group in found.same):,} files could go)", examples=pictures(subject, found.same),
    )  # fmt: skip
    near = [pair[:2] for pair in found.near]
    section.find(
        "pairs of nearly the same image", (names(subject, pair) for pair in near), examples=pictures(subject, near)
    )
    section.say(
        f"{found.alike:,} pairs of different files have hashes that differ in {audit.NEAR} of 64 bits or fewer; those "
        f"whose thumbnails correlate with less than {ALIKE} are taken for neighbouring slices or views"
    )
    return section


def names(subject: Subject, files) -> str:
    return " = ".join(subject.show(file) for file in files)


def pictures(subject: Subject, groups):
    for group in groups:
        yield Example(names(subject, group), [next(subject.samples(file)) for file in group[:4]])
