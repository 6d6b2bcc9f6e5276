"""The audit of splits, on small trees and arrays."""

import shutil

import numpy as np
import pytest
from PIL import Image

import datasets
from conftest import picture
from data import roco
from evaluation import audit
from utils import InputError


def labelled(images, ids=None, patients=None):
    ids = ids or [str(one) for one in images]
    return datasets.Labelled(ids, np.zeros(len(ids), int), ["a", "b"], patients, [str(one) for one in images], "squash")


def test_shared_patients_are_refused():
    entry = {"name": "mine", "type": "filelist"}
    train, test = labelled("abcd", patients=["p1", "p1", "p2", "p3"]), labelled("efg", patients=["p3", "p4", "p3"])
    with pytest.raises(InputError, match=r"mine: 1 patients are in the training and in the test split \(p3; 2 of 3"):
        audit.shared_patients(entry, train, test, allow_leakage=False)
    assert audit.shared_patients(entry, train, test, allow_leakage=True) == 1
    assert audit.shared_patients(entry, labelled("ab"), test, allow_leakage=False) is None


def test_abnormalities_of_one_mammogram():
    entry = {"name": "cbis_calc", "type": "cbis"}
    ids = ["Calc-Training_P_00005_RIGHT_CC_1", "Calc-Training_P_00005_RIGHT_CC_2", "Calc-Training_P_00005_RIGHT_MLO_1"]
    data = labelled(["1.jpg", "2.jpg", "3.jpg"], ids)
    assert audit.several_cases(entry, data) == {"images": 1, "cases": 2}
    other = labelled(["4.jpg"], ["Mass-Test_P_00005_RIGHT_CC_1"])
    assert audit.image_names(entry, data) & audit.image_names(entry, other) == {"P_00005_RIGHT_CC"}


def test_near_duplicates_are_found(tmp_path):
    """A picture re-saved, made smaller and brighter is found; 40 others are not."""
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 9), dtype=np.uint8)
        Image.fromarray(pixels).resize((300, 260), Image.BICUBIC).save(tmp_path / f"{number}.png")
    copy = Image.open(tmp_path / "3.png").resize((221, 190)).point(lambda value: 20 + value * 0.8)
    copy.save(tmp_path / "copy.jpg", quality=60)
    train = labelled([tmp_path / f"{number}.png" for number in range(40)], [str(number) for number in range(40)])
    test = labelled([tmp_path / "copy.jpg"], ["copy"])
    found = audit.near_duplicates(train, test)
    assert (found["train_test"], found["train_train"], found["test_test"]) == (1, 0, 0)
    assert found["closest"][0]["train"] == "3" and found["closest"][0]["test"] == "copy"


def test_close_pairs_by_hand():
    first, second = np.array([0, 0xFF, 2**63], np.uint64), np.array([1, 2**64 - 1], np.uint64)
    rows, columns, distances = audit.close_pairs(first, second, block=2)
    assert [*zip(rows.tolist(), columns.tolist(), distances.tolist(), strict=True)] == [(0, 0, 1), (2, 0, 2)]


def test_articles(tmp_path):
    """Of four validation pairs one is of an article that is trained on, by either file; one is unknown."""
    for split in ("train", "validation"):
        (tmp_path / split / "radiology").mkdir(parents=True)
    rows = "ROCO_ID,PMC_ID,CC\nROCO_00001,PMC100_a-g01.jpg,CC BY\nROCO_00002,PMC200_b.jpg,CC BY\n"
    (tmp_path / "train" / "radiology" / "licences.txt").write_text(rows)
    links = "".join(
        f"ROCO_0000{n}\tftp://example.org/oa_package/1{n}/PMC{article}.tar.gz\tfile-g00{n}.jpg\n"
        for n, article in ((5, 100), (6, 300), (7, 300))
    )
    (tmp_path / "validation" / "radiology" / "dlinks.txt").write_text(links)
    named = roco.articles(tmp_path, [f"ROCO_0000{n}" for n in (5, 6, 7, 8)])
    ours = [named.get(i) for i in range(4)]
    assert ours == ["PMC100", "PMC300", "PMC300", None]
    assert roco.articles(tmp_path, ["ROCO_00008"]) is None
    disjoint, counts = audit.shared_articles(ours, {"PMC100", "PMC200"})
    assert disjoint.tolist() == [False, True, True, False]
    assert counts["validation_articles"] == 2 and counts["also_in_training"] == 1 and counts["article_unknown"] == 1


def test_disjoint_retrieval_is_logged(roco_with_articles, tmp_path, capsys):
    import json

    import main
    import options
    from conftest import run_cli

    small = "--arch test_efficientnet --text-model tiny --pretrained none --image-size 32 --ssl-mlp-dim 8"
    words = ["--root", roco_with_articles, "--output-dir", tmp_path / "out", "--workers", 0, *small.split()]
    words += ["--batch-size", "8", "--cache", "none", "--epochs", "1", "--device", "cpu"]
    code, printed, errors = run_cli(capsys, main.main, options.train_parser, *words)
    assert code == 0, errors
    assert "2 of 4 validation articles (50.0%) have training images too; 4 of 8 pairs are of other articles" in printed
    line = json.loads((tmp_path / "out" / "log.txt").read_text())
    assert (0 <= line["val_disjoint_i2t_r1"] <= 100 and line["val_disjoint_i2t_r5"] == 100) or line["val_pairs"] == 8
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["data"]["articles"]["article_disjoint_pairs"] == 4
    code, _, errors = run_cli(capsys, main.main, options.train_parser, *words, "--evaluate")
    assert code == 0, errors
    report = json.loads((tmp_path / "out" / "retrieval.json").read_text())
    assert report["metrics"]["i2t_r1"] == line["val_i2t_r1"]
    assert report["metrics"]["disjoint_t2i_r1"] == line["val_disjoint_t2i_r1"]
    good, bad = report["examples"]["good"], report["examples"]["bad"]
    assert len(good) == len(bad) == 5 and good[0]["rank"] <= bad[0]["rank"]
    assert len(report["ranks"]["i2t"]) == 8 and report["ranks"]["ids"][0] == "ROCO_50000"
    low, high = report["ci95"]["i2t_r5"]
    assert low <= report["metrics"]["i2t_r5"] <= high and report["metrics"]["alignment"] >= 0


@pytest.fixture
def roco_with_articles(roco):
    """Two pairs an article; the first two validation articles are training's."""
    for split, first, count in (("train", 0, 24), ("validation", 50_000, 8)):
        lines = ["ROCO_ID,PMC_ID,CC"]
        for number in range(count):
            article = number // 2 + (0 if split == "train" or number < 4 else 1000)
            lines.append(f"ROCO_{first + number:05d},PMC{article}_fig{number}.jpg,CC BY")
        (roco / split / "radiology" / "licences.txt").write_text("\n".join(lines) + "\n")
    return roco


def test_a_tree_without_the_other_task(phantoms, tmp_path):
    shutil.copytree(phantoms / "cbis", tmp_path / "cbis", symlinks=True)
    for split in ("train", "test"):
        (tmp_path / "cbis" / "csv" / f"mass_case_description_{split}_set.csv").unlink()
    assert audit.across_tasks({"path": str(tmp_path / "cbis"), "type": "cbis"}) is None


def test_hash_of_a_flat_picture():
    assert audit.perceptual_hash(np.zeros((40, 50), np.uint8)) == 0
    assert audit.perceptual_hash(np.asarray(picture(3))) != 0
