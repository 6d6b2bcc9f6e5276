"""What the readers of data sets return: Pairs to train on, or a Labelled set to probe."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from data.buffers import Choices, Strings
from data.images import Picture, as_picture, read_image, to_gray_or_rgb


@dataclass
class Pairs:
    """Image-caption pairs. `files` are paths relative to `root`. What was left out is named: in `missing` the ids of
    captions without an image, in `unreadable` the paths of images that cannot be read."""

    root: str
    ids: Strings
    files: Choices
    captions: Strings
    missing: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, i: int) -> str:
        return os.path.join(self.root, self.files[i])

    def paths(self) -> Iterator[str]:
        """Every image file once."""
        for number in np.unique(self.files.which):
            yield os.path.join(self.root, self.files.strings[number])

    def without(self, broken: set[str]) -> "Pairs":
        """The pairs whose image file is not in `broken` (paths)."""
        whole = np.array([os.path.join(self.root, file) not in broken for file in self.files.strings], bool)
        keep = whole[self.files.which]
        files = Choices(self.files.strings, self.files.which[keep])
        return Pairs(
            self.root, self.ids.take(keep), files, self.captions.take(keep), self.missing, self.counts, sorted(broken)
        )


@dataclass
class Labelled:
    """N labelled images. `labels` (N,) are numbers of `classes`; `patients` is None where the set names none; `fit` is
    how an image is made square, see views.whole."""

    ids: list[str]
    labels: np.ndarray
    classes: list[str]
    patients: list[str] | None
    images: Sequence  # paths, or a torchvision dataset of (image, label)
    fit: str

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def multi(self) -> bool:
        return self.labels.ndim == 2

    def __getitem__(self, i: int) -> Picture:
        image = self.images[i]
        return as_picture(read_image(image) if isinstance(image, str) else to_gray_or_rgb(image[0]))

    def without(self, broken: set[str]) -> "Labelled":
        keep = [i for i, image in enumerate(self.images) if not isinstance(image, str) or image not in broken]
        patients = [self.patients[i] for i in keep] if self.patients else None
        ids, images = [self.ids[i] for i in keep], [self.images[i] for i in keep]
        return Labelled(ids, self.labels[keep], self.classes, patients, images, self.fit)
