"""main.py as its users run it: files written, resuming after a kill, evaluation, two processes, and bad input."""

import json
import sys

import pytest
import torch
from torch.distributed import run

import main
import options
from conftest import make_roco, run_cli

# The smallest encoder with batch norms: a run of resnet10t takes three times the CPU.
SMALL = (
    *("--arch", "test_efficientnet", "--text-model", "tiny", "--pretrained", "none", "--image-size", "32"),
    *("--device", "cpu", "--batch-size", "8", "--ssl-mlp-dim", "16", "--ssl-emb-dim", "8", "--workers", "0"),
    "--disable-amp",
)


def train(capsys, root, out, *more):
    return run_cli(capsys, main.main, options.train_parser, "--root", root, "--output-dir", out, *SMALL, *more)


def read_checkpoint(path):
    return torch.load(path, weights_only=True)


def log_lines(out):
    return [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]


def test_a_run_writes_its_files_and_goes_on(roco, tmp_path, capsys):
    out = tmp_path / "out"
    code, printed, _ = train(capsys, roco, out, "--epochs", 2, "--lr", "1e-3")
    assert code == 0 and "weights: random" in printed and "24 pairs, 2 without image" in printed
    state = read_checkpoint(out / "checkpoint.pt")
    keys = {"epoch", "step", "model", "optimizer", "scaler", "rng", "best", "args", "tokenizer", "progress"}
    assert set(state) == keys and state["epoch"] == 2 and state["step"] == 6
    assert not any(key.startswith("module.") for key in state["model"])
    assert state["args"]["arch"] == "test_efficientnet"
    lines = log_lines(out)
    assert [line["epoch"] for line in lines] == [0, 1]
    assert {"train_loss", "train_clip_loss", "train_ssl_loss", "val_i2t_r1", "val_t2i_r10", "lr"} <= set(lines[0])
    assert lines[0]["train_loss"] == pytest.approx(lines[0]["train_clip_loss"] + lines[0]["train_ssl_loss"], rel=1e-5)
    assert state["best"] == max(line["val_score"] for line in lines)
    best = read_checkpoint(out / "checkpoint_best.pt")
    assert best["best"] == state["best"]
    config = json.loads((out / "config.json").read_text())
    assert config["args"]["epochs"] == 2 and config["versions"]["torch"] and config["data"]["train"]["pairs"] == 24
    assert (out / "missing_images_train.txt").read_text() == "ROCO_00024\nROCO_00025\n"

    code, printed, _ = train(capsys, roco, out, "--epochs", 2, "--lr", "1e-3")
    assert code == 0 and "going on with" in printed and "all 2 epochs are done" in printed
    code, printed, _ = train(capsys, roco, out, "--epochs", 3, "--lr", "1e-3")
    assert code == 0 and "the run began with 2" in printed
    assert [line["epoch"] for line in log_lines(out)] == [0, 1, 2]

    code, printed, _ = train(capsys, roco, out, "--evaluate", "--resume", out / "checkpoint.pt")
    found = json.loads(printed.strip().splitlines()[-1])
    assert found["i2t_r5"] == pytest.approx(log_lines(out)[-1]["val_i2t_r5"])

    code, _, errors = train(capsys, roco, out, "--objective", "clip")
    assert code == 2 and "made with --objective slip, not clip" in errors


def command(root, out, *more):
    words = ("main.py", "--root", root, "--output-dir", out, *SMALL, *more)
    return [sys.executable, *(str(word) for word in words)]


@pytest.mark.parametrize("more", [("--objective", "clip", "--update-freq", "2", "--clip-grad", "1", "--lock-text"),
                                  ("--objective", "simclr", "--lock-image"),
                                  ("--grad-checkpointing", "--text-pooling", "padded", "--amp", "bf16")])  # fmt: skip
def test_objectives_and_switches(roco, tmp_path, capsys, more):
    out = tmp_path / "out"
    code, _, errors = train(capsys, roco, out, "--epochs", 1, *more)
    assert code == 0, errors
    (line,) = log_lines(out)
    assert ("train_clip_loss" in line) == ("simclr" not in more) and ("val_loss" in line) == ("simclr" in more)
    assert (out / "checkpoint_best.pt").exists()


def test_without_validation_split(tmp_path, capsys):
    root = make_roco(tmp_path / "roco", train=8, validation=0, absent=0)
    (root / "validation" / "radiology" / "captions.txt").unlink()
    code, printed, _ = train(capsys, root, tmp_path / "out", "--epochs", 1)
    assert code == 0 and "no validation split" in printed and not (tmp_path / "out" / "checkpoint_best.pt").exists()
    code, _, errors = train(capsys, root, tmp_path / "out", "--evaluate")
    assert code == 2 and "no validation split" in errors


def test_pretrained_brings_its_tokenizer(roco, tmp_path, capsys):
    assert train(capsys, roco, tmp_path / "one", "--epochs", 1)[0] == 0
    first = tmp_path / "one" / "checkpoint.pt"
    other = make_roco(tmp_path / "other", train=9, absent=0)
    code, printed, errors = train(capsys, other, tmp_path / "two", "--epochs", 1, "--pretrained", first)
    assert code == 0 and "MedSLIP layout" in printed, errors
    assert read_checkpoint(tmp_path / "two" / "checkpoint.pt")["tokenizer"] == read_checkpoint(first)["tokenizer"]


def test_two_processes(scripts, roco, tmp_path):
    """torchrun on gloo: one global batch from both ranks, retrieval over both ranks' shares, one checkpoint."""
    out = tmp_path / "out"
    words = ("--standalone", "--nproc_per_node=2", *command(roco, out, "--epochs", "1", "--batch-size", "4")[1:])
    code, printed, errors = scripts.run(run.__file__, *words)
    assert code == 0, errors
    assert "a step takes 8 pairs (4 a device x 2 devices x 1)" in printed
    assert printed.count("weights: random") == 1
    (line,) = log_lines(out)
    assert line["val_pairs"] == 8
    assert not any(key.startswith("module.") for key in read_checkpoint(out / "checkpoint.pt")["model"])


def test_a_full_disk_leaves_the_last_checkpoint_whole(roco, tmp_path, capsys, scripts):
    """A limit on the size of a file stands in for the full disk: the kernel refuses the write in the same place."""
    out = tmp_path / "out"
    assert train(capsys, roco, out, "--epochs", 1)[0] == 0
    before = (out / "checkpoint.pt").read_bytes()
    code, _, errors = scripts.run(*command(roco, out, "--epochs", "2")[1:], largest_file=2_000_000)
    assert code == 2 and len(errors.strip().splitlines()) == 1
    assert "could not be written" in errors and "is whole" in errors
    assert (out / "checkpoint.pt").read_bytes() == before
    assert not list(out.glob(".*.tmp"))


def cut_image(root):
    path = root / "train" / "radiology" / "images" / "ROCO_00003.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    return path


BAD = [
    (lambda root: None, ("--root", "nowhere"), r"nowhere: no such folder"),
    (lambda root: (root / "train/radiology/captions.txt").write_text(""), (), "captions.txt: holds no captions"),
    (cut_image, (), "ROCO_00003.jpg: the image cannot be read"),
    (lambda root: (root / "train/radiology/captions.txt").write_text("../x a\n"), (), "row 1: '../x' is not an id"),
    (lambda root: None, ("--arch", "resnet10x"), "--arch resnet10x: neither"),
    (lambda root: None, ("--batch-size", "25"), "24 training pairs are fewer than one step takes"),
    (lambda root: None, ("--text-model", "no/such-model"), "--text-model no/such-model: its tokenizer"),
    (lambda root: None, ("--resume", "absent.pt"), "absent.pt: no such checkpoint"),
    (lambda root: None, ("--device", "warp"), "--device warp"),
    (lambda root: None, ("--dataset", "cbis_calc"), "main.py takes type 'roco'"),
    (lambda root: (root / "file").write_text(""), ("--output-dir", "file/out"), "cannot be made"),
]


@pytest.mark.parametrize(("damage", "more", "message"), BAD)
def test_bad_input_is_one_line_and_leaves_nothing(roco, tmp_path, capsys, monkeypatch, damage, more, message):
    monkeypatch.chdir(roco)
    damage(roco)
    out = tmp_path / "out"
    code, _, errors = train(capsys, roco, out, *more)
    assert code == 2 and message in errors and len(errors.strip().splitlines()) == 1
    assert not out.exists()


def test_broken_images_are_left_out_on_request(roco, tmp_path, capsys):
    path = cut_image(roco)
    code, printed, _ = train(capsys, roco, tmp_path / "out", "--epochs", 1, "--skip-broken")
    assert code == 0 and "1 unreadable" in printed
    assert (tmp_path / "out" / "unreadable_images_train.txt").read_text() == f"{path}\n"


def test_an_image_that_breaks_later_stops_the_run_with_its_name(roco, tmp_path, capsys):
    """Damage inside the file passes the check of its ends; the worker's error must reach the user all the same."""
    path = roco / "train" / "radiology" / "images" / "ROCO_00003.jpg"
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\x00" * (len(data) - 6) + data[-2:])
    for workers in ("0", "2"):
        code, _, errors = train(capsys, roco, tmp_path / "out", "--epochs", 1, "--workers", workers)
        assert code == 2 and "ROCO_00003.jpg: the image cannot be read" in errors
        assert len(errors.strip().splitlines()) == 1
