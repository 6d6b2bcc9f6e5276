"""CBIS-DDSM as the Cancer Imaging Archive delivers it: DICOM files in a folder for each case, and the case CSVs.

    ROOT/{calc,mass}_case_description_{train,test}_set.csv                or in csv/, or beside the folders of the cases
    ROOT/[manifest-.../]CBIS-DDSM/<case>/<study>/<series>/1-1.dcm         or the folders of the cases in ROOT itself

A case is Mass-Training_P_00001_LEFT_CC for a mammogram, and with _1 at the end for its first abnormality. The folders
of study and series are called by their UIDs or, in the downloader's other mode, 07-20-2016-DDSM-NA-74994 and
1.000000-ROI mask images-18515. So the header of each file of a case is read: it has the series' UID, whether this is
the crop or the mask, and the size.
"""

import os
import re
from glob import escape, glob

from data.cbis_choice import KINDS, ImageFile, Series
from utils import InputError, logger

CASE = re.compile(r"(Calc|Mass)-(Training|Test)_P_\d+_(LEFT|RIGHT)_(CC|MLO)(_\d+)?")


def find_folders(root: str) -> list[str]:
    """The folders in or below `root` that hold those of the cases; several manifests may have been downloaded apart."""
    found = (
        root,
        os.path.join(root, "CBIS-DDSM"),
        *sorted(glob(os.path.join(escape(root), "manifest-*", "CBIS-DDSM"))),
    )
    return [folder for folder in found if os.path.isdir(folder) and any(map(CASE.fullmatch, os.listdir(folder)))]


class Archive:
    def __init__(self, root: str, folders: list[str]):
        self.root, self.folders = root, folders

    def check(self) -> None:
        pass

    def case_file(self, name: str) -> str:
        places = [self.root, os.path.join(self.root, "csv"), *self.folders, *map(os.path.dirname, self.folders)]
        found = [os.path.join(place, name) for place in places if os.path.lexists(os.path.join(place, name))]
        return found[0] if found else os.path.join(self.root, name)

    def files(self, series: Series) -> list[ImageFile]:
        """The files of a series, by their headers; those that have no header are left out, and named in the log."""
        from data import dicom

        found = []
        for folder in self.folders:
            for path in sorted(glob(os.path.join(escape(os.path.join(folder, series.folder)), "*", "*", "*.dcm"))):
                try:
                    uid, description, rows, columns = dicom.elements(
                        path, "SeriesInstanceUID", "SeriesDescription", "Rows", "Columns"
                    )
                except InputError as error:
                    logger.info(str(error))
                    continue
                if uid is None:
                    logger.info(f"{path}: its header has no SeriesInstanceUID: the file is left out")
                elif uid == series.uid:
                    size = (columns, rows) if rows and columns else None
                    kind = KINDS.get(str(description or "").strip().lower(), "")
                    found.append(ImageFile(os.path.relpath(path, self.root), series.uid, kind, size))
        if len(found) > 1 and len({file.kind for file in found}) == 1:  # a description of the series, not of its images
            found = [file._replace(kind="") for file in found]
        return found

    def others(self, series: Series) -> list[ImageFile]:
        return []

    def place(self, series: Series) -> str:
        return series.folder
