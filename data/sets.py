"""What the readers of data sets return: Pairs to train on, a Labelled set to probe, or Unlabelled images."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from data import locations
from data.buffers import Choices, Strings
from data.images import Picture, as_picture, read_image, to_gray_or_rgb
from utils import InputError

FITS = ("center256", "center", "squash")  # see views.whole


@dataclass
class Pairs:
    """Image-caption pairs.

    `files` are locations (locations.py) relative to `root`, without the `window` that all are shown with ("40/400", or
    "" for each file's own). `articles` are the publications that the pairs are of, None where none is known. What was
    left out is named: in `missing` the ids of captions without an image, in `unreadable` the images that cannot be
    read. `notes` say how the set was made; they are logged and kept with the run.
    """

    root: str
    ids: Strings
    files: Choices
    captions: Strings
    missing: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    articles: Choices | None = None
    notes: dict[str, str] = field(default_factory=dict)
    window: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, i: int) -> str:
        """The location of pair i's image."""
        return self.located(self.files[i])

    def located(self, file: str) -> str:
        return locations.make(os.path.join(self.root, file), window=self.window)

    def paths(self) -> Iterator[str]:
        """The location of every image once."""
        for number in np.unique(self.files.which):
            yield self.located(self.files.strings[number])

    def without(self, broken: set[str]) -> "Pairs":
        """The pairs whose image is not in `broken` (locations)."""
        whole = np.array([self.located(file) not in broken for file in self.files.strings], bool)
        return replace(self.take(whole[self.files.which]), unreadable=sorted(map(locations.show, broken)))

    def take(self, keep: np.ndarray) -> "Pairs":
        """The pairs where `keep` (N,) is true."""
        return replace(
            self, ids=self.ids.take(keep), files=self.files.take(keep), captions=self.captions.take(keep),
            articles=self.articles and self.articles.take(keep),
        )  # fmt: skip


@dataclass
class Labelled:
    """N labelled images of K classes.

    `labels` (N,) are numbers of `classes`; or, if each image may have several findings (`multi`), they are (N, K)
    float32 of 0, 1 or nan for unknown. `patients` is None where the set names none; `fit` is how an image is made
    square, see views.whole; `notes` say how the set was made.
    """

    ids: list[str]
    labels: np.ndarray
    classes: list[str]
    patients: list[str] | None
    images: Sequence  # locations (locations.py), or a torchvision dataset of (image, label)
    fit: str
    notes: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def multi(self) -> bool:
        return self.labels.ndim == 2

    def __getitem__(self, i: int) -> Picture:
        image = self.images[i]
        return as_picture(read_image(image) if isinstance(image, str) else to_gray_or_rgb(image[0]))

    def shown(self, window: str) -> "Labelled":
        """The set with its images shown in a window, "40/400"."""
        images = [locations.make(image, window=window) for image in self.images]
        return replace(self, images=images, notes={**self.notes, "window": window})

    def without(self, broken: set[str]) -> "Labelled":
        keep = [i for i, image in enumerate(self.images) if not isinstance(image, str) or image not in broken]
        patients = [self.patients[i] for i in keep] if self.patients else None
        ids, images = [self.ids[i] for i in keep], [self.images[i] for i in keep]
        return replace(self, ids=ids, labels=self.labels[keep], patients=patients, images=images)


@dataclass
class Unlabelled:
    """N images as a user named them.

    `images` are locations (locations.py) with absolute paths, without the `window` that all are shown with ("40/400",
    or "" for each file's own). `captions` are "" where an image has none; None: they were not asked for. `missing` are
    images that are named and not there, in words. `fit` is how an image is made square, see views.whole.
    """

    ids: Strings
    images: Strings
    captions: Strings | None = None
    missing: list[str] = field(default_factory=list)
    window: str = ""
    fit: str = "center"

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, i: int) -> str:
        """The location of image i, to be read."""
        return locations.make(self.images[i], window=self.window)

    def __getitem__(self, i: int) -> Picture:
        return as_picture(read_image(self.path(i)))

    def without(self, broken: set[str]) -> "Unlabelled":
        """The images whose `path` is not in `broken`."""
        keep = np.array([self.path(i) not in broken for i in range(len(self))], bool)
        captions = self.captions and self.captions.take(keep)
        return replace(self, ids=self.ids.take(keep), images=self.images.take(keep), captions=captions)


def named_fit(entry: dict) -> str:
    """How a catalog entry says that images are made square. Raises InputError for a word that is none of FITS."""
    fit = entry.get("fit", FITS[0])
    if fit not in FITS:
        raise InputError(f"--dataset {entry['name']}: the fit {fit[:40]!a} is not one of {', '.join(FITS)}")
    return fit
