"""main_linear.py: its files, its numbers against scikit-learn, its choice of hyperparameters, and bad input."""

import functools
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score
from transformers import SwinConfig

import datasets
import main_linear
import models
import options
from conftest import run_cli
from evaluation import audit, features, metrics
from towers import swin

SMALL = ("--arch", "resnet10t", "--pretrained", "none", "--image-size", "32", "--device", "cpu", "--workers", "0")


def probe(capsys, out, *more):
    return run_cli(capsys, main_linear.main, options.linear_parser, "--output-dir", out, *SMALL, *more)


@pytest.mark.parametrize("which", ["logistic", "sgd", "knn"])
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
    assert {"auroc", "ece", "brier", "MALIGNANT.sensitivity_at_80_specificity"} < set(results["ci95"])
    for name, value in metrics.flat(results).items():
        low, high = results["ci95"][name]
        assert low <= value <= high or name in ("ece", "brier"), name
    found = results["audit"]
    assert found["patients_in_both"] == 0 and found["patients_across_tasks"] is not None
    assert found["several_cases_of_an_image"]["train"]["images"] >= 0 and found["near_duplicates"]["bits"] == 6
    assert len(results["hardest"]) == 12
    worst = table.iloc[[list(table["id"]).index(one["id"]) for one in results["hardest"]]]
    assert [one["p_label"] for one in results["hardest"]] == pytest.approx(
        [row[f"p_{row['label']}"] for _, row in worst.iterrows()]
    )
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


def test_flipped_features_are_those_of_flipped_images(folders, tmp_path, monkeypatch):
    """The published recipe at 384 pixels with a narrow Swin: what was kept equals encoding the flipped files anew."""
    narrow = functools.partial(SwinConfig, embed_dim=24, depths=[1] * 4, num_heads=[1, 1, 2, 2])
    monkeypatch.setattr(swin, "SwinConfig", narrow)
    model = models.create_model("medclip_vit", None, image_size=384).requires_grad_(False).eval()
    args = options.parse(
        options.linear_parser(), ["--probe", "medslip", "--amp", "off", "-b", "2", "--image-size", "384", "-j", "0"]
    )
    args.arch, args.normalize, args.features, args.pretrained = "medclip_vit", "imagenet", "projected", "none"
    data = datasets.labelled_set(datasets.find_entry(folders, "imagenet"), "train")
    keep = [0, 5, 20]
    ids, paths = [data.ids[i] for i in keep], [data.images[i] for i in keep]
    some = datasets.Labelled(ids, data.labels[keep], data.classes, None, paths, "squash")

    class Stay:
        def check(self):
            return False

    device = torch.device("cpu")
    kept = features.extract(model, some, some, args, device, None, tmp_path / "partial", Stay(), flips=True)
    assert kept.shape == (3, 4, 512)
    mean, std = (torch.tensor(one)[:, None, None] for one in models.MEAN_STD["imagenet"])
    for row, path in enumerate(some.images):
        for number, operations in enumerate(
            ((), (Image.Transpose.FLIP_LEFT_RIGHT,), (Image.Transpose.FLIP_TOP_BOTTOM,), (Image.Transpose.ROTATE_180,))
        ):
            image = Image.open(path).convert("RGB").resize((384, 384), Image.BILINEAR)
            for operation in operations:
                image = image.transpose(operation)
            pixels = (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255 - mean) / std
            with torch.no_grad():
                anew = model.encode_image(pixels[None])[0]
            assert (kept[row, number] - anew).norm() < 1e-5 * anew.norm()


def test_published_recipe(folders, tmp_path, capsys):
    words = ("--catalog", folders, "--dataset", "imagenet", "--probe", "medslip", "--name", "x")
    code, printed, errors = probe(capsys, tmp_path / "out", *words)
    assert code == 0, errors
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["selected"]["label"] == "medslip recipe" and results["encoder"]["name"] == "x (medslip recipe)"
    assert results["run"]["args"]["normalize"] == "imagenet"
    assert "--image-size 32: the published recipe has 384" in printed
    saved = torch.load(tmp_path / "out" / "features.pt", weights_only=True)
    assert saved["train"]["features"].shape == (24, 4, 512) and saved["test"]["features"].shape == (12, 512)


def test_zero_shot(roco, folders, tmp_path, capsys):
    import main

    words = ["--root", roco, "--text-model", "tiny", "--ssl-mlp-dim", "8", "--batch-size", "8", "--epochs", "1"]
    words += ["--output-dir", tmp_path / "run", "--cache", "none", *SMALL, "--arch", "test_efficientnet"]
    code, _, errors = run_cli(capsys, main.main, options.train_parser, *words)
    assert code == 0, errors
    shown = ["--output-dir", tmp_path / "out", "--catalog", folders, "--dataset", "imagenet", "--probe", "zeroshot"]
    shown += ["--pretrained", tmp_path / "run" / "checkpoint.pt", "--device", "cpu", "--workers", "0"]
    code, _, errors = run_cli(capsys, main_linear.main, options.linear_parser, *shown)
    assert code == 0, errors
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["selected"]["probe"] == "zeroshot" and results["selected"]["prompts"] == 10
    (tmp_path / "p.json").write_text('{"sets": {"imagenet": {"dark": ["a"], "light": ["b"]}}}')
    code, _, errors = run_cli(capsys, main_linear.main, options.linear_parser, *shown, "--prompts", tmp_path / "p.json")
    assert code == 2 and "p.json: the prompts of 'imagenet' must be lists of texts for bright, dark" in errors
    code, _, errors = probe(
        capsys, tmp_path / "o", "--catalog", folders, "--dataset", "imagenet", "--probe", "zeroshot"
    )
    assert code == 2 and "has no text tower" in errors


NEAREST_MEAN = """
import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import softmax

from evaluation.probes import Probe


class NearestMean(Probe):
    recipe = {"image_size": 64}
    squash = True

    def fit(self, rows, data, args):
        present = np.unique(data.labels)
        means = np.stack([rows[data.labels == k].mean(axis=0) for k in present])

        def predict(unseen):
            probabilities = np.zeros((len(unseen), len(data.classes)))
            probabilities[:, present] = softmax(-cdist(unseen, means), axis=1)
            return probabilities

        return predict, {"distance": "euclidean"}
"""


def test_a_new_probe_is_a_file_and_a_line(folders, tmp_path, capsys, monkeypatch):
    (tmp_path / "nearest_mean.py").write_text(NEAREST_MEAN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(options.PROBES, "nearest_mean", "nearest_mean:NearestMean")
    words = ("--catalog", folders, "--dataset", "imagenet", "--probe", "nearest_mean")
    code, printed, errors = probe(capsys, tmp_path / "out", *words)
    assert code == 0, errors
    results, _ = check_against_scikit_learn(tmp_path / "out")
    assert results["macro"]["auroc"] > 0.95  # bright against dark
    assert results["selected"] == {"probe": "nearest_mean", "distance": "euclidean"}
    assert "--image-size 32: the published recipe has 64" in printed


def test_pooled_tasks_share_patients(phantoms, tmp_path, capsys):
    words = ("--root", phantoms / "cbis", "--dataset", "cbis_pooled")
    found = audit_of(phantoms)
    code, _, errors = probe(capsys, tmp_path / "out", *words)
    if found["either"] == 0:
        assert code == 0, errors
        return
    assert code == 2 and f"{found['either']} patients are in the training and in the test split" in errors
    code, printed, errors = probe(capsys, tmp_path / "out", *words, "--allow-leakage")
    assert code == 0, errors
    assert f"patients in both: {found['either']}" in printed


def audit_of(phantoms):
    return audit.across_tasks({"path": str(phantoms / "cbis"), "type": "cbis"})
