"""The report of a run and a probe that the two scripts made: what the losses saw, and where the encoder looks."""

import json
import re
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import datasets
import main as training
import models
from data import augment
from data.batches import EpochBatches
from tools import report
from tools.report_page.cases import case_groups
from tools.report_page.pictures import as_image, overlay
from tools.report_page.runs import read_probe, read_training
from tools.report_page.sample_views import sample_views
from utils import InputError

SMALL = ("--arch", "resnet10t", "--pretrained", "none", "--image-size", "64", "--workers", "0", "--amp", "off")


@pytest.fixture
def run(scripts, roco, tmp_path):
    words = ("--root", roco, *SMALL, "--text-model", "tiny", "--epochs", "1", "--batch-size", "8", "--seed", "3",
             "--cache", "none", "--ssl-mlp-dim", "16")  # fmt: skip
    code, _, errors = scripts.run("main.py", *words, "--output-dir", tmp_path / "run")
    assert code == 0, errors
    return tmp_path / "run"


def test_a_report_of_a_run_and_its_probe(scripts, run, phantoms, tmp_path):
    probe = run / "calc"
    words = ("--dataset", "cbis_calc", "--root", phantoms / "cbis", "--pretrained", run / "checkpoint.pt")
    code, _, errors = scripts.run("main_linear.py", *words, "--workers", "0", "--amp", "off", "--output-dir", probe)
    assert code == 0, errors

    # The views are those of the training's own loader, in whose order the samples come.
    found = sample_views(read_training(run))
    assert [one["id"] for one in found] == ["ROCO_00000", "ROCO_00012", "ROCO_00023"]
    assert found[1]["caption"] == "Mammogram showing a fracture number 12." and found[1]["path"].endswith("12.jpg")
    args = Namespace(**json.loads((run / "config.json").read_text())["args"])
    pairs = datasets.paired_set(datasets.find_entry(args.catalog, args.dataset, args.root), "train")
    batches = EpochBatches(len(pairs), 8, 1, 0, 1, args.seed)
    seen = {}
    with training.open_training(args, pairs, None, batches, torch.device("cpu")) as loader:
        for batch in loader:
            views = augment.make_views(batch, *models.pixel_statistics(args), torch.device("cpu"))
            seen |= {int(i): [view[row] for view in views] for row, i in enumerate(batch["sample"])}
    for i, one in zip((0, 12, 23), found, strict=True):
        assert [name for name, _, _ in one["views"]] == ["CLIP", "SimCLR 1", "SimCLR 2"]
        for (_, _, image), pixels in zip(one["views"], seen[i], strict=True):
            assert np.array_equal(image, as_image(pixels, *models.pixel_statistics(args)))

    # What the encoder looks at, of the cases asked for.
    results = read_probe(probe)
    groups, note = case_groups(results, 2)
    assert [len(group["mapped"]) for group in groups] == [2, 2] and "A map of 2 x 2 cells" in note
    for group, kind in zip(groups, ("hardest", "easiest"), strict=True):
        assert [one["id"] for one in group["mapped"] + group["others"]] == [one["id"] for one in results[kind]]
        for one in group["mapped"]:
            roles = ["predicted, rightly"] if one["label"] == one["predicted"] else ["predicted", "actual"]
            assert [re.search(r"\((.*?)\)", words)[1] for words, _ in one["maps"]] == roles

    def make(**changed) -> str:
        given = {"runs": [run, probe], "out": tmp_path / "r.html", "title": "x", "baseline": (), "resamples": 200}
        report.main(SimpleNamespace(**given, **changed))
        return (tmp_path / "r.html").read_text()

    page = make(cam=2)
    assert page.count("Grad-CAM of test case") == sum(len(one["maps"]) for group in groups for one in group["mapped"])
    assert page.count("view of ROCO") == 9 and not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page)
    assert "Grad-CAM" not in make(cam=0)

    # Without the checkpoint, or after the captions have changed, the page says so and holds all else.
    (run / "checkpoint.pt").rename(run / "moved.pt")
    captions = tmp_path / "roco" / "train" / "radiology" / "captions.txt"
    captions.write_text(captions.read_text().replace("number 7", "number seven"))
    page = make(cam=2)
    assert "Where the encoder looks is not shown: " in page and "checkpoint.pt: the checkpoint that" in page
    assert "its pairs are not those that the run was trained on" in page and "Hardest test cases" in page
    with pytest.raises(InputError, match="no such folder"):
        sample_views(read_training(run) | {"args": vars(args) | {"root": str(tmp_path / "gone")}})


def test_an_overlay_leaves_the_picture_where_there_is_no_heat():
    picture = as_image(torch.rand(3, 32, 32), (0.0,) * 3, (1.0,) * 3)
    heat = np.zeros((4, 4))
    heat[3, 3] = 1
    before, after = (np.asarray(one).astype(int) for one in (picture, overlay(picture, heat)))
    assert np.array_equal(before[:16, :16], after[:16, :16]) and abs(before - after)[28:, 28:].mean() > 20
