"""The card says what the run's files say: counts, recipe, validation and probes with intervals, and phantoms' name."""

import json

import pytest
import torch
from test_export import checkpoint
from test_report import runs as runs  # a probe with a hostile name

import models
from evaluation.encoder import open_encoder
from tools.model_card import probe, write_card
from tools.samples import Samples
from utils import InputError


@pytest.fixture
def encoder(tmp_path):
    """A run without texts, of a model that began with MedCLIP's weights, in a folder with all that a run writes."""
    model = models.create_model("resnet10t", "simclr", ssl_mlp_dim=16, ssl_emb_dim=8, image_size=32)
    words = {"arch": "resnet10t", "objective": "simclr", "image_size": 32}
    run = tmp_path / "run"
    run.mkdir()
    checkpoint(run / "checkpoint.pt", model, **words)
    contents = torch.load(run / "checkpoint.pt", weights_only=True)
    torch.save({**contents, "epoch": 2, "step": 6}, run / "checkpoint.pt")
    known = {"args": {**contents["args"], "root": "phantoms/roco", "pretrained": "/home/me/slip.pt"}, "world_size": 4}
    counts = {"train": {"pairs": 48, "unreadable": 1}, "validation": {"pairs": 16}}
    (run / "config.json").write_text(json.dumps({**known, "device": "cpu", "versions": {"torch": "2"}, "data": counts}))
    lines = [{"epoch": n, "step": 3 * n + 3, "val_score": 30 + n, "val_i2t_r1": 10.0 + n} for n in range(2)]
    (run / "log.txt").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return open_encoder(run)


def card_of(encoder, folder, *probes) -> str:
    figures = [probe(one, encoder) for one in probes]
    write_card(folder, "medclip", encoder, {"image": 1e-7}, Samples([None] * 8, [], False, "phantoms"), figures)
    return (folder / "README.md").read_text()


def test_what_the_runs_files_say(encoder, runs, tmp_path):
    card = card_of(encoder, tmp_path, runs[0])
    assert "on images without their captions (objective `simclr`)" in card
    assert card.startswith("---\nlicense: other\n") and "clinical use" in card and "MIT licence" in card
    for row in (
        "| train | 48 pairs, 1 unreadable |",
        "| `--pretrained` | slip.pt |",
        "| devices | 4 (cpu) |",
        "| `i2t_r1` | 11 | none |",  # of the checkpoint's own step
    ):
        assert row in card.splitlines()
    assert "/home/me" not in card and "<script>" not in card
    assert card.count("The data are phantoms") == 2  # the training's, and the probe's
    results = json.loads((runs[0] / "results.json").read_text())
    low, high = (100 * one for one in results["ci95"]["auroc"])
    assert f"| auroc | {100 * results['macro']['auroc']:.2f} | {low:.2f} to {high:.2f} |" in card
    assert "none of their figures holds for it" in card and "0 captions, drawn by a program (phantoms)" in card

    retrieval = {"score": 31.0, "metrics": {"i2t_r1": 11.0}, "ci95": {"i2t_r1": [7.5, 14.5]}}
    (encoder.path.parent / "retrieval.json").write_text(json.dumps(retrieval))
    assert "| `i2t_r1` | 11 | 7.5 to 14.5 |" in card_of(encoder, tmp_path)
    (encoder.path.parent / "retrieval.json").write_text(json.dumps({**retrieval, "score": 30.0}))  # of other weights
    assert "| `i2t_r1` | 11 | none |" in card_of(encoder, tmp_path)


def test_a_probe_of_other_weights_is_refused(encoder, runs, tmp_path):
    path = runs[0] / "results.json"
    results = json.loads(path.read_text())
    results["encoder"]["pretrained"] = str(path)
    path.write_text(json.dumps(results))
    with pytest.raises(InputError, match=r"--probes .*: of .*results.json, and not of .*checkpoint.pt"):
        card_of(encoder, tmp_path, runs[0])
    with pytest.raises(InputError, match=r"--probes .*: holds no results.json: give an output folder"):
        probe(tmp_path, encoder)
