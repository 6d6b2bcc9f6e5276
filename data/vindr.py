"""VinDr-Mammo: four mammograms a study, with BI-RADS and density of the breast and the findings in each.

Data: Nguyen et al., "VinDr-Mammo: A large-scale benchmark dataset for computer-aided diagnosis in full-field digital
mammography", Sci Data 10:277 (2023), doi 10.1038/s41597-023-02100-7. Layout, that of PhysioNet's vindr-mammo 1.0.0:

    ROOT/breast-level_annotations.csv         study_id, image_id, breast_birads, breast_density, split and more
    ROOT/finding_annotations.csv              image_id, finding_categories and more; several rows an image
    ROOT/images/<study_id>/<image_id>.dicom   or .dcm, .png, .jpg of a converted copy
"""

import ast
import os

import numpy as np

from data.csv_rows import is_plain, is_there, read_csv
from data.sets import Labelled
from utils import InputError, logger

FINDINGS = "finding_categories"
CLASSES = {
    "breast_birads": [f"BI-RADS {number}" for number in range(1, 6)],
    "breast_density": [f"DENSITY {letter}" for letter in "ABCD"],
    FINDINGS: [
        "Mass", "Suspicious Calcification", "Asymmetry", "Focal Asymmetry", "Global Asymmetry",
        "Architectural Distortion", "Skin Thickening", "Skin Retraction", "Nipple Retraction", "Suspicious Lymph Node",
    ],
}  # fmt: skip
SPLITS = {"train": "training", "test": "test"}
SUFFIXES = (".dicom", ".dcm", ".png", ".jpg")
REMEDY = "take it from PhysioNet again"


def vindr_set(entry: dict, split: str) -> Labelled:
    """The "train" or "test" split of a catalog entry, whose "label" is a key of CLASSES; findings are multi-label.

    Rows whose image is not there are left out, counted and named. Raises InputError for a file, column or label that is
    not there or not known, an image that comes twice, and where no image of the split is there.
    """
    root, label = entry["path"], entry["label"]
    if label not in CLASSES:
        raise InputError(f"--dataset {entry['name']}: its label '{label[:40]}' is not one of {', '.join(CLASSES)}")
    classes, multi = CLASSES[label], label == FINDINGS
    source = os.path.join(root, "breast-level_annotations.csv")
    ids, studies, labels, images, missing = [], [], [], [], []
    try:
        found = read_findings(os.path.join(root, "finding_annotations.csv")) if multi else {}
        seen = set()
        for where, (study, image, part, value) in read_csv(
            source, ("study_id", "image_id", "split", "breast_birads" if multi else label), remedy=REMEDY
        ):
            if not (is_plain(study) and is_plain(image)):
                raise InputError(f"{where}: study_id and image_id are '{study[:40]}' and '{image[:40]}': {REMEDY}")
            if part not in SPLITS.values():
                raise InputError(f"{where}: the split '{part[:40]}' is not one of {', '.join(SPLITS.values())}")
            if image in seen:
                raise InputError(f"{where}: the image {image} is in a row before: {REMEDY}")
            seen.add(image)
            if not multi and value not in classes:
                raise InputError(f"{where}: {label} is '{value[:40]}', not one of {', '.join(classes)}")
            if part != SPLITS[split]:
                continue
            path = os.path.join(root, "images", study, image)
            suffix = next((suffix for suffix in SUFFIXES if is_there(path + suffix)), None)
            if suffix is None:
                missing.append(image)
                continue
            ids.append(image)
            studies.append(study)
            images.append(path + suffix)
            labels.append([name in found.get(image, ()) for name in classes] if multi else classes.index(value))
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from None
    if missing:
        count = f"{len(missing)} of {len(missing) + len(ids)} {SPLITS[split]} rows of {source} have no image"
        if not ids:
            raise InputError(f"{count} in {root}/images, the first {missing[0]}: download the images")
        logger.warning(f"{count} and are left out: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}")
    labels = np.array(labels, np.float32 if multi else np.int64)
    return Labelled(ids, labels, list(classes), studies, images, "squash", {"patients": "one for each study_id"})


def read_findings(source: str) -> dict[str, set[str]]:
    """{image: the categories of its findings}."""
    found = {}
    for where, (image, cell) in read_csv(source, ("image_id", FINDINGS), remedy=REMEDY):
        try:
            names = ast.literal_eval(cell)  # a list as Python writes it
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            names = None
        if not isinstance(names, list) or not all(name in ("No Finding", *CLASSES[FINDINGS]) for name in names):
            raise InputError(f"{where}: finding_categories is {cell[:80]!r}, not a list of known ones: {REMEDY}")
        found.setdefault(image, set()).update(names)
    return found
