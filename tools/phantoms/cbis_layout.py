"""CBIS-DDSM's layout on Kaggle: four case CSVs, dicom_info.csv, and a folder of pictures a series.

The quirks of the published files are kept: CRLF, a line feed inside the last path, `breast density` beside
`breast_density`, file names in the cells that do not tell a crop from a mask, some rows with crop and mask in two
series, one mask without SeriesDescription.
"""

import csv

import numpy as np
from PIL import Image, ImageDraw

from tools.phantoms import streams
from tools.phantoms.breast import draw_mammogram, draw_spot
from tools.phantoms.drawing import polar
from tools.phantoms.lesions import CLASSES, TASKS, random_lesion

UID_ROOT = "1.3.6.1.4.1.9590.100.1.2."
ATYPICAL = 0.06  # share of lesions that look like one of the other two classes
ASSESSMENTS = {  # class -> BI-RADS categories, as often as they come
    "MALIGNANT": (4, 4, 4, 5, 5, 3),
    "BENIGN": (4, 4, 4, 3, 2, 0),
    "BENIGN_WITHOUT_CALLBACK": (2, 2, 2, 2, 3),
}
DICOM_COLUMNS = (
    "file_path,image_path,AccessionNumber,BitsAllocated,BitsStored,BodyPartExamined,Columns,ContentDate,ContentTime,"
    "ConversionType,HighBit,InstanceNumber,LargestImagePixelValue,Laterality,Modality,PatientBirthDate,PatientID,"
    "PatientName,PatientOrientation,PatientSex,PhotometricInterpretation,PixelRepresentation,ReferringPhysicianName,"
    "Rows,SOPClassUID,SOPInstanceUID,SamplesPerPixel,SecondaryCaptureDeviceManufacturer,"
    "SecondaryCaptureDeviceManufacturerModelName,SeriesDescription,SeriesInstanceUID,SeriesNumber,"
    "SmallestImagePixelValue,SpecificCharacterSet,StudyDate,StudyID,StudyInstanceUID,StudyTime"
).split(",")


def draw_film(files, film, rng):
    """Draw and write one full mammogram with the masks and crops of its lesions.

    film: {"side", "view", "density", "lesions"}; files: [full, (crop, mask), ...] in the order of the lesions.
    Returns [(path, rows, columns, smallest, largest grey level)]. A crop is drawn afresh at a higher resolution than
    the small full mammogram has.
    """
    h = int(rng.integers(560, 780))
    full, places = draw_mammogram(h, int(h * rng.uniform(0.5, 0.66)), rng=rng, **film)
    pictures = [(files[0], full)]
    for lesion, (x, y, r), (crop, mask) in zip(film["lesions"], places, files[1:], strict=True):
        side, aspect = rng.uniform(150, 380), rng.uniform(0.75, 1.33)
        size = np.clip((side * aspect**0.5, side / aspect**0.5), 150, 450).astype(int)
        pictures.append((crop, draw_spot(int(size[0]), int(size[1]), lesion, rng)))
        canvas = Image.new("L", full.shape[::-1])
        wobble = r * (1 + 0.15 * np.cos(3 * np.linspace(0, 6.28, 60) + rng.uniform(0, 6)))
        ImageDraw.Draw(canvas).polygon(polar((x, y), wobble, np.linspace(0, 6.28, 60)), fill=255)
        pictures.append((mask, np.asarray(canvas)))
    for path, a in pictures:
        Image.fromarray(a).save(path, quality=85, optimize=True)
    return [(path, *a.shape, int(a.min()), int(a.max())) for path, a in pictures]


def plan_films(task, n_rows, rng):
    """Films with n_rows lesions in all: [(patient, film)], patients not yet numbered, for one task and split."""
    deck, films, rows, patient = [], [], 0, 0
    shares = (7, 7, 6) if task == "calc" else (8, 8, 4)  # without-callback masses are rarer in CBIS: too few to score
    while rows < n_rows:
        if not deck:  # dealt in shuffled rounds, each class first once: small trees have all three too
            rest = rng.permutation([c for c, n in zip(CLASSES, shares, strict=True) for _ in range(n - 1)])
            deck = [*CLASSES, *map(str, rest)][::-1]
        label = deck.pop()
        sides = ("LEFT", "RIGHT") if rng.random() < 0.08 else (str(rng.choice(("LEFT", "RIGHT"))),)
        density = int(rng.integers(1, 5))
        for side in sides:
            lesions = []
            for _ in range(1 + int(rng.choice(3, p=(0.80, 0.15, 0.05)))):
                other = str(rng.choice([c for c in CLASSES if c != label]))
                lesion = random_lesion(task, other if rng.random() < ATYPICAL else label, rng)
                lesion |= {"pathology": label, "assessment": int(rng.choice(ASSESSMENTS[label]))}
                lesions.append(lesion | {"subtlety": int(rng.choice((2, 3, 3, 4, 4, 5, 5)))})
            for view in ("CC", "MLO") if rng.random() < 0.85 else (str(rng.choice(("CC", "MLO"))),):
                keep = lesions[: n_rows - rows]
                rows += len(keep)
                if keep:
                    films.append((patient, {"side": side, "view": view, "density": density, "lesions": keep}))
        patient += 1
    return films


def write_rows(path, rows, end):
    with open(path, "w", encoding="utf-8", newline="") as f:
        csv.writer(f, lineterminator=end).writerows(rows)


class SeriesFolders:
    """The series of the tree: makes a folder for each and keeps {image path: what dicom_info.csv says of it}."""

    def __init__(self, folder, rng):
        self.folder, self.rng, self.headers = folder, rng, {}

    def new_uid(self):
        return UID_ROOT + str(int.from_bytes(self.rng.bytes(16), "big"))

    def add(self, patient, study, descriptions, film):
        """One new series; returns (its UID, the path of each of its images)."""
        rng, uid, paths = self.rng, self.new_uid(), []
        (self.folder / uid).mkdir(parents=True)
        prefixes = ("1", "2") if rng.random() < 0.8 else ("2", "1")
        for prefix, description in zip(prefixes[: len(descriptions)], descriptions, strict=True):
            name = f"{prefix if len(descriptions) > 1 else 1}-{rng.integers(1, 300):03d}"
            paths.append(self.folder / uid / f"{name}.jpg")
            self.headers[paths[-1]] = {
                "SeriesDescription": description, "SeriesInstanceUID": uid, "StudyInstanceUID": study,
                "SOPInstanceUID": self.new_uid(), "PatientID": patient, "PatientName": patient,
                "BodyPartExamined": "BREAST", "PatientOrientation": film["view"], "Laterality": film["side"][0],
                "StudyTime": f"{rng.integers(8, 20):02d}{rng.integers(60):02d}{rng.integers(60):02d}",
            }  # fmt: skip
        return uid, paths

    def add_lesion(self, patient, study, film, task, apart):
        """Crop and mask of a lesion, in one series or apart; returns (their paths, their cells of the case CSV)."""
        if apart:
            uid, (crop,) = self.add(patient, study, ["cropped images"], film)
            other_study = self.new_uid()
            other, (mask,) = self.add(patient, other_study, ["ROI mask images"], film)
            cells = [f"{patient}/{study}/{uid}/000000.dcm", f"{patient}/{other_study}/{other}/000000.dcm"]
        else:
            uid, (crop, mask) = self.add(patient, study, ["cropped images", "ROI mask images"], film)
            ends = (1, 0) if task == "calc" else (0, 1)
            cells = [f"{patient}/{study}/{uid}/00000{end}.dcm" for end in ends]
        cells[task == "mass"] += "\n"
        return (crop, mask), cells

    def strip_header(self, mask, patient, name, film):
        """Make a mask the one of the published files that lacks its SeriesDescription."""
        self.headers[mask] |= {
            "BodyPartExamined": f"{film['side'].capitalize()} Breast", "PatientID": f"{patient.split('_', 1)[1]}.dcm",
            "PatientName": f"{name}^{name}", "SeriesDescription": "", "Laterality": "", "StudyTime": "",
        }  # fmt: skip


def case_columns(task):
    if task == "calc":
        density, kinds = "breast density", "calc type,calc distribution"
    else:
        density, kinds = "breast_density", "mass shape,mass margins"
    header = f"patient_id,{density},left or right breast,image view,abnormality id,abnormality type,{kinds}"
    header += ",assessment,pathology,subtlety,image file path,cropped image file path,ROI mask file path"
    return header.split(",")


def plan_cbis(root, counts, seed):
    """Write the four case CSVs; returns (jobs, {image path: what dicom_info.csv says of it}).

    counts: {(task, "train" | "test"): rows}.
    """
    rng = streams.generator(seed, streams.CBIS_PLAN)
    (root / "csv").mkdir(parents=True)
    jobs, series = [], SeriesFolders(root / "jpeg", rng)
    for task in TASKS:
        numbers = rng.permutation(2600) + 1  # one pool for both splits: no patient is in two
        for split in ("train", "test"):
            films = plan_films(task, counts[task, split], rng)
            n_patients = films[-1][0] + 1
            names, numbers = np.sort(numbers[:n_patients]), numbers[n_patients:]
            rows = [case_columns(task)]
            for patient, film in films:
                name = f"P_{names[patient]:05d}"
                folder = f"{task.capitalize()}-{'Training' if split == 'train' else 'Test'}_{name}"
                folder += f"_{film['side']}_{film['view']}"
                study = series.new_uid()
                uid, files = series.add(folder, study, ["full mammogram images"], film)
                full_cell = f"{folder}/{study}/{uid}/000000.dcm"
                for number, lesion in enumerate(film["lesions"], 1):
                    own, study = f"{folder}_{number}", series.new_uid()
                    apart = len(rows) == 5 and split == "train" if task == "calc" else rng.random() < 0.06
                    (crop, mask), cells = series.add_lesion(own, study, film, task, apart)
                    files.append((crop, mask))
                    if (task, split, len(rows)) == ("calc", "test", 3):
                        series.strip_header(mask, own, name, film)
                    detail = "" if lesion["detail"] == "DIFFUSELY_SCATTERED" and number % 2 else lesion["detail"]
                    rows.append(
                        [name, film["density"], film["side"], film["view"], number]
                        + ["calcification" if task == "calc" else "mass", lesion["kind"], detail]
                        + [lesion["assessment"], lesion["pathology"], lesion["subtlety"], full_cell, *cells]
                    )
                jobs.append((draw_film, files, film, (seed, streams.CBIS_PICTURES, len(jobs))))
            write_rows(root / "csv" / f"{task}_case_description_{split}_set.csv", rows, "\r\n")
    return jobs, series.headers


def write_dicom_info(root, headers, drawn, seed):
    """csv/dicom_info.csv: 38 columns, one row per image, in no order. drawn: rows of `draw_film`."""
    rows = []
    for path, height, width, low, high in drawn:
        odd = not headers[path]["SeriesDescription"]
        name = f"{path.parent.name}/{path.stem}"
        row = headers[path] | {
            "file_path": f"CBIS-DDSM/dicom/{name}.dcm", "image_path": f"CBIS-DDSM/jpeg/{name}.jpg",
            "BitsAllocated": 8 if odd else 16, "BitsStored": 8 if odd else 16, "HighBit": 7 if odd else 15,
            "Rows": height, "Columns": width,
            "LargestImagePixelValue": high * (1 if odd else 257), "SmallestImagePixelValue": low * (1 if odd else 257),
            "ContentDate": "20160426", "ContentTime": "131732.685000", "StudyDate": "" if odd else "20160720",
            "ConversionType": "WSD", "InstanceNumber": 1, "Modality": "MG", "PhotometricInterpretation": "MONOCHROME2",
            "PixelRepresentation": 0, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "SamplesPerPixel": 1,
            "SecondaryCaptureDeviceManufacturer": "MathWorks", "SecondaryCaptureDeviceManufacturerModelName": "MATLAB",
            "SeriesNumber": 1, "SpecificCharacterSet": "ISO_IR 100", "StudyID": "DDSM",
        }  # fmt: skip
        rows.append([row.get(column, "") for column in DICOM_COLUMNS])
    order = streams.generator(seed, streams.CBIS_ORDER).permutation(len(rows))
    write_rows(root / "csv" / "dicom_info.csv", [DICOM_COLUMNS, *(rows[i] for i in order)], "\n")
