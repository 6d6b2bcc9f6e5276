"""The two scripts on a small open_clip model in BiomedCLIP's layout, and on others."""

import json
import shutil

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from conftest import run_cli
from openclip_layout import opened_by_open_clip, publish
from PIL import Image

import main
import main_linear
import options

SYSTEM = ("--device", "cpu", "--workers", "0", "--amp", "off", "--cache", "none")
PROMPTS = {"dark": ["a dark picture", "the Dark x-ray, of a chest"], "bright": ["benign", "a bright mammogram"]}
CLIP = ("--batch-size", "8", "--ssl-mlp-dim", "8", "--ssl-emb-dim", "8")


def probe(capsys, out, catalog, *more):
    words = ("--output-dir", out, "--catalog", catalog, "--dataset", "imagenet", *SYSTEM, *more)
    return run_cli(capsys, main_linear.main, options.linear_parser, *words)


def train(capsys, root, out, *more):
    words = ("--root", root, "--output-dir", out, *SYSTEM, *CLIP, *more)
    return run_cli(capsys, main.main, options.train_parser, *words)


@torch.no_grad()
def zero_shot_of_open_clip(folder, ids, root) -> np.ndarray:
    """Probabilities (N, 2) of "bright" and "dark", as open_clip's own zero-shot has them."""
    model, transform, tokenize = opened_by_open_clip(folder)
    pixels = torch.stack([transform(Image.open(root / name)) for name in ids])
    classes = [
        torch.nn.functional.normalize(model.encode_text(tokenize(PROMPTS[name]), normalize=True).mean(0), dim=0)
        for name in ("bright", "dark")
    ]
    logits = model.get_logits(pixels, tokenize(["a"]))[0][:, 0]  # its scale and bias, of another text
    assert logits.shape == (len(ids),)
    scores = model.logit_scale.exp() * model.encode_image(pixels, normalize=True) @ torch.stack(classes, dim=1)
    return scores.softmax(dim=1).numpy()


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts.json").write_text(json.dumps({"sets": {"imagenet": PROMPTS}}))
    return "--prompts", tmp_path / "prompts.json", "--probe", "zeroshot"


def predicted(out) -> tuple[list[str], np.ndarray]:
    table = pd.read_csv(out / "predictions.csv")
    return list(table["id"]), table[["p_bright", "p_dark"]].to_numpy()


@pytest.mark.parametrize("kind", ["biomedclip", "native", "siglip"])
def test_zero_shot_is_open_clips(kind, folders, prompts, tmp_path, capsys):
    folder = publish(kind, tmp_path / "model")
    code, _, errors = probe(capsys, tmp_path / "out", folders, "--arch", f"open_clip:local-dir:{folder}", *prompts)
    assert code == 0, errors
    ids, found = predicted(tmp_path / "out")
    expected = zero_shot_of_open_clip(folder, ids, tmp_path / "folders" / "val")
    assert np.abs(found - expected).max() < 1e-5
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["selected"]["logit_scale"] == pytest.approx(np.exp(3.1))


def test_a_training_begins_with_its_embeddings_and_needs_the_folder_no_more(roco, folders, prompts, tmp_path, capsys):
    folder, run = publish("biomedclip", tmp_path / "model", safe=False), tmp_path / "run"
    arch = ("--arch", f"open_clip:local-dir:{folder}")
    still = ("--lr", "0", "--lr-start", "0", "--lr-end", "0", "--wd", "0", "--objective", "clip")
    code, _, errors = train(capsys, roco, run, *arch, *still, "--epochs", "1")
    assert code == 0, errors
    args = json.loads((run / "config.json").read_text())["args"]
    assert (args["image_size"], args["context_length"], args["normalize"]) == (160, 256, "published")
    assert args["published"]["mean"] == list(open_clip.OPENAI_DATASET_MEAN)
    expected = zero_shot_of_open_clip(folder, *some(tmp_path))
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "model-text")
    checkpoint = ("--pretrained", run / "checkpoint.pt")
    code, _, errors = probe(capsys, tmp_path / "zero", folders, *checkpoint, *prompts)
    assert code == 0, errors
    assert np.abs(predicted(tmp_path / "zero")[1] - expected).max() < 1e-5
    code, _, errors = probe(capsys, tmp_path / "logistic", folders, *checkpoint)
    assert code == 0, errors
    results = json.loads((tmp_path / "logistic" / "results.json").read_text())
    assert results["run"]["args"]["features"] == "projected"
    code, printed, errors = train(capsys, roco, run, *arch, *still, "--evaluate")
    assert code == 0 and "i2t_r1" in printed, errors
    code, printed, errors = train(capsys, roco, run, *still, "--epochs", "2")
    assert code == 0 and "1 epochs done" in printed, errors
    state = torch.load(run / "checkpoint.pt", weights_only=True)["model"]
    assert {key.split(".")[0] for key in state} == {
        *("image_encoder", "image_projection", "text_encoder", "text_projection", "logit_scale")
    }


def some(tmp_path):
    root = tmp_path / "folders" / "val"
    names = [f"{name}/{number}.png" for name in ("bright", "dark") for number in range(6)]
    return names, root


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("biomedclip", ("--objective", "slip", "--lock-text", "--grad-checkpointing", "--update-freq", "2")),
        ("native", ("--objective", "slip", "--lock-image", "--image-size", "96")),
        ("siglip", ("--objective", "clip", "--context-length", "24", "--freeze-bn")),
        ("resnet", ("--objective", "simclr")),
        ("native", ("--objective", "clip", "--pretrained", "none", "--context-length", "20")),
    ],
)
def test_every_objective_trains_from_it(kind, more, roco, folders, tmp_path, capsys):
    folder = publish(kind, tmp_path / "model")
    words = ("--arch", f"open_clip:local-dir:{folder}", "--epochs", "1", *more)
    code, _, errors = train(capsys, roco, tmp_path / "run", *words)
    assert code == 0, errors
    (line,) = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert np.isfinite(json.loads(line)["train_loss"])
    shown = ("--pretrained", tmp_path / "run" / "checkpoint.pt", "--probe", "knn", "--features", "pooled")
    code, _, errors = probe(capsys, tmp_path / "out", folders, *shown)
    assert code == 0, errors


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--text-model", "tiny"), "has a text tower of its own: leave out --text-model"),
        (("--text-pooling", "padded"), "has a text tower of its own: leave out --text-model and --text-pooling"),
        (("--pretrained", "open_clip:openai"), "are its own, leave it out"),
        (("--pretrained", "medclip"), "--pretrained medclip has weights for medclip_vit"),
        (("--pretrained", "no.pt"), "no.pt: no such checkpoint"),
        (("--context-length", "78"), "has positions for 77 tokens"),
        (("--grad-checkpointing",), "ModifiedResNet cannot recompute"),
        (("--image-size", "96"), "takes images of 64 pixels alone"),
        (("--arch", "open_clip:local-dir:no/folder"), "--arch open_clip:local-dir:no/folder: no such folder"),
        (("--arch", "open_clip:RN5"), "open_clip has no such model: it has RN50"),
        (("--arch", "resnet10t", "--pretrained", "open_clip:openai"), "has no weights for --arch resnet10t"),
    ],
)
def test_bad_input(more, message, roco, tmp_path, capsys):
    folder = publish("resnet", tmp_path / "model")
    code, _, errors = train(capsys, roco, tmp_path / "run", "--arch", f"open_clip:local-dir:{folder}", *more)
    assert code == 2 and message in errors and len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_weights_of_another_file(roco, folders, prompts, tmp_path, capsys):
    first, second = publish("native", tmp_path / "first"), publish("native", tmp_path / "second", seed=2)
    words = ("--arch", f"open_clip:local-dir:{first}", "--pretrained", second / "open_clip_model.safetensors")
    code, _, errors = probe(capsys, tmp_path / "out", folders, *words, *prompts)
    assert code == 0, errors
    ids, found = predicted(tmp_path / "out")
    assert np.abs(found - zero_shot_of_open_clip(second, ids, tmp_path / "folders" / "val")).max() < 1e-5
    other = publish("resnet", tmp_path / "other")
    words = ("--arch", f"open_clip:local-dir:{first}", "--pretrained", other / "open_clip_model.safetensors")
    code, _, errors = probe(capsys, tmp_path / "out2", folders, *words, *prompts)
    assert code == 2 and "(open_clip layout) does not fit --arch" in errors and len(errors.splitlines()) == 1
