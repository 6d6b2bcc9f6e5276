"""CBIS-DDSM as Kaggle has it: which image belongs to which abnormality.

Data: Lee et al., "A curated mammography data set for use in computer-aided detection and diagnosis research",
Sci Data 4:170177 (2017), doi 10.7937/k9/tcia.2016.7o02s9cy. Layout, that of Kaggle's
awsaf49/cbis-ddsm-breast-cancer-image-dataset:

    ROOT/csv/{calc,mass}_case_description_{train,test}_set.csv    one row an abnormality
    ROOT/csv/dicom_info.csv                                       one row an image; used where present
    ROOT/jpeg/<SeriesInstanceUID>/<name>.jpg                      a crop and its mask mostly share one folder

A case CSV names DICOM files that are not in the JPEG tree. Of these names only the series UID is of use: 000000.dcm is
the crop in one CSV and the mask in another, Kaggle's prefixes 1- and 2- follow no rule, and file names repeat from
series to series. Within a series SeriesDescription tells the crop from the mask and, where it is missing, their sizes.
"""

import csv
import logging
import os
import stat
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from data.sets import Labelled
from utils import InputError

ABNORMALITIES = {"calcification": "calc", "mass": "mass"}
SPLITS = {"train": "Training", "test": "Test"}
LABELS = ("MALIGNANT", "BENIGN", "BENIGN_WITHOUT_CALLBACK")
PATH_COLUMNS = {"full": "image file path", "crop": "cropped image file path", "mask": "ROI mask file path"}
KINDS = {"full mammogram images": "full", "cropped images": "crop", "roi mask images": "mask"}  # SeriesDescription
EXTENSIONS = (".jpg", ".jpeg", ".png")

log = logging.getLogger("medslip")


class Case(NamedTuple):
    id: str
    patient_id: str
    label: str
    series: dict[str, str]  # series UID in the "full", "crop" and "mask" cell


class ImageFile(NamedTuple):
    series: str
    name: str
    kind: str = ""  # "full", "crop", "mask"; empty where no SeriesDescription says
    size: tuple[int, int] | None = None  # (columns, rows) of the DICOM; the JPEG may be smaller


def cbis_table(root, abnormality="calcification", split="train", image="crop"):
    """One official split of CBIS-DDSM, one row an abnormality, in the order of the CSV.

    root         folder that holds Kaggle's csv/ and jpeg/; each of the three may be a symbolic link
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
    root = os.fspath(root)
    if not root or "\0" in root:
        raise InputError(f"{root!r} is no folder: give the one that holds CBIS-DDSM's csv/ and jpeg/")
    root = os.path.abspath(os.path.expanduser(root))
    tables, jpeg = os.path.join(root, "csv"), os.path.join(root, "jpeg")
    for folder in (root, tables, jpeg):
        if not os.path.isdir(folder):
            raise InputError(f"{folder} is no readable folder: give the one that holds CBIS-DDSM's csv/ and jpeg/")
    short = ABNORMALITIES[abnormality]
    source = os.path.join(tables, f"{short}_case_description_{split}_set.csv")

    rows, missing = [], []
    try:
        cases = _read_cases(source)
        files = _read_dicom_info(os.path.join(tables, "dicom_info.csv"))
        for case in cases:
            file, reason = _find_image(case, image, jpeg, files)
            if file and not _bytes(path := _path(jpeg, file)):
                reason = f"jpeg/{file.series}/{file.name} is not there or empty"
            if reason:
                missing.append((case.id, reason))
            else:
                rows.append((case.id, case.patient_id, path, case.label))
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}: it must be there and readable") from error

    prefix = f"{short.capitalize()}-{SPLITS[split]}_"
    strangers = [case.id for case in cases if not case.id.startswith(prefix)]
    if strangers:  # a CSV under the name of another would put test patients into training
        log.warning("%s: %d ids do not start with %s, first %s", source, len(strangers), prefix, strangers[0])
    if missing:
        count = f"{len(missing)} of {len(cases)} rows of {source} have no {image} image"
        named = "; ".join(f"{case_id} ({reason})" for case_id, reason in missing[:3])
        if not rows:
            raise InputError(f"{count}: {named}: complete {jpeg} from the Kaggle download")
        log.warning("%s and are left out: %s%s", count, named, "; ..." if len(missing) > 3 else "")
    table = pd.DataFrame(rows, columns=["id", "patient_id", "path", "label"])
    table.attrs["missing"] = missing
    return table


def patients(root, abnormality: str, split: str) -> set[str]:
    """The patients of a split's CSV, whether or not their images are there. Raises InputError."""
    source = os.path.join(root, "csv", f"{ABNORMALITIES[abnormality]}_case_description_{split}_set.csv")
    return {case.patient_id for case in _read_cases(source)}


def _read_cases(source):
    cases, seen = [], {}
    for where, (patient_id, label, *cells) in _read_csv(source, ("patient_id", "pathology", *PATH_COLUMNS.values())):
        parts = {kind: cell.split("/") for kind, cell in zip(PATH_COLUMNS, cells, strict=True)}
        for (kind, names), cell in zip(parts.items(), cells, strict=True):
            if len(names) != 4 or not all(map(_is_plain, names)):
                expected = "id/study UID/series UID/file name: restore Kaggle's CSV"
                raise InputError(f"{where}: {PATH_COLUMNS[kind]} is {cell[:80]!r}, not {expected}")
        if label not in LABELS:
            raise InputError(f"{where}: pathology is {label[:80]!r}, not one of {', '.join(LABELS)}: correct it")
        if not patient_id:
            raise InputError(f"{where}: patient_id is empty: restore Kaggle's CSV")
        case_id = parts["crop"][0]
        if case_id in seen:
            raise InputError(f"{where}: {case_id} is already in {seen[case_id]}: remove one of the two")
        seen[case_id] = where
        cases.append(Case(case_id, patient_id, label, {kind: names[2] for kind, names in parts.items()}))
    return cases


def _read_dicom_info(source):
    """{series UID: its files} of Kaggle's index; empty where there is no index, and the folders are then listed."""
    files = {}
    if not os.path.lexists(source):
        return files
    cells = _read_csv(source, ("image_path", "SeriesDescription"), optional=("Columns", "Rows"))
    for where, (image_path, description, columns, rows) in cells:
        if not image_path:
            continue
        parts = image_path.split("/")  # CBIS-DDSM/jpeg/<series UID>/<name>, of which the download lacks CBIS-DDSM
        if len(parts) < 3 or parts[-3] != "jpeg" or not all(map(_is_plain, parts)):
            expected = "CBIS-DDSM/jpeg/series UID/file name: restore the file, or remove it to go by the folders"
            raise InputError(f"{where}: image_path is {image_path[:80]!r}, not {expected}")
        known = all(one.isdecimal() and len(one) < 10 for one in (columns, rows))
        size = (int(columns), int(rows)) if known else None
        file = ImageFile(parts[-2], parts[-1], KINDS.get(description.lower(), ""), size)
        files.setdefault(file.series, []).append(file)
    return files


def _find_image(case, image, jpeg, files):
    """-> (file, "") or (None, why there is none). Whether a file of the index is on the disk is not checked here."""
    # A mask may have a series of its own, and the cells of crop and mask are then sometimes swapped: look in both.
    series = dict.fromkeys([case.series["full"]] if image == "full" else [case.series["crop"], case.series["mask"]])
    known = list(dict.fromkeys(file for uid in series for file in files.get(uid, ())))
    described = [file for file in known if file.kind == image]
    if len(described) == 1:
        return described[0], ""

    # The index does not tell: add files on the disk that it lacks, and go by the sizes of those of unknown kind.
    indexed = {(file.series, file.name) for file in known}
    known += [ImageFile(uid, name) for uid in series for name in _list(jpeg, uid) if (uid, name) not in indexed]
    where = " or ".join(f"jpeg/{uid}" for uid in series)
    candidates = described or [file for file in known if not file.kind]
    if not candidates:
        return None, f"only images of another kind in {where}" if known else f"no image in {where}"
    if len(candidates) == 1 and image == "full":
        return candidates[0], ""
    sizes = _sizes(jpeg, candidates)
    areas = [(size[0] * size[1], file) for size, file in zip(sizes, candidates, strict=True) if size]
    if not areas:
        return None, f"no readable image in {where}"
    if len(areas) == 1:
        lone = areas[0][1]
        reason = _doubt(lone, known, case, jpeg, files) if image == "crop" and not lone.kind else ""
        return (None, reason) if reason else (lone, "")

    # The crop is the smallest, the mammogram the largest. Of equal sizes the series named by the image's own cell comes
    # first, since sorting is stable.
    areas.sort(key=lambda pair: pair[0], reverse=image == "full")
    (area, best), (next_area, second) = areas[:2]
    if area == next_area and best.series == second.series:
        return None, f"{best.name} and {second.name} in jpeg/{best.series} are equal in size and not described"
    return best, ""


def _doubt(lone, known, case, jpeg, files):
    """Why the only image left, whose kind is unknown, cannot be taken for the crop; empty if it can."""
    full, _ = _find_image(case, "full", jpeg, files)
    own, whole = _sizes(jpeg, [lone, full]) if full else (None, None)
    if own and whole:  # a mask has the mammogram's size, some pixels more or less
        is_mask = own[0] > 0.9 * whole[0] and own[1] > 0.9 * whole[1]
        return f"jpeg/{lone.series}/{lone.name} has the mammogram's size, so it is the mask" if is_mask else ""
    if any(file.kind == "mask" for file in known) or lone.series == case.series["crop"] != case.series["mask"]:
        return ""
    return f"nothing tells whether jpeg/{lone.series}/{lone.name} is the crop or the mask"


def _sizes(jpeg, files):
    """(width, height) of each file, None if it cannot be read.

    They are the DICOMs' sizes or, if the index lacks one, all of them the JPEGs': the two cannot be compared.
    """
    if all(file.size for file in files):
        return [file.size for file in files]
    sizes = []
    for path in (_path(jpeg, file) for file in files):
        try:
            with Image.open(path) as header:  # decodes no pixel
                sizes.append(header.size)
        except PermissionError:
            raise
        except (OSError, ValueError, Image.DecompressionBombError):
            sizes.append(None)
    return sizes


def _bytes(path):
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _list(jpeg, series):
    try:
        names = sorted(os.listdir(os.path.join(jpeg, series)))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for name in names if name.lower().endswith(EXTENSIONS)]


def _path(jpeg, file):
    return os.path.join(jpeg, file.series, file.name)


def _is_plain(name):
    """Whether a part of a path in a CSV is a plain name: such a path cannot lead out of the folder."""
    harmless = name.isascii() and name.isprintable() and not any(mark in name for mark in "/\\:")
    return harmless and name not in ("", ".", "..") and len(name) < 256


def _read_csv(source, required, optional=()):
    """-> [("file, row number", [the wanted cells, stripped])]; an optional column that is absent gives empty cells.

    The csv module reads them, because every row of the case CSVs has a quoted cell with a line feed in it.
    """
    remedy = "take it from the Kaggle download again"
    if os.path.exists(source) and not os.path.isfile(source):
        raise InputError(f"{source} is not a file: {remedy}")
    try:
        with open(source, encoding="utf-8-sig", newline="") as stream:
            lines = list(csv.reader(stream, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{source} is not a CSV file in UTF-8 ({error}): {remedy}") from error

    def plain(names):  # "breast density" and "breast_density" are the same column
        return [name.strip().lower().replace("_", " ") for name in names]

    header = plain(lines[0]) if lines else []
    columns = [header.index(name) if name in header else None for name in plain((*required, *optional))]
    lacking = [name for name, column in zip(required, columns, strict=False) if column is None]
    if lacking:
        raise InputError(f"{source} lacks the column {lacking[0]!r}: {remedy}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        where = f"{source}, row {number}"
        if not any(map(str.strip, line)):
            continue
        if len(line) != len(header):
            raise InputError(f"{where} has {len(line)} cells, the header {len(header)}: {remedy}")
        rows.append((where, ["" if column is None else line[column].strip() for column in columns]))
    if not rows:
        raise InputError(f"{source} holds no row: {remedy}")
    return rows


def cbis_set(entry, split):
    """The "train" or "test" split of a catalog entry -> sets.Labelled. Raises InputError."""
    # "calcification+mass" joins the two tasks. Their splits share patients, so evaluation/audit.py refuses it.
    tasks = ["calcification", "mass"] if entry["abnormality"] == "calcification+mass" else [entry["abnormality"]]
    table = pd.concat([cbis_table(entry["path"], task, split, entry.get("image", "crop")) for task in tasks])
    labels = np.array([LABELS.index(label) for label in table["label"]])
    # Squashed to a square, as for the published rows: cutting out the middle would cut off the lesion's margin.
    return Labelled(list(table["id"]), labels, list(LABELS), list(table["patient_id"]), list(table["path"]), "squash")
