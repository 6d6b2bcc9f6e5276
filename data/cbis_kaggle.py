"""CBIS-DDSM as Kaggle's awsaf49/cbis-ddsm-breast-cancer-image-dataset has it.

ROOT/csv/{calc,mass}_case_description_{train,test}_set.csv    one row an abnormality
ROOT/csv/dicom_info.csv                                       one row an image; used where present
ROOT/jpeg/<SeriesInstanceUID>/<name>.jpg                      a crop and its mask mostly share one folder
"""

import os
from functools import cached_property

from data.cbis_choice import KINDS, ImageFile, Series
from data.csv_rows import is_plain, read_csv
from utils import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png")
REMEDY = "take it from the Kaggle download again"


class Kaggle:
    def __init__(self, root: str):
        self.root = root

    def check(self) -> None:
        """Raises InputError for a folder or an index that cannot be used."""
        for folder in (self.root, os.path.join(self.root, "csv"), os.path.join(self.root, "jpeg")):
            if not os.path.isdir(folder):
                raise InputError(
                    f"{folder} is no readable folder: give the one that holds CBIS-DDSM's csv/ and jpeg/, or the "
                    "folders of the archive's download"
                )
        _ = self.index  # before threads ask for it

    def case_file(self, name: str) -> str:
        return os.path.join(self.root, "csv", name)

    def files(self, series: Series) -> list[ImageFile]:
        return self.index.get(series.uid, [])

    def others(self, series: Series) -> list[ImageFile]:
        folder = os.path.join("jpeg", series.uid)
        try:
            names = sorted(os.listdir(os.path.join(self.root, folder)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [ImageFile(os.path.join(folder, one), series.uid) for one in names if one.lower().endswith(EXTENSIONS)]

    def place(self, series: Series) -> str:
        return f"jpeg/{series.uid}"

    @cached_property
    def index(self) -> dict[str, list[ImageFile]]:
        """{series UID: its files} by dicom_info.csv; empty where it is not there, and the folders are then listed."""
        source = os.path.join(self.root, "csv", "dicom_info.csv")
        files = {}
        if not os.path.lexists(source):
            return files
        cells = read_csv(source, ("image_path", "SeriesDescription"), ("Columns", "Rows"), REMEDY)
        for where, (image_path, description, columns, rows) in cells:
            if not image_path:
                continue
            parts = image_path.split("/")  # CBIS-DDSM/jpeg/<series UID>/<name>, of which the download lacks CBIS-DDSM
            if len(parts) < 3 or parts[-3] != "jpeg" or not all(map(is_plain, parts)):
                expected = "CBIS-DDSM/jpeg/series UID/file name: restore the file, or remove it to go by the folders"
                raise InputError(f"{where}: image_path is {image_path[:80]!r}, not {expected}")
            known = all(one.isdecimal() and len(one) < 10 for one in (columns, rows))
            size = (int(columns), int(rows)) if known else None
            file = ImageFile(os.path.join(*parts[-3:]), parts[-2], KINDS.get(description.lower(), ""), size)
            files.setdefault(file.series, []).append(file)
        return files
