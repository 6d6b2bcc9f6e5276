"""main_linear.py: its files, its numbers against scikit-learn, its choice of hyperparameters, and bad input."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

import datasets
import main_linear
import models
import options
from conftest import run_cli
from evaluation import audit, features, metrics, probes, zeroshot
from utils import InputError

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
    _, grouped = probes.Logistic().fit(features, Data, args)
    Data.patients = None
    _, split = probes.Logistic().fit(features, Data, args)
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


def test_flipped_features_are_those_of_flipped_images(folders, tmp_path, capsys):
    """The published recipe at 384 pixels with MedCLIP's Swin: what was kept equals encoding the flipped files anew."""
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


def test_published_recipe_step_by_step():
    """15 epochs in order, AdamW at 6.25e-5, a cosine restarted every 5 steps, two linear layers; written out here."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(37, 4, 6)).astype(np.float32)
    labels = rng.integers(0, 3, 37)

    class Data:
        pass

    Data.classes, Data.labels = ("a", "b", "c"), labels
    args = options.parse(options.linear_parser(), ["--probe", "medslip", "--seed", "4"])
    predict, _ = probes.PublishedRecipe().fit(table, Data, args)
    torch.manual_seed(4)
    first, second = torch.nn.Linear(6, 1024), torch.nn.Linear(1024, 3)
    optimizer = torch.optim.AdamW([*first.parameters(), *second.parameters()], lr=1e-3)
    step = 0
    flipped = 0
    for epoch in range(15):
        which = probes.draw_flips(37, epoch, 4)
        flipped += np.stack([which % 2, which // 2]).mean(axis=1) / 15
        for start in range(0, 37, 16):
            optimizer.param_groups[0]["lr"] = 6.25e-5 * (1 + np.cos(np.pi * (step % 5) / 5)) / 2
            rows = torch.tensor(np.array([table[i, which[i]] for i in range(start, min(start + 16, 37))]))
            loss = torch.nn.functional.cross_entropy(second(first(rows)), torch.tensor(labels[start : start + 16]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    expected = second(first(torch.from_numpy(table[:, 0]))).softmax(dim=1).detach().numpy()
    assert np.abs(predict(table[:, 0]) - expected).max() < 1e-5
    assert np.abs(flipped - 0.3).max() < 0.06


def test_knn_by_hand():
    """Ten directions of two classes; the nearest by angle, whatever the lengths."""
    angles = np.concatenate([np.linspace(0, 0.5, 10), np.linspace(1.0, 1.5, 10)])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.random.default_rng(0).uniform(1, 9, (20, 1))

    class Data:
        pass

    Data.classes, Data.labels, Data.patients = ("a", "b"), np.repeat([0, 1], 10), None
    args = options.parse(options.linear_parser(), ["--probe", "knn"])
    predict, selected = probes.Neighbours().fit(rows.astype(np.float32), Data, args)
    assert selected["cv_auroc"] == 1 and selected["k"] in probes.NEIGHBOURS
    assert (predict(np.array([[9, 1], [0.1, 1]], np.float32)).argmax(axis=1) == [0, 1]).all()


def test_zero_shot(roco, folders, tmp_path, capsys):
    import main

    words = ["--root", roco, "--text-model", "tiny", "--ssl-mlp-dim", "8", "--batch-size", "8", "--epochs", "1"]
    words += ["--output-dir", tmp_path / "run", "--cache", "none", *SMALL]
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


STRANGE = ['{"sets": []}', '{"sets": 3}', "[" * 100_000, "[]", '{"templates": ["{}\\ud800"]}']


@pytest.mark.parametrize("contents", STRANGE, ids=range(len(STRANGE)))
def test_prompts_that_are_none(tmp_path, contents):
    (tmp_path / "p.json").write_text(contents)
    with pytest.raises(InputError, match=r"p\.json"):
        zeroshot.read_prompts(tmp_path / "p.json", "imagenet", ["a", "b"])


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
