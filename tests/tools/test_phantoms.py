"""The phantoms' two layouts are whole, the same bytes every time, and never overwritten."""

import csv
import hashlib

import numpy as np
import pytest
from PIL import Image

from tools import make_phantoms as tool
from tools.phantoms.breast import draw_spot
from tools.phantoms.lesions import CLASSES, random_lesion

TINY = {"seed": 3, "pairs": 60, "validation_pairs": 6, "calc": (12, 8), "mass": (10, 7)}
SETS = [(task, split) for task in ("calc", "mass") for split in ("train", "test")]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantoms") / "tiny"
    assert tool.make_phantoms(out, **TINY)
    return out


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def cases(tree, task, split):
    return read_csv(tree / "cbis" / "csv" / f"{task}_case_description_{split}_set.csv")


def digest(tree):
    files = sorted(p for p in tree.rglob("*") if p.is_file())
    return [(str(p.relative_to(tree)), hashlib.sha256(p.read_bytes()).hexdigest()) for p in files]


def test_every_case_has_its_three_images(tree):
    images = read_csv(tree / "cbis" / "csv" / "dicom_info.csv")
    assert len(images[0]) == 38
    series = {}
    for row in images:
        path = tree / "cbis" / row["image_path"].removeprefix("CBIS-DDSM/")
        size = Image.open(path).size
        assert size == (int(row["Columns"]), int(row["Rows"]))
        assert path.parent.name == row["SeriesInstanceUID"]
        series.setdefault(row["SeriesInstanceUID"], {})[row["SeriesDescription"] or "ROI mask images"] = size
    assert sum(not row["SeriesDescription"] for row in images) == 1
    assert sum(len(s) for s in series.values()) == len(list((tree / "cbis" / "jpeg").rglob("*.jpg"))) == len(images)
    for task, split in SETS:
        rows = cases(tree, task, split)
        assert len(rows) == TINY[task][split == "test"]
        assert {row["pathology"] for row in rows} == set(CLASSES)
        for row in rows:
            uid = {c: row[f"{c} file path"].strip().split("/")[2] for c in ("image", "cropped image", "ROI mask")}
            full, crop = series[uid["image"]]["full mammogram images"], series[uid["cropped image"]]["cropped images"]
            assert series[uid["ROI mask"]]["ROI mask images"] == full
            assert min(crop) >= 150 and max(crop) <= 450


def test_the_traps_of_the_published_csv_files(tree):
    for task, split in SETS:
        raw = (tree / "cbis" / "csv" / f"{task}_case_description_{split}_set.csv").read_bytes()
        rows, last = cases(tree, task, split), {"calc": "cropped image file path", "mass": "ROI mask file path"}[task]
        assert raw.count(b"\r\n") == len(rows) + 1 and all(row[last].endswith(".dcm\n") for row in rows)
        assert ("breast density" in rows[0]) == (task == "calc") and ("breast_density" in rows[0]) == (task == "mass")
    rows = cases(tree, "calc", "train")
    apart = [r for r in rows if r["cropped image file path"].split("/")[2] != r["ROI mask file path"].split("/")[2]]
    assert len(apart) == 1


def test_no_patient_is_in_both_splits(tree):
    for task in ("calc", "mass"):
        train, test = ({row["patient_id"] for row in cases(tree, task, split)} for split in ("train", "test"))
        assert train and test and not train & test


def test_roco_layout(tree):
    seen = []
    for split, size in (("train", 60), ("validation", 6), ("test", 3)):
        folder = tree / "roco" / split / "radiology"
        captions = [line.split("\t") for line in (folder / "captions.txt").read_text().splitlines()]
        words = [line.split("\t") for line in (folder / "keywords.txt").read_text().splitlines()]
        licences = (folder / "licences.txt").read_text().splitlines()
        ids = [name for name, _ in captions]
        assert len(ids) == size and ids == sorted(ids) == [row[0] for row in words]
        assert licences[0] == "ROCO_ID,PMC_ID,CC" and [line.split(",")[0] for line in licences[1:]] == ids
        assert all(c.startswith(" ") and not set(c) & set("{}<>|") for _, c in captions)
        assert all(row[1] == "" and len(row) > 2 for row in words)
        images = {p.stem for p in (folder / "images").iterdir()}
        assert images <= set(ids) and len(ids) - len(images) == (split == "train")  # one lost, as in a download
        seen += ids
    assert len(seen) == len(set(seen))


def test_same_bytes_with_two_workers(tree, tmp_path):
    tool.make_phantoms(tmp_path / "again", **TINY, workers=2)
    assert digest(tmp_path / "again") == digest(tree)


def test_exposure_is_no_clue():
    """The mean and the spread of a crop are drawn after its lesion, so the classes share them."""
    levels = {c: [] for c in CLASSES}
    for i in range(90):
        rng = np.random.default_rng(i)
        lesion = random_lesion("mass", CLASSES[i % 3], rng)
        levels[CLASSES[i % 3]].append(draw_spot(64, 64, lesion, rng).mean())
    assert np.ptp([np.mean(v) for v in levels.values()]) < 12  # of 255; one class spreads over about 60


def test_existing_folder(scripts, tree, tmp_path):
    before = digest(tree)
    assert not tool.make_phantoms(tree, **TINY)  # same settings: nothing to do
    with pytest.raises(FileExistsError):
        tool.make_phantoms(tree, **TINY | {"seed": 4})
    assert digest(tree) == before
    code, _, errors = scripts.run("tools/make_phantoms.py", "--out", tmp_path)
    assert code == 2 and len(errors.splitlines()) == 1
    assert not list(tmp_path.iterdir()) and not list(tree.parent.glob(".*"))  # no half-built folder stays behind
