"""tools/predict.py on the probe's own test images, end to end, and on images that are broken."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import main_linear
import models
import options
from conftest import picture, run_cli
from dicom_files import write_dicom

SMALL = "--image-size 32 --device cpu --workers 0 --amp off --batch-size 5".split()


@pytest.fixture
def probed(folders, tmp_path, scripts):
    """The folder of a probe of a checkpoint, its predictions, and the locations of its test images."""
    torch.manual_seed(1)
    model = models.create_model("resnet10t", None, image_size=32)
    torch.save({"model": model.state_dict(), "args": {"arch": "resnet10t"}}, tmp_path / "checkpoint.pt")
    words = ["--catalog", folders, "--dataset", "imagenet", "--arch", "resnet10t", "--output-dir", tmp_path / "probe"]
    code, _, errors = scripts.run("main_linear.py", *words, "--pretrained", tmp_path / "checkpoint.pt", *SMALL)
    assert code == 0, errors
    table = pd.read_csv(tmp_path / "probe" / "predictions.csv")
    return tmp_path / "probe", table, [str(tmp_path / "folders" / "val" / one) for one in table["id"]]


def read(path):
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def test_predictions_are_the_probes_own(probed, tmp_path, scripts):
    """The same bits for the test split's files in their order; calibrated ones keep the prediction."""
    run, table, paths = probed
    columns = ["p_bright", "p_dark"]

    def predict(*words):
        code, printed, errors = scripts.run("tools/predict.py", run, *words, "--device", "cpu", "--workers", "1")
        return code, printed, errors

    code, _, errors = predict(*paths, "--uncalibrated", "--out", tmp_path / "plain.csv")
    assert code == 0 and "no medical device" in errors
    plain = read(tmp_path / "plain.csv")
    assert list(plain) == ["image", "predicted", *columns] and list(plain["image"]) == paths
    assert (plain[columns].to_numpy() == table[columns].to_numpy()).all()
    assert list(plain["predicted"]) == list(table["predicted"])

    # A folder, a table and a DICOM file; broken ones in between; the checkpoint at another place.
    scan = write_dicom(tmp_path / "scan.dcm", np.asarray(picture(91)).astype(np.uint16))
    more = tmp_path / "more"
    more.mkdir()
    (more / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.fromarray(np.asarray(picture(90)) // 3 + 90).save(more / "good.png")
    pd.DataFrame({"picture of": paths[:2]}).to_csv(tmp_path / "table.csv", index=False)
    (tmp_path / "checkpoint.pt").rename(tmp_path / "moved.pt")
    sources = [more, tmp_path / "table.csv", scan]
    code, _, errors = predict(*sources, "--out", tmp_path / "all.csv")
    assert code == 2 and "checkpoint.pt: the checkpoint that" in errors and "--weights" in errors
    moved = ("--weights", tmp_path / "moved.pt", "--out", tmp_path / "all.csv")
    code, _, errors = predict(*sources, *moved, "--image-column", "picture of")
    assert code == 2 and "broken.png" in errors and len(errors.splitlines()) == 1
    code, _, errors = predict(*sources, *moved, "--skip-broken", "--image-column", "picture of")
    assert code == 0, errors
    found = read(tmp_path / "all.csv")
    assert [name.rpartition("/")[2] for name in found["image"]] == [
        "broken.png",
        "good.png",
        "0.png",
        "1.png",
        "scan.dcm",
    ]
    assert "broken.png" in found["error"][0] and found["error"][1:].isna().all()
    assert "--skip-broken" not in found["error"][0]
    assert found.loc[0, ["predicted", *columns]].isna().all() and found.loc[1:, columns].notna().all(axis=None)
    results = json.loads((run / "results.json").read_text())
    odds = np.log(table["p_bright"][:2] / table["p_dark"][:2]) / results["calibration"]["temperature"]
    assert found["p_bright"][2:4].to_numpy() == pytest.approx(1 / (1 + np.exp(-odds)), abs=1e-5)
    code, _, errors = predict(*sources, *moved)
    assert code == 2 and "is there already" in errors


def test_several_findings(folders, tmp_path, capsys, scripts):
    """A probability a finding, those of predictions.csv without a calibration; nothing where there is no probe."""
    rows = [
        (str(path.relative_to(tmp_path)), "dark" in str(path)) for path in sorted(tmp_path.glob("folders/*/*/*.png"))
    ]
    table = pd.DataFrame({
        "image": [path for path, _ in rows], "split": ["train" if "train" in path else "test" for path, _ in rows],
        "Dark": [int(dark) for _, dark in rows], "Odd": [i % 2 for i in range(len(rows))], "Never": 0,
    })  # fmt: skip
    table.to_csv(tmp_path / "table.csv", index=False)
    entry = {"path": "table.csv", "type": "table", "labels": "Dark,Odd,Never", "split": "split"}
    (tmp_path / "findings.json").write_text(json.dumps({"mine": entry}))
    words = [
        "--catalog",
        tmp_path / "findings.json",
        "--dataset",
        "mine",
        "--arch",
        "resnet10t",
        "--pretrained",
        "none",
    ]
    words += ["--probe", "logistic", "--output-dir", tmp_path / "probe", *SMALL]
    code, _, errors = run_cli(capsys, main_linear.main, options.linear_parser, *words)
    assert code == 0, errors
    for name, more in (("plain", ["--uncalibrated"]), ("calibrated", [])):
        words = [tmp_path / "probe", *table["image"][table["split"] == "test"], *more, "--device", "cpu"]
        out = ["--workers", "0", "--out", tmp_path / f"{name}.csv"]
        code, _, errors = scripts.run("tools/predict.py", *words, *out, cwd=tmp_path)
        assert code == 0, errors
    before = read(tmp_path / "probe" / "predictions.csv")
    plain, found = read(tmp_path / "plain.csv"), read(tmp_path / "calibrated.csv")
    assert list(plain) == ["image", "p_Dark", "p_Odd", "p_Never"] and plain["p_Never"].isna().all()
    assert (plain[["p_Dark", "p_Odd"]] == before[["p_Dark", "p_Odd"]]).all(axis=None)
    assert found["p_Never"].isna().all() and (found["p_Odd"] != plain["p_Odd"]).all()
    assert (found["p_Odd"].rank() == plain["p_Odd"].rank()).all()
