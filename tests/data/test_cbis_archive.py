"""CBIS-DDSM in the archive's layout, made of the phantoms: the same rows and pictures as Kaggle's, and never a mask."""

import csv
import itertools
import logging
import shutil

import numpy as np
import pydicom
import pytest

import datasets
from cbis_archive import SIZES, SPLITS, case_files, tiny_picture, write_archive
from data.cbis import cbis_table
from data.cbis_kaggle import Kaggle
from data.images import read_image
from evaluation import audit
from utils import InputError


@pytest.fixture(scope="module")
def kaggle(phantoms):
    return phantoms / "cbis"


def phantom_pictures(kaggle):
    """The pixels of an image of a series, as cbis_archive.write_archive asks for them."""
    layout = Kaggle(str(kaggle))

    def picture(series, kind):
        # One mask of the phantoms, as of the real files, has no description.
        files = [file for file in layout.files(series) if file.kind == kind or (kind == "mask" and not file.kind)]
        return np.asarray(read_image(str(kaggle / files[0].name)))

    return picture


@pytest.fixture(scope="module")
def tree(kaggle, tmp_path_factory):
    return write_archive(tmp_path_factory.mktemp("tree") / "a", kaggle / "csv", True, True, phantom_pictures(kaggle))


@pytest.fixture(scope="module")
def cases(kaggle, tmp_path_factory):
    """The first six rows of each case CSV."""
    folder = tmp_path_factory.mktemp("cases")
    for path in case_files(kaggle / "csv"):
        with open(path, newline="") as file, open(folder / path.name, "w", newline="") as out:
            csv.writer(out).writerows(itertools.islice(csv.reader(file), 7))
    return folder


@pytest.fixture
def small(cases, tmp_path):
    """A function that writes a tree of tiny pictures: crops are (12, 10) pixels, masks and mammograms (40, 60)."""
    return lambda **options: write_archive(tmp_path / "a", cases, **options)


def same_rows(one, other) -> bool:
    return len(one) and one.drop(columns="path").equals(other.drop(columns="path").head(len(one)))


def sizes(table) -> set:
    return {read_image(path).size for path in table.path}


@pytest.mark.parametrize(("task", "split"), SPLITS)
def test_the_rows_and_pictures_are_those_of_kaggles_tree(tree, kaggle, task, split):
    for image in ("crop", "full"):
        ours, theirs = (cbis_table(root, task, split, image) for root in (tree, kaggle))
        assert len(ours) == (30 if split == "train" else 12) and same_rows(ours, theirs)
        assert ours.path.str.endswith(".dcm").all()
        for one, other in list(zip(ours.path, theirs.path, strict=True))[::5]:
            assert np.array_equal(np.asarray(read_image(one)), np.asarray(read_image(other)))


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("described", [False, True])
def test_headers_tell_the_crop_whatever_the_files_are_called(small, kaggle, renamed, described):
    root = small(renamed=renamed, described=described)
    table = cbis_table(root, "mass", "train")
    assert same_rows(table, cbis_table(kaggle, "mass", "train")) and sizes(table) == {(12, 10)}
    assert {path[-7:] for path in table.path} == {"1-1.dcm", "1-2.dcm"}  # no rule of names would do
    assert sizes(cbis_table(root, "mass", "train", "full")) == {(40, 60)}


def test_a_description_that_all_files_of_a_series_share_tells_nothing(small):
    root = small()
    for path in root.glob("CBIS-DDSM/Calc-Test*/*/*/*.dcm"):
        file = pydicom.dcmread(path)
        if len(list(path.parent.iterdir())) > 1:
            file.SeriesDescription = "ROI mask images"
            file.save_as(path)
    table = cbis_table(root, "calcification", "test")
    assert len(table) == 6 and sizes(table) == {(12, 10)}


@pytest.mark.parametrize("place", ["in csv", "beside the folder", "in the folder", "four manifests"])
def test_where_the_csvs_and_folders_may_lie(small, kaggle, tmp_path, place):
    root = small()
    if place == "in csv":
        (root / "csv").mkdir()
        for path in root.glob("*.csv"):
            path.rename(root / "csv" / path.name)
    elif place == "beside the folder":
        root = root / "CBIS-DDSM"
    elif place == "in the folder":
        shutil.move(root / "CBIS-DDSM", tmp_path / "b")
        for path in root.glob("*.csv"):
            path.rename(tmp_path / "b" / path.name)
        root = tmp_path / "b"
    else:
        for number, pattern in enumerate(("*_1", "*C", "*O", "*")):
            (root / f"manifest-{number}" / "CBIS-DDSM").mkdir(parents=True)
            for path in (root / "CBIS-DDSM").glob(pattern):
                shutil.move(path, root / f"manifest-{number}" / "CBIS-DDSM")
        (root / "CBIS-DDSM").rmdir()
    assert same_rows(cbis_table(root, "mass", "test"), cbis_table(kaggle, "mass", "test"))


def test_rows_without_a_crop_are_counted_and_named_and_never_get_the_mask(small, caplog):
    root = small(renamed=True)
    table = cbis_table(root)
    lost, broken, empty = table.id[1], table.id[3], table.id[4]
    paths = dict(zip(table.id, table.path, strict=True))
    shutil.rmtree(root / "CBIS-DDSM" / lost)
    for one, content in ((broken, b"\0" * 128 + b"DICM" + b"\1" * 50), (empty, b"")):
        with open(paths[one], "wb") as file:
            file.write(content)
    with caplog.at_level(logging.INFO, "medslip"):
        left = cbis_table(root)
    assert [one for one, _ in left.attrs["missing"]] == [lost, broken, empty]
    assert list(left.id) == [one for one in table.id if one not in (lost, broken, empty)]
    assert sizes(left) == {(12, 10)}
    assert f"3 of 6 rows of {root / 'calc_case_description_train_set.csv'}" in caplog.text
    assert f"{lost} (no image in {lost})" in caplog.text
    assert paths[broken] in caplog.text and paths[empty] in caplog.text


def test_an_undescribed_mask_alone_is_not_taken_for_the_crop(small):
    root = small(described=False)
    table = cbis_table(root, "mass")
    lone = table.id[0]
    (root / table.path[0]).unlink()
    assert [one for one, _ in cbis_table(root, "mass").attrs["missing"]] == [lone]


def test_no_image_at_all_and_no_csv(small):
    root = small()
    (root / "calc_case_description_train_set.csv").unlink()
    with pytest.raises(InputError, match=r"calc_case_description_train_set\.csv: No such file"):
        cbis_table(root)
    for path in root.glob("CBIS-DDSM/Mass-Test*/*/*/*"):
        path.unlink()
    with pytest.raises(InputError, match="6 of 6 rows") as caught:
        cbis_table(root, "mass", "test")
    assert "\n" not in str(caught.value)


def test_what_is_not_of_the_case_is_left_aside(small):
    root = small()
    table = cbis_table(root)
    first = root / "CBIS-DDSM" / table.id[0]
    stranger = next((root / "CBIS-DDSM" / table.id[5]).glob("*/*/*.dcm"))
    (first / "study" / "series").mkdir(parents=True)
    shutil.copy(stranger, first / "study" / "series" / "1-1.dcm")  # of another series by its header
    (next(first.glob("1.*/*")) / "._1-1.dcm").write_bytes(b"\0\5\26\7 of a Mac")
    (first / "LICENSE").write_text("CC BY 3.0")
    assert cbis_table(root).equals(table)


def test_the_catalogs_entry_and_the_audit(tree, kaggle, tmp_path):
    entries = [
        {"name": "cbis_calc", "type": "cbis", "path": str(root), "abnormality": "calcification"}
        for root in (tree, kaggle)
    ]
    ours, theirs = ({split: datasets.labelled_set(entry, split) for split in ("train", "test")} for entry in entries)
    assert ours["test"].ids == theirs["test"].ids and np.array_equal(ours["test"].labels, theirs["test"].labels)
    assert np.array_equal(ours["train"][3].levels[0], theirs["train"][3].levels[0])
    found = [
        audit.probe_audit(entry, data["train"], data["test"], False)
        for entry, data in zip(entries, (ours, theirs), strict=True)
    ]
    assert found[0] == found[1] and found[0]["patients_across_tasks"] is not None


def test_sixteen_bits_are_shown_in_full_range_or_as_they_are(small):
    root = small(
        picture=lambda series, kind: tiny_picture(series, kind) // 2 + np.arange(SIZES[kind][1], dtype=np.uint16)
    )
    path = cbis_table(root).path[0]
    assert np.array_equal(np.asarray(read_image(path))[3], np.rint(255 * np.arange(12) / 11))
    whole = np.asarray(read_image(f"{path}\0window=32768/65536"))
    assert np.array_equal(whole[3], np.rint((20_000 + np.arange(12)) / 257))
