"""Write CBIS-DDSM's cases as the archive and as Kaggle deliver them, of tiny pictures, and compare what is read.

python tests/programs/cbis_archive.py --csv FOLDER       # of the four case CSVs: 1,546 / 326 / 1,318 / 378 rows

The archive's tree is written four times: with folders called by UIDs and renamed, and with and without a
SeriesDescription for each image. Which of 1-1.dcm and 1-2.dcm is the crop is drawn. Exit code 1 if a table has other
ids, labels or patients than that of Kaggle's tree, or an image that is no crop.
"""

import argparse
import csv
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]

import numpy as np
from PIL import Image

from data.cbis import cbis_table
from data.cbis_choice import KINDS, Series
from dicom_files import write_dicom

DESCRIPTIONS = {kind: name for name, kind in KINDS.items()}
CELLS = {"full": "image file path", "crop": "cropped image file path", "mask": "ROI mask file path"}
SIZES = {"crop": (10, 12), "mask": (60, 40), "full": (60, 40)}  # rows, columns
SPLITS = [(task, split) for task in ("calcification", "mass") for split in ("train", "test")]


def case_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*_case_description_*_set.csv"))


def read_series(folder: Path) -> dict[Series, list[str]]:
    """The series that the case CSVs in `folder` name, and the kinds of their images, in the order of the cells."""
    found = {}
    for path in case_files(folder):
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for kind, column in CELLS.items():
                    kinds = found.setdefault(Series(*row[column].strip().split("/")[:3]), [])
                    if kind not in kinds:
                        kinds.append(kind)
    return found


def tiny_picture(series: Series, kind: str) -> np.ndarray:
    return np.full(SIZES[kind], 40_000 if kind == "crop" else 100, np.uint16)


def write_archive(root: Path, folder: Path, renamed=False, described=True, picture=tiny_picture, seed=0) -> Path:
    """The archive's tree of the case CSVs in `folder`; `picture` gives the pixels of an image of a series."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True)
    for path in case_files(folder):
        shutil.copy(path, root)
    for series, kinds in read_series(folder).items():
        study, below = series.study, series.uid
        if renamed:
            study = f"07-20-2016-DDSM-NA-{study[-5:]}"
            below = f"1.000000-{DESCRIPTIONS[kinds[-1]]}-{series.uid[-5:]}"
        for number, kind in enumerate(rng.permutation(kinds), 1):
            elements = {"SeriesDescription": DESCRIPTIONS[kind]} if described else {}
            write_dicom(
                root / "CBIS-DDSM" / series.folder / study / below / f"1-{number}.dcm", picture(series, kind),
                SeriesInstanceUID=series.uid, StudyInstanceUID=series.study, PatientID=series.folder, **elements,
            )  # fmt: skip
    return root


def write_kaggle(root: Path, folder: Path, seed=1) -> Path:
    """Kaggle's tree of the same."""
    rng = np.random.default_rng(seed)
    (root / "csv").mkdir(parents=True)
    for path in case_files(folder):
        shutil.copy(path, root / "csv")
    lines = ["image_path,SeriesDescription,Columns,Rows"]
    for series, kinds in read_series(folder).items():
        (root / "jpeg" / series.uid).mkdir(parents=True)
        for number, kind in enumerate(rng.permutation(kinds), 1):
            name = f"jpeg/{series.uid}/{number}-{rng.integers(300):03d}.jpg"
            rows, columns = SIZES[kind]
            Image.new("L", (columns, rows)).save(root / name)
            lines.append(f"CBIS-DDSM/{name},{DESCRIPTIONS[kind]},{columns},{rows}")
    (root / "csv" / "dicom_info.csv").write_text("\n".join(lines) + "\n")
    return root


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True, help="folder of the four case CSVs")
    folder = parser.parse_args().csv
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        kaggle = write_kaggle(Path(place, "kaggle"), folder)
        for renamed in (False, True):
            for described in (True, False):
                root = write_archive(Path(place, "archive"), folder, renamed, described)
                began, counts = time.perf_counter(), []
                for task, split in SPLITS:
                    ours, theirs = (cbis_table(one, task, split) for one in (root, kaggle))
                    counts.append(f"{len(ours):,}")
                    same = ours.drop(columns="path").equals(theirs.drop(columns="path"))
                    full = cbis_table(root, task, split, "full")
                    for path, kind in [*((one, "crop") for one in ours.path), *((one, "full") for one in full.path)]:
                        same &= pixels_of(path) == tuple(SIZES[kind])
                    wrong += not same or len(full) != len(ours)
                names = "renamed" if renamed else "called by UIDs"
                print(
                    f"folders {names}, {'with' if described else 'without'} SeriesDescription: "
                    f"{' / '.join(counts)} rows in {time.perf_counter() - began:.0f} s, {wrong} tables differ"
                )
                shutil.rmtree(root)
    return int(wrong > 0)


def pixels_of(path: str) -> tuple[int, int]:
    from data import dicom

    return tuple(dicom.elements(path, "Rows", "Columns"))


if __name__ == "__main__":
    sys.exit(main())
