"""Which image of a CBIS-DDSM case is its crop, its mask or its mammogram.

The file names in the case CSVs tell nothing: 000000.dcm is the crop in one CSV and the mask in another, and in Kaggle's
and the archive's copies the names follow no rule either. What tells is each image's own SeriesDescription and, where it
is missing, the sizes: a mask has the mammogram's.
"""

import os
from typing import NamedTuple

from PIL import Image

KINDS = {"full mammogram images": "full", "cropped images": "crop", "roi mask images": "mask"}  # SeriesDescription


class Series(NamedTuple):
    """What a cell of a case CSV says: folder/study/uid/file name."""

    folder: str
    study: str
    uid: str


class Case(NamedTuple):
    id: str
    patient_id: str
    label: str
    series: dict[str, Series]  # of the "full", "crop" and "mask" cell


class ImageFile(NamedTuple):
    name: str  # its path below the data folder
    series: str  # UID
    kind: str = ""  # "full", "crop", "mask"; empty where no SeriesDescription says
    size: tuple[int, int] | None = None  # (columns, rows) of the DICOM; a JPEG made of it may be smaller


def find_image(case: Case, image: str, layout) -> tuple[ImageFile | None, str]:
    """-> (file, "") or (None, why there is none); `image` is "crop" or "full".

    A layout (cbis_kaggle.py, cbis_archive.py) has a `root`, `files(series)`, what is known of a series' images,
    `others(series)`, images on the disk that it knows no more of, and `place(series)`, where they lie, in words.
    Whether a known file is on the disk is not checked here.
    """
    # A mask may have a series of its own, and the cells of crop and mask are then sometimes swapped: look in both.
    series = dict.fromkeys([case.series["full"]] if image == "full" else [case.series["crop"], case.series["mask"]])
    known = list(dict.fromkeys(file for one in series for file in layout.files(one)))
    described = [file for file in known if file.kind == image]
    if len(described) == 1:
        return described[0], ""

    # The descriptions do not tell: add the files that have none, and go by the sizes of those of unknown kind.
    names = {file.name for file in known}
    known += dict.fromkeys(file for one in series for file in layout.others(one) if file.name not in names)
    where = " or ".join(dict.fromkeys(map(layout.place, series)))
    candidates = described or [file for file in known if not file.kind]
    if not candidates:
        return None, f"only images of another kind in {where}" if known else f"no image in {where}"
    if len(candidates) == 1 and image == "full":
        return candidates[0], ""
    sizes = find_sizes(layout.root, candidates)
    areas = [(size[0] * size[1], file) for size, file in zip(sizes, candidates, strict=True) if size]
    if not areas:
        return None, f"no readable image in {where}"
    if len(areas) == 1:
        lone = areas[0][1]
        reason = doubt(lone, known, case, layout) if image == "crop" and not lone.kind else ""
        return (None, reason) if reason else (lone, "")

    # The crop is the smallest, the mammogram the largest. Of equal sizes the series named by the image's own cell comes
    # first, since sorting is stable.
    areas.sort(key=lambda pair: pair[0], reverse=image == "full")
    (area, best), (next_area, second) = areas[:2]
    if area == next_area and best.series == second.series:
        return None, f"{best.name} and {os.path.basename(second.name)} are equal in size and not described"
    return best, ""


def doubt(lone: ImageFile, known: list[ImageFile], case: Case, layout) -> str:
    """Why the only image left, whose kind is unknown, cannot be taken for the crop; empty if it can."""
    full, _ = find_image(case, "full", layout)
    own, whole = find_sizes(layout.root, [lone, full]) if full else (None, None)
    if own and whole:  # a mask has the mammogram's size, some pixels more or less
        is_mask = own[0] > 0.9 * whole[0] and own[1] > 0.9 * whole[1]
        return f"{lone.name} has the mammogram's size, so it is the mask" if is_mask else ""
    apart = case.series["crop"].uid != case.series["mask"].uid
    if any(file.kind == "mask" for file in known) or (apart and lone.series == case.series["crop"].uid):
        return ""
    return f"nothing tells whether {lone.name} is the crop or the mask"


def find_sizes(root: str, files: list[ImageFile]) -> list[tuple[int, int] | None]:
    """(width, height) of each file, None if it cannot be read.

    They are the DICOMs' sizes or, if one is not known, all of them those of the files: the two cannot be compared.
    """
    if all(file.size for file in files):
        return [file.size for file in files]
    sizes = []
    for file in files:
        try:
            with Image.open(os.path.join(root, file.name)) as header:  # decodes no pixel
                sizes.append(header.size)
        except PermissionError:
            raise
        except (OSError, ValueError, Image.DecompressionBombError):
            sizes.append(None)
    return sizes
