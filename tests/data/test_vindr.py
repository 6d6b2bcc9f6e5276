"""VinDr-Mammo in PhysioNet's layout, of tiny DICOM files."""

import json

import numpy as np
import pytest

import datasets
from conftest import REPOSITORY
from data.vindr import CLASSES
from dicom_files import VINDR, write_vindr
from evaluation.zeroshot import read_prompts
from utils import InputError

HEADER, *ROWS = VINDR.splitlines()


@pytest.fixture
def root(tmp_path):
    return write_vindr(tmp_path / "vindr")


def write_rows(root, *rows, header=HEADER):
    (root / "breast-level_annotations.csv").write_text("\n".join((header, *rows)) + "\n")


def read(root, split="train", label="breast_birads"):
    catalog = root / "catalog.json"
    catalog.write_text(json.dumps({"vindr": {"path": str(root), "type": "vindr", "label": label}}))
    return datasets.labelled_set(datasets.find_entry(str(catalog), "vindr"), split)


def refused(root, **keywords) -> str:
    with pytest.raises(InputError) as caught:
        read(root, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_splits_their_labels_studies_and_pictures(root):
    train, test = read(root), read(root, "test")
    assert (train.ids, train.patients) == (["a1", "a2", "c1"], ["aa", "aa", "cc"])
    assert (test.ids, test.patients) == (["b1", "b2"], ["bb", "bb"])
    assert [train.classes[label] for label in train.labels] == ["BI-RADS 2", "BI-RADS 4", "BI-RADS 5"]
    assert [round(one.levels[0].mean()) for one in map(train.__getitem__, range(3))] == [0, 64, 191]
    density = read(root, "test", "breast_density")
    assert density.classes == [f"DENSITY {one}" for one in "ABCD"] and density.labels.tolist() == [0, 1]


def test_findings_are_several_for_an_image(root):
    train = read(root, label="finding_categories")
    assert train.multi and train.labels.shape == (3, 10) and train.labels.dtype == np.float32
    named = [{train.classes[k] for k in np.flatnonzero(row)} for row in train.labels]
    assert named == [set(), {"Suspicious Calcification", "Mass", "Skin Retraction"}, {"Global Asymmetry"}]


def test_a_converted_copy_is_read(root):
    path = root / "images" / "aa" / "a1.dicom"
    path.rename(path.with_suffix(".dcm"))
    assert read(root).ids == ["a1", "a2", "c1"]


def test_rows_without_an_image_are_counted_and_named(root, caplog):
    (root / "images" / "aa" / "a2.dicom").unlink()
    (root / "images" / "cc" / "c1.dicom").write_bytes(b"")
    assert read(root).ids == ["a1"]
    assert "2 of 3 training rows" in caplog.text and "left out: a2, c1" in caplog.text
    (root / "images" / "aa" / "a1.dicom").unlink()
    assert "3 of 3 training rows" in refused(root)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ("aa,s,L,x,CC,1,1,BI-RADS 6,DENSITY C,training", "row 7: breast_birads is 'BI-RADS 6'"),
        ("aa,s,L,x,CC,1,1,BI-RADS 1,DENSITY C,validation", "row 7: the split 'validation'"),
        ("..,s,L,x,CC,1,1,BI-RADS 1,DENSITY C,training", "row 7: study_id"),
        ("aa,s,L,../../x,CC,1,1,BI-RADS 1,DENSITY C,training", "row 7: study_id"),
        ("aa,s,L,a1,CC,1,1,BI-RADS 1,DENSITY C,test", "row 7: the image a1 is in a row before"),
        ("aa,s,L", "row 7 has 3 cells"),
    ],
)
def test_a_wrong_row_is_named(root, row, part):
    write_rows(root, *ROWS, row)
    assert part in refused(root)


def test_what_is_not_there(root):
    assert "breast_birads, breast_density, finding_categories" in refused(root, label="birads")
    write_rows(root, *ROWS, header=HEADER.replace("breast_density", "density"))
    message = refused(root, label="breast_density")
    assert "lacks the column 'breast_density', it has study_id, series_id" in message
    (root / "finding_annotations.csv").write_text("image_id,finding_categories\na1,Mass\n")
    assert "row 2: finding_categories is 'Mass'" in refused(root, label="finding_categories")
    (root / "finding_annotations.csv").write_text("image_id,finding_categories\na1,\"[['Mass']]\"\n")
    assert "row 2: finding_categories is" in refused(root, label="finding_categories")
    (root / "finding_annotations.csv").unlink()
    assert "finding_annotations.csv: cannot be read" in refused(root, label="finding_categories")


@pytest.mark.parametrize("name", ["vindr_birads", "vindr_density"])
def test_the_catalog_and_the_prompts_know_it(name):
    entry = datasets.find_entry(str(REPOSITORY / "dataset_catalog.json"), name)
    classes = CLASSES[entry["label"]]
    prompts = read_prompts(str(REPOSITORY / "evaluation" / "prompts.json"), name, classes)
    assert len(prompts) == len(classes)
