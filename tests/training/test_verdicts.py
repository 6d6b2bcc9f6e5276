"""A caption whose token has a huge embedding overflows in the text tower: its losses are not finite."""

import math

import pytest
import torch

import utils
from conftest import make_roco
from data.tokens import from_json
from datasets import roco_table
from test_main import command, log_lines, read_checkpoint, train
from training.verdicts import Verdicts


@pytest.fixture(scope="module")
def trained(script_server, tmp_path_factory):
    """The checkpoint of a run, and the captions that it was trained on."""
    folder = tmp_path_factory.mktemp("trained")
    root = make_roco(folder / "roco")
    code, _, errors = script_server.run(*command(root, folder / "run", "--epochs", "1")[1:])
    assert code == 0, errors
    return read_checkpoint(folder / "run" / "checkpoint.pt"), roco_table(root)


def overflowing(trained, path, everywhere: bool):
    """Save weights whose text tower overflows on one caption, or on all -> their path, and the id of the caption."""
    contents, table = trained
    tokenizer = from_json(contents["tokenizer"])
    tokens = [set(tokenizer(caption)["input_ids"]) for caption in table["caption"]]
    counts = {one: sum(one in row for row in tokens) for row in tokens for one in row}
    special = set(tokenizer.all_special_ids)
    token = next(
        one for one, n in sorted(counts.items()) if n == (len(tokens) if everywhere else 1) and one not in special
    )
    name = "text_encoder.embeddings.word_embeddings.weight"
    weight = contents["model"][name].clone()
    weight[token] = 3e38
    torch.save({"model": {**contents["model"], name: weight}, "tokenizer": contents["tokenizer"]}, path)
    return path, next(key for key, row in zip(table["id"], tokens, strict=True) if token in row)


def test_a_run_stops_and_says_where(trained, roco, tmp_path, capsys):
    path, guilty = overflowing(trained, tmp_path / "huge.pt", everywhere=False)
    out = tmp_path / "out"
    code, _, errors = train(capsys, roco, out, "--epochs", 2, "--pretrained", path, "--lr", "1e-3")
    assert code == 2 and len(errors.strip().splitlines()) == 1
    for words in ("epoch 0, step ", "clip_loss nan", "lr ", "logit scale 14.", f"without finite features: {guilty}; "):
        assert words in errors
    (file,) = out.glob("nonfinite_step*.pt")
    batch = read_checkpoint(file)
    assert guilty in batch["ids"] and not batch["finite_features"][batch["ids"].index(guilty)]
    assert len(batch["ids"]) == 8 and {"gray", "colour", "params", "input_ids"} <= set(batch["batches"][0])
    assert not (out / "checkpoint.pt").exists()


def test_a_step_is_left_out_and_counted(trained, roco, tmp_path, capsys):
    path, guilty = overflowing(trained, tmp_path / "huge.pt", everywhere=False)
    out = tmp_path / "out"
    skip = ("--pretrained", path, "--on-nonfinite", "skip", "--eval-freq", 9, "--lr", "1e-3")
    code, printed, errors = train(capsys, roco, out, "--epochs", 1, *skip)
    assert "the step was left out (1 so far)" in printed and guilty in printed
    # The validation meets the token too, or does not: only training is looked at.
    assert code == 0 or "validation embeddings are not finite" in errors
    if code == 0:
        (line,) = log_lines(out)
        assert line["skipped_steps"] == 1 and line["train_loss"] > 0
        state = read_checkpoint(out / "checkpoint.pt")
        assert all(value.isfinite().all() for value in state["model"].values())
        # Two of three steps were taken.
        assert {float(one["step"]) for one in state["optimizer"]["state"].values()} == {2.0}


def test_ten_in_a_row_end_the_run(trained, roco, tmp_path, capsys):
    path, _ = overflowing(trained, tmp_path / "huge.pt", everywhere=True)
    skip = ("--pretrained", path, "--on-nonfinite", "skip", "--eval-freq", 9)
    code, printed, errors = train(capsys, roco, tmp_path / "out", "--epochs", 4, *skip)
    assert code == 2 and "10 steps in a row were left out" in errors and printed.count("was left out") == 9


FAST = ("--arch", "test_vit", "--image-size", "32")  # fp16 convolutions are slow on the CPU


def half_precision(monkeypatch):
    """Let main.py train in fp16 on the CPU, with the scaler that a GPU has: both work there, only slowly."""
    monkeypatch.setattr(utils, "amp_dtype", lambda choice, device: torch.float16)


def test_gradients_that_overflow_at_any_scale_end_the_run(roco, tmp_path, capsys, monkeypatch):
    """The loss is finite, and its gradient too large for fp16."""
    half_precision(monkeypatch)
    out = tmp_path / "out"
    code, _, errors = train(capsys, roco, out, "--epochs", 8, "--eval-freq", 9, "--ssl-scale", "1e9", *FAST)
    assert code == 2 and len(errors.strip().splitlines()) == 1
    for words in ("epoch 5, step 16: gradient norm ", "lr ", "loss scale 1; ", "samples of the first device: ROCO_"):
        assert words in errors
    assert "--amp bf16 or --amp off" in errors and "lower --lr" in errors and "--clip-grad" in errors
    (file,) = out.glob("nonfinite_step*.pt")
    numbers = read_checkpoint(file)["numbers"]
    assert numbers["loss"] < float("inf") and numbers["loss scale"] == 1
    assert [line["overflow_steps"] for line in log_lines(out)] == [3, 6, 9, 12, 15]  # from 2^16 down to 2


def test_overflows_that_a_lower_scale_cures_are_counted(roco, tmp_path, capsys, monkeypatch):
    half_precision(monkeypatch)
    norms, judge = [], Verdicts.judge

    def keep(self, found):
        norms.append(found.numbers["gradient norm"])
        judge(self, found)

    monkeypatch.setattr(Verdicts, "judge", keep)
    out = tmp_path / "out"
    words = ("--eval-freq", 9, "--objective", "simclr", *FAST)
    code, _, errors = train(capsys, roco, out, "--epochs", 3, *words)
    assert code == 0, errors
    state = read_checkpoint(out / "checkpoint.pt")
    overflows, scale = state["progress"]["overflows"], state["scaler"]["scale"]
    assert 0 < overflows < 9 and scale == 2.0**16 / 2**overflows and state["progress"]["skipped"] == 0
    assert log_lines(out)[-1]["overflow_steps"] == overflows and "skipped_steps" not in log_lines(out)[-1]
    # The norm that comes back is the gradient's own, which clipping compares with its bound, whatever the scale.
    first = next(norm for norm in norms if math.isfinite(norm))
    norms.clear()
    assert train(capsys, roco, tmp_path / "clipped", "--epochs", 3, "--clip-grad", "1e9", *words)[0] == 0
    assert first in norms

    contents = read_checkpoint(out / "checkpoint.pt")
    del contents["progress"]["overflows"]  # as written before it was counted
    torch.save(contents, out / "checkpoint.pt")
    code, _, errors = train(capsys, roco, out, "--epochs", 4, *words)
    assert code == 0, errors
    assert read_checkpoint(out / "checkpoint.pt")["progress"]["overflows"] < overflows
