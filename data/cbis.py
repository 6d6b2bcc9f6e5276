"""CBIS-DDSM: the cases of its four CSVs, and the image of each, in Kaggle's copy or the archive's.

Data: Lee et al., "A curated mammography data set for use in computer-aided detection and diagnosis research",
Sci Data 4:170177 (2017), doi 10.7937/k9/tcia.2016.7o02s9cy.
"""

import logging
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from data.cbis_archive import Archive, find_folders
from data.cbis_choice import Case, Series, find_image
from data.cbis_kaggle import Kaggle
from data.csv_rows import is_plain, is_there, read_csv
from data.sets import Labelled
from utils import InputError

ABNORMALITIES = {"calcification": "calc", "mass": "mass"}
SPLITS = {"train": "Training", "test": "Test"}
LABELS = ("MALIGNANT", "BENIGN", "BENIGN_WITHOUT_CALLBACK")  # one more is added here and in evaluation/prompts.json
PATH_COLUMNS = {"full": "image file path", "crop": "cropped image file path", "mask": "ROI mask file path"}
REMEDY = "take it from the download again"

log = logging.getLogger("medslip")


def cbis_table(root, abnormality="calcification", split="train", image="crop"):
    """One official split of CBIS-DDSM, one row an abnormality, in the order of the CSV.

    root         folder of Kaggle's copy or of the archive's (cbis_kaggle.py, cbis_archive.py); links are followed
    abnormality  "calcification" or "mass"
    split        "train" or "test"
    image        "crop", the abnormality alone, or "full", the whole mammogram (the same for all abnormalities in it)

    Returns a pandas.DataFrame of strings:
    id          Calc-Training_P_00005_RIGHT_CC_1; unique over all four CSVs
    patient_id  P_00005; a patient may have several rows
    path        absolute path of the image
    label       MALIGNANT, BENIGN or BENIGN_WITHOUT_CALLBACK

    Complete, it has 1,546 / 326 rows for calcification train / test and 1,318 / 378 for mass. A row whose image is not
    there, or cannot be told from its mask, is left out: one warning in the log "medslip" counts such rows and names the
    first, and `table.attrs["missing"]` lists all of them as (id, reason).

    Raises utils.InputError, in one line, for a wrong argument; for a folder, CSV or column that is missing or cannot be
    read; for a malformed row (the header is row 1, as in a spreadsheet); and when no row has its image.
    """
    for name, value, choices in (
        ("abnormality", abnormality, ABNORMALITIES),
        ("split", split, SPLITS),
        ("image", image, ("crop", "full")),
    ):
        if value not in choices:
            raise InputError(f"{name} is {value!r}: it must be one of {', '.join(choices)}")
    rows, missing = [], []
    try:
        layout = find_layout(root)
        layout.check()
        source = layout.case_file(case_file(abnormality, split))
        cases = read_cases(source)
        with ThreadPoolExecutor(16) as pool:  # the archive's headers are read here
            found = list(pool.map(lambda case: find_image(case, image, layout), cases))
        for case, (file, reason) in zip(cases, found, strict=True):
            path = os.path.join(layout.root, file.name) if file else ""
            if file and not is_there(path):
                reason = f"{file.name} is not there or empty"
            if reason:
                missing.append((case.id, reason))
            else:
                rows.append((case.id, case.patient_id, path, case.label))
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}: it must be there and readable") from error

    prefix = f"{ABNORMALITIES[abnormality].capitalize()}-{SPLITS[split]}_"
    strangers = [case.id for case in cases if not case.id.startswith(prefix)]
    if strangers:  # a CSV under the name of another would put test patients into training
        log.warning("%s: %d ids do not start with %s, first %s", source, len(strangers), prefix, strangers[0])
    if missing:
        count = f"{len(missing)} of {len(cases)} rows of {source} have no {image} image"
        named = "; ".join(f"{case_id} ({reason})" for case_id, reason in missing[:3])
        if not rows:
            raise InputError(f"{count}: {named}: complete {layout.root} from the download")
        log.warning("%s and are left out: %s%s", count, named, "; ..." if len(missing) > 3 else "")
    table = pd.DataFrame(rows, columns=["id", "patient_id", "path", "label"])
    table.attrs["missing"] = missing
    return table


def find_layout(root) -> Kaggle | Archive:
    root = os.fspath(root)
    if not root or "\0" in root:
        raise InputError(f"{root!r} is no folder: give the one that holds CBIS-DDSM's csv/ and jpeg/")
    root = os.path.abspath(os.path.expanduser(root))
    folders = [] if os.path.isdir(os.path.join(root, "jpeg")) else find_folders(root)
    return Archive(root, folders) if folders else Kaggle(root)


def case_file(abnormality: str, split: str) -> str:
    return f"{ABNORMALITIES[abnormality]}_case_description_{split}_set.csv"


def patients(root, abnormality: str, split: str) -> set[str]:
    """The patients of a split's CSV, whether or not their images are there. Raises InputError, OSError."""
    source = find_layout(root).case_file(case_file(abnormality, split))
    return {case.patient_id for case in read_cases(source)}


def read_cases(source: str) -> list[Case]:
    cases, seen = [], {}
    columns = ("patient_id", "pathology", *PATH_COLUMNS.values())
    for where, (patient_id, label, *cells) in read_csv(source, columns, remedy=REMEDY):
        parts = {kind: cell.split("/") for kind, cell in zip(PATH_COLUMNS, cells, strict=True)}
        for (kind, names), cell in zip(parts.items(), cells, strict=True):
            if len(names) != 4 or not all(map(is_plain, names)):
                expected = "id/study UID/series UID/file name: restore the CSV"
                raise InputError(f"{where}: {PATH_COLUMNS[kind]} is {cell[:80]!r}, not {expected}")
        if label not in LABELS:
            raise InputError(f"{where}: pathology is {label[:80]!r}, not one of {', '.join(LABELS)}: correct it")
        if not patient_id:
            raise InputError(f"{where}: patient_id is empty: restore the CSV")
        case_id = parts["crop"][0]
        if case_id in seen:
            raise InputError(f"{where}: {case_id} is already in {seen[case_id]}: remove one of the two")
        seen[case_id] = where
        cases.append(Case(case_id, patient_id, label, {kind: Series(*names[:3]) for kind, names in parts.items()}))
    return cases


def cbis_set(entry, split):
    """The "train" or "test" split of a catalog entry -> sets.Labelled. Raises InputError."""
    # "calcification+mass" joins the two tasks. Their splits share patients, so evaluation/audit.py refuses it.
    tasks = ["calcification", "mass"] if entry["abnormality"] == "calcification+mass" else [entry["abnormality"]]
    table = pd.concat([cbis_table(entry["path"], task, split, entry.get("image", "crop")) for task in tasks])
    labels = np.array([LABELS.index(label) for label in table["label"]])
    # Squashed to a square, as for the published rows: cutting out the middle would cut off the lesion's margin.
    return Labelled(list(table["id"]), labels, list(LABELS), list(table["patient_id"]), list(table["path"]), "squash")
