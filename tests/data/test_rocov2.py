"""ROCOv2's tree: folders of images under each of their names, concepts as keywords, articles."""

import shutil

import pytest

import datasets
from conftest import picture
from utils import InputError

CAPTIONS = ("Mammogram, left breast.", '"Opacity", in the left lung', "A cyst")
CUIS = ("C1;C2", "C3", "C4")


def make_rocov2(root, folder="{split}"):
    for split in ("train", "valid"):
        keys = [f"ROCOv2_2023_{split}_{number:06d}" for number in range(1, 4)]
        images = root / folder.format(split=split)
        images.mkdir(parents=True, exist_ok=True)
        for number, key in enumerate(keys[:2]):
            picture(number).save(images / f"{key}.jpg")
        lines = [f'{key},"{text.replace(chr(34), chr(34) * 2)}"' for key, text in zip(keys, CAPTIONS, strict=True)]
        (root / f"{split}_captions.csv").write_text("\n".join(["ID,Caption", *lines]) + "\n")
        lines = [f"{key},{words}" for key, words in zip(keys, CUIS, strict=True)]
        (root / f"{split}_concepts.csv").write_text("\n".join(["ID,CUIs", *lines]) + "\n")
        (root / f"{split}_concepts_manual.csv").write_text(f"ID,CUIs\n{keys[1]},C5\n")
    (root / "cui_mapping.csv").write_text(
        "CUI,Canonical name\nC1,Mammography\nC2,Breast\nC3,Lung\nC4,Ultrasonography\nC5,Plain x-ray\n"
    )
    (root / "license_information.csv").write_text("ID,PMCID,Attribution,Link\nROCOv2_2023_train_000001,PMC7,CC BY,x\n")
    return {"type": "rocov2", "name": "rocov2", "path": str(root), "window": ""}


@pytest.mark.parametrize("folder", ["{split}", "{split}_images/{split}", "{split}_images", "images/{split}", "images"])
def test_pairs(tmp_path, folder):
    entry = make_rocov2(tmp_path, folder)
    pairs = datasets.paired_set(entry, "train")
    assert list(pairs.ids) == ["ROCOv2_2023_train_000001", "ROCOv2_2023_train_000002"]
    assert list(pairs.captions) == list(CAPTIONS[:2]) and pairs.missing == ["ROCOv2_2023_train_000003"]
    assert pairs.files[1] == f"{folder.format(split='train')}/ROCOv2_2023_train_000002.jpg"
    assert [pairs.articles.get(i) for i in range(2)] == ["PMC7", None]
    validation = datasets.paired_set(entry, "validation", optional=True)
    assert validation.ids[0] == "ROCOv2_2023_valid_000001" and validation.articles is None


def test_concepts_are_keywords(tmp_path):
    entry = make_rocov2(tmp_path)
    assert datasets.paired_set(entry, "train", subset="mammo").counts["mammo"] == 1
    both = datasets.paired_set(entry, "train", subset="mammo+xray")
    assert both.counts == {"captions": 3, "mammo+xray": 2, "pairs": 2, "without image": 0}
    for name in ("train_concepts.csv", "train_concepts_manual.csv", "cui_mapping.csv", "license_information.csv"):
        (tmp_path / name).unlink()
    assert len(datasets.paired_set(entry, "train", subset="mammo+xray")) == 1


def test_what_is_missing_is_said(tmp_path):
    entry = make_rocov2(tmp_path)
    (tmp_path / "valid_captions.csv").unlink()
    assert datasets.paired_set(entry, "validation", optional=True) is None
    pairs = datasets.paired_set(entry, "train")  # of which nothing is held out
    assert len(pairs) == 2 and pairs.notes["split"] == "the rows of train_captions.csv"
    (tmp_path / "license_information.csv").write_text("ID,Link\n")
    with pytest.raises(InputError, match=r"license_information\.csv: no column 'PMCID', only ID, Link"):
        datasets.paired_set(entry, "train")
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(InputError, match=r"no folder train, train_images/train, .* in it: unpack the images there"):
        datasets.paired_set(entry, "train")
    (tmp_path / "train_captions.csv").unlink()
    with pytest.raises(InputError, match=r"no train_captions\.csv in it"):
        datasets.paired_set(entry, "train")
    with pytest.raises(InputError, match="no such folder"):
        datasets.paired_set({**entry, "path": str(tmp_path / "nowhere")}, "train")
    with pytest.raises(InputError, match="--metadata: is ROCO's"):
        datasets.paired_set(make_rocov2(tmp_path / "again"), "train", metadata="list.txt")
