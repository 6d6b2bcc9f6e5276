"""main_linear.py: its files, its numbers against scikit-learn, its choice of hyperparameters, and bad input."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import run_cli
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

import main_linear
import models
import options

SMALL = ("--arch", "resnet10t", "--pretrained", "none", "--image-size", "32", "--device", "cpu", "--workers", "0")


def probe(capsys, out, *more):
    return run_cli(capsys, main_linear.main, options.linear_parser, "--output-dir", out, *SMALL, *more)


@pytest.mark.parametrize("which", ["logistic", "sgd"])
def test_image_folder(folders, tmp_path, capsys, which):
    out = tmp_path / "out"
    words = ("--catalog", folders, "--dataset", "imagenet", "--probe", which, "--batch-size", "5")
    code, printed, errors = probe(capsys, out, *words)
    assert code == 0, errors
    results = json.loads((out / "results.json").read_text())
    assert results["macro"]["auroc"] > 0.95  # bright against dark
    assert results["n_train"] == 24 and results["n_test"] == 12 and results["selected"]["probe"] == which
    row = printed.split("Recall (Malignant) |\n")[1].splitlines()[1]
    assert row.startswith("| resnet10t (none) | ") and row.endswith(" | N/A | N/A |")
    features = torch.load(out / "features.pt", weights_only=True)
    assert features["train"]["features"].shape == (24, 512) and features["classes"] == ["bright", "dark"]
    for name in ("roc.png", "confusion.png"):
        assert (out / name).stat().st_size > 5000


def check_against_scikit_learn(out):
    results = json.loads((out / "results.json").read_text())
    table = pd.read_csv(out / "predictions.csv", keep_default_na=False)
    classes = results["classes"]
    probabilities = table[[f"p_{name}" for name in classes]].to_numpy()
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert (table["predicted"] == np.array(classes)[probabilities.argmax(axis=1)]).all()
    aurocs = [roc_auc_score(table["label"] == name, probabilities[:, k]) for k, name in enumerate(classes)]
    assert results["macro"]["auroc"] == pytest.approx(np.mean(aurocs), abs=1e-12)
    for name, function in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        both = {"labels": classes, "zero_division": 0}
        macro = function(table["label"], table["predicted"], average="macro", **both)
        each = function(table["label"], table["predicted"], average=None, **both)
        assert results["macro"][name] == pytest.approx(macro, abs=1e-12)
        assert [results["per_class"][one][name] for one in classes] == pytest.approx(list(each), abs=1e-12)
    return results, table


@pytest.mark.parametrize("task", ["calc", "mass"])
def test_cbis_phantoms(phantoms, tmp_path, capsys, task):
    out = tmp_path / "out"
    code, printed, errors = probe(capsys, out, "--root", phantoms / "cbis", "--dataset", f"cbis_{task}")
    assert code == 0, errors
    results, table = check_against_scikit_learn(out)
    assert results["classes"] == ["MALIGNANT", "BENIGN", "BENIGN_WITHOUT_CALLBACK"]
    assert set(results["ci95"]) == {"auroc", "f1", "precision", "recall"}
    low, high = results["ci95"]["auroc"]
    assert low <= results["macro"]["auroc"] <= high
    assert table["patient"].str.startswith("P_").all() and len(table) == results["n_test"]
    assert "N/A" not in printed


def test_the_encoder_is_frozen_and_in_eval_mode(folders, tmp_path, capsys, monkeypatch):
    made = []
    create = models.create_model
    monkeypatch.setattr(models, "create_model", lambda *args, **kwargs: made.append(create(*args, **kwargs)) or made[0])
    torch.manual_seed(0)
    before = create("resnet10t", None, image_size=32).state_dict()
    assert probe(capsys, tmp_path / "out", "--catalog", folders, "--dataset", "imagenet")[0] == 0
    (model,) = made
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_pooled_features_and_settings_of_the_checkpoint(folders, tmp_path, capsys):
    model = models.create_model("resnet10t", "simclr", ssl_mlp_dim=8, ssl_emb_dim=8)
    args = {"arch": "resnet10t", "normalize": "medclip", "image_size": 48}
    torch.save({"model": model.state_dict(), "args": args, "epoch": 1}, tmp_path / "c.pt")
    words = ["--output-dir", tmp_path / "out", "--catalog", folders, "--dataset", "imagenet", "--features", "pooled"]
    words += ["--pretrained", tmp_path / "c.pt", "--device", "cpu", "--workers", "0"]
    code, _, errors = run_cli(capsys, main_linear.main, options.linear_parser, *words)
    assert code == 0, errors
    used = json.loads((tmp_path / "out" / "results.json").read_text())["run"]["args"]
    assert (used["arch"], used["normalize"], used["image_size"]) == ("resnet10t", "medclip", 48)
    code, _, errors = run_cli(capsys, main_linear.main, options.linear_parser, *words, "--arch", "resnet18")
    assert code == 2 and "a checkpoint of --arch resnet10t, but --arch resnet18" in errors


def test_folds_keep_patients_together():
    """Each patient's two images are alike and labels are random: folds that split patients would look far better."""
    rng = np.random.default_rng(0)
    once = rng.normal(size=(60, 40))
    labels = np.repeat(rng.integers(0, 2, 60), 2)
    features = np.repeat(once, 2, axis=0) + 0.01 * rng.normal(size=(120, 40))

    class Data:
        pass

    Data.classes, Data.labels, Data.patients = ("a", "b"), labels, [f"p{i // 2}" for i in range(120)]
    args = options.parse(options.linear_parser(), [])
    _, grouped = main_linear.fit_logistic(features, Data, args)
    Data.patients = None
    _, split = main_linear.fit_logistic(features, Data, args)
    assert grouped["cv_log_loss"] > 0.6 > 0.45 > split["cv_log_loss"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--dataset", "cbis_calc", "--root", "nowhere"), "nowhere: no such folder"),
        (("--dataset", "unknown"), "no entry 'unknown'"),
        (("--dataset", "roco", "--root", "."), "captions and no classes"),
        (("--pretrained", "absent.pt"), "absent.pt: no such checkpoint"),
        (("--arch", "resnet10x", "--dataset", "imagenet", "--catalog", "catalog.json"), "--arch resnet10x: neither"),
    ],
)
def test_bad_input(folders, tmp_path, capsys, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    code, _, errors = probe(capsys, tmp_path / "out", *more)
    assert code == 2 and message in errors and len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
