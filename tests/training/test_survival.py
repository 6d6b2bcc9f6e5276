"""Runs that are killed, interrupted, damaged or cut off from their disk, and that go on with other micro-batches."""

import contextlib
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import checkpoints
import main
import main_linear
import options
import utils
from conftest import REPOSITORY, run_cli
from evaluation import features
from scripts import HANG, until
from test_main import command, log_lines, read_checkpoint, train
from training import logs, saver
from training.update import Update
from utils import EXIT_INTERRUPTED, InputError


def test_the_same_run_on_other_numbers_of_processes(scripts):
    code, printed, errors = scripts.run("tests/programs/equality.py", "--short")
    assert code == 0 and "every bar is met" in printed, printed + errors


def test_killed_runs_end_with_the_weights_of_undisturbed_ones(scripts):
    code, printed, errors = scripts.run("tests/programs/kill.py", "--sigkill", 1, "--sigterm", 0)
    assert code == 0 and "all ended with the weights" in printed, printed + errors


def signal_after(monkeypatch, owner, name, calls=1, number=signal.SIGTERM):
    """Let this process get a signal at the end of the `calls`-th call of a method: within a run, which catches it."""
    method, count = getattr(owner, name), itertools.count(1)

    def call(*args, **kwargs):
        result = method(*args, **kwargs)
        if next(count) == calls:
            signal.raise_signal(number)
        return result

    monkeypatch.setattr(owner, name, call)


def same_model(one, two):
    one, two = read_checkpoint(one)["model"], read_checkpoint(two)["model"]
    return all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.mark.parametrize(("number", "steps"), [(signal.SIGINT, 4), (signal.SIGUSR1, 3)])
def test_a_signal_ends_a_run_between_two_steps(roco, tmp_path, capsys, monkeypatch, number, steps):
    """After the epoch's first step of three, and after its last."""
    words = ("--epochs", 3, "--lr", "1e-3")
    out = tmp_path / "interrupted"
    with monkeypatch.context() as patch:
        signal_after(patch, Update, "__call__", steps, number)
        code, printed, _ = train(capsys, roco, out, *words)
    assert code == EXIT_INTERRUPTED and f"{number.name}: saved" in printed
    saved = read_checkpoint(out / "checkpoint.pt")
    assert saved["step"] == steps and (saved["epoch"], saved["progress"]["step_in_epoch"]) in ((1, 1), (0, 3))
    code, printed, _ = train(capsys, roco, out, *words)
    assert code == 0 and "going on with" in printed
    assert train(capsys, roco, tmp_path / "whole", *words)[0] == 0
    assert same_model(out / "checkpoint.pt", tmp_path / "whole" / "checkpoint.pt")
    lines, whole = log_lines(out), log_lines(tmp_path / "whole")
    assert [line["train_loss"] for line in lines] == [line["train_loss"] for line in whole]


def living(group: int) -> list[str]:
    """The processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, fields = path.read_text().rsplit(")", 1)
            state, _, its_group = fields.split()[:3]
            if int(its_group) == group and state not in "ZX":
                found.append(name)
    return found


def test_ctrl_c_leaves_no_worker(scripts, roco, tmp_path):
    """A shell's Ctrl-C goes to the whole group, the loader's workers too."""
    out = tmp_path / "out"
    run = scripts.start(*command(roco, out, "--epochs", "500", "--workers", "2")[1:])
    until((out / "log.txt").exists, run)
    assert len(living(run.pid)) >= 3
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait() == EXIT_INTERRUPTED, run.output()
    until(lambda: not living(run.pid))


def test_a_second_signal_ends_at_once(tmp_path):
    code = (
        "import os, signal\n"
        "from training import signals\n"
        "signals.PATIENCE = 1e9\n"
        "with signals.StopRequest() as stop:\n"
        "    signal.raise_signal(signal.SIGTERM); signal.raise_signal(signal.SIGTERM)  # the second is a copy\n"
        "    print(stop.check()[0].name, flush=True)\n"
        "    signals.PATIENCE = 0; signal.raise_signal(signal.SIGUSR1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=HANG)
    assert (done.returncode, done.stdout) == (128 + signal.SIGUSR1, "SIGTERM\n")


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(roco, tmp_path, capsys):
    out = tmp_path / "out"
    assert train(capsys, roco, out, "--epochs", 2)[0] == 0
    latest, previous = out / "checkpoint.pt", out / "checkpoint_previous.pt"
    assert read_checkpoint(previous)["epoch"] == 1
    whole = latest.read_bytes()
    altered = bytearray(whole)
    altered[len(whole) // 2] ^= 1
    for contents in (bytes(altered), whole[:-1000], b""):
        latest.write_bytes(contents)
        code, printed, _ = train(capsys, roco, out, "--epochs", 1)
        assert code == 0 and f"{latest}: cut short or altered" in printed and "going on with the one before" in printed
    previous.write_bytes(previous.read_bytes()[:-1])
    code, _, errors = train(capsys, roco, out, "--epochs", 2)
    assert code == 2 and "there is no other checkpoint" in errors and len(errors.strip().splitlines()) == 1
    with pytest.raises(InputError, match="is damaged"):
        checkpoints.read(previous)


def state(step):
    return {"step": step, "model": {"w": torch.full((3,), float(step)).expand(2, 3).clone()}}


def test_a_disk_that_goes_away_is_tried_again(tmp_path, capsys):
    """A folder that is not there stands for the mount that vanished: the same error from the same call."""
    folder = tmp_path / "run"
    keeper = saver.Saver(folder, (1, None))
    keeper.save(state(1))
    with pytest.raises(InputError, match="step 1 could not be written"):
        keeper.close()
    folder.mkdir()
    keeper.save(state(2), 0.5)
    keeper.save(state(3))
    keeper.close()
    steps = {name: read_checkpoint(folder / name)["step"] for name in (saver.LATEST, saver.PREVIOUS, saver.BEST)}
    assert steps == {saver.LATEST: 3, saver.PREVIOUS: 2, saver.BEST: 2}
    assert keeper.best == 0.5 and len(list(folder.iterdir())) == 3
    assert not keeper.due(3) and keeper.due(4)


def test_best_is_the_score_of_the_file_that_is_there(tmp_path, caplog):
    """Whatever failed before: a folder in the file's place stands for the disk that refuses it."""
    latest, best = tmp_path / saver.LATEST, tmp_path / saver.BEST
    best.mkdir()
    keeper = saver.Saver(tmp_path, (1, None))
    keeper.save(state(1), 0.5)
    assert keeper.is_best(0.4)
    best.rmdir()
    keeper.save(state(2))
    keeper.wait()
    assert read_checkpoint(latest)["best"] is None and not best.exists()
    keeper.save(state(3), 0.4)
    assert not keeper.is_best(0.3)
    keeper.save(state(4), 0.3)
    keeper.wait()
    assert read_checkpoint(latest)["best"] == read_checkpoint(best)["best"] == saver.best_score(tmp_path) == 0.4
    assert read_checkpoint(best)["step"] == 3
    best.unlink()
    assert saver.best_score(tmp_path) is None
    keeper.save(state(5))
    keeper.close()
    assert read_checkpoint(latest)["best"] is None


def test_a_disk_that_was_away_keeps_its_best(tmp_path):
    folder, away = tmp_path / "run", tmp_path / "away"
    folder.mkdir()
    keeper = saver.Saver(folder, (None, None))
    keeper.save(state(1), 0.9)
    keeper.wait()
    folder.rename(away)
    keeper.save(state(2))
    keeper.wait()
    away.rename(folder)
    assert keeper.failure and not keeper.is_best(0.5)
    keeper.save(state(3), 0.5)
    keeper.close()
    assert read_checkpoint(folder / saver.BEST)["step"] == 1
    assert read_checkpoint(folder / saver.LATEST)["best"] == 0.9


def test_a_resumed_run_takes_best_from_its_file(roco, tmp_path, capsys):
    out = tmp_path / "out"
    assert train(capsys, roco, out, "--epochs", 1)[0] == 0
    best = read_checkpoint(out / saver.BEST)
    (out / saver.BEST).unlink()  # the same file as checkpoint.pt
    torch.save({**best, "best": 1000.0}, out / saver.BEST)  # as if killed between the two renames: not checkpoint.pt's
    assert train(capsys, roco, out, "--epochs", 2)[0] == 0
    assert read_checkpoint(out / "checkpoint.pt")["best"] == 1000 and read_checkpoint(out / saver.BEST)["epoch"] == 1
    os.truncate(out / saver.BEST, 1000)
    code, printed, _ = train(capsys, roco, out, "--epochs", 3)
    assert code == 0 and f"{out / saver.BEST}: damaged" in printed
    state = read_checkpoint(out / "checkpoint.pt")
    assert state["best"] == log_lines(out)[-1]["val_score"] == read_checkpoint(out / saver.BEST)["best"]


def test_no_half_line_stays_in_the_log(tmp_path, caplog):
    """A limit on the size of a file stands in for the full disk: the kernel writes half of the line."""
    caplog.set_level("INFO", logger="medslip")
    path = tmp_path / "log.txt"
    log = logs.Log(path)
    log.write({"epoch": 0})
    whole = path.read_text()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 7, limits[1]))
    try:
        log.write({"epoch": 1})
        assert path.read_text() == whole and "its lines wait" in caplog.text
        log.write({"epoch": 2})
        with pytest.raises(InputError, match=r"log\.txt: cannot be written .*2 lines are missing"):
            log.close()
        assert path.read_text() == whole and '{"epoch": 1}\n{"epoch": 2}' in caplog.text
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with open(path, "a") as file:
        file.write('{"epo')  # what remains where the disk was too far gone to cut it off
    log.write({"epoch": 3})
    log.close()
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]


def test_what_was_saved_is_what_was_there(tmp_path):
    keeper = saver.Saver(tmp_path, (None, 60.0))
    one = state(1)
    one["model"]["w"] = torch.zeros(4000, 1000).t()
    one["model"]["small"] = torch.zeros(3)
    keeper.save(one)
    one["model"]["small"].fill_(7)
    keeper.wait_for_copy()
    one["model"]["w"].fill_(7)
    keeper.close()
    assert read_checkpoint(tmp_path / saver.LATEST)["model"]["small"].max() == 0
    assert read_checkpoint(tmp_path / saver.LATEST)["model"]["w"].abs().max() == 0
    assert read_checkpoint(tmp_path / saver.LATEST)["model"]["w"].stride() == (1, 1000)


def test_another_batch_size_keeps_the_global_batch(roco, tmp_path, capsys):
    out = tmp_path / "out"
    assert train(capsys, roco, out, "--epochs", 1)[0] == 0
    code, printed, _ = train(capsys, roco, out, "--epochs", 2, "--batch-size", 4, "--freeze-bn")
    assert code == 0 and "--update-freq is 2" in printed and "a step takes 8 pairs (4 a device" in printed
    assert read_checkpoint(out / "checkpoint.pt")["step"] == 6
    code, _, errors = train(capsys, roco, out, "--epochs", 3, "--batch-size", 5)
    assert code == 2 and "--batch-size 5 does not divide that: 1, 2, 4, 8 would" in errors


def test_an_epoch_is_not_finished_on_other_pairs(roco, tmp_path, capsys, monkeypatch):
    """Between two epochs other pairs are taken and told of; within one they are refused."""
    captions, whole, cut = roco / "train" / "radiology" / "captions.txt", tmp_path / "whole", tmp_path / "cut"
    assert train(capsys, roco, whole, "--epochs", 1)[0] == 0
    with monkeypatch.context() as patch:
        signal_after(patch, Update, "__call__")
        assert train(capsys, roco, cut, "--epochs", 1)[0] == EXIT_INTERRUPTED
    captions.write_text(captions.read_text().replace("mass", "cyst", 1))
    code, printed, _ = train(capsys, roco, whole, "--epochs", 2)
    assert code == 0 and "training pairs are not those" in printed
    code, _, errors = train(capsys, roco, cut, "--epochs", 1)
    assert code == 2 and "training pairs are not those" in errors


def test_an_interrupted_extraction_goes_on(folders, tmp_path, capsys, monkeypatch):
    words = ("--catalog", folders, "--dataset", "imagenet", "--arch", "resnet10t", "--pretrained", "none")
    words += ("--image-size", "32", "--device", "cpu", "--workers", "0", "--batch-size", "1", "--save-every", "1")

    def probe(out):
        return run_cli(capsys, main_linear.main, options.linear_parser, *words, "--output-dir", out)

    out = tmp_path / "interrupted"
    with monkeypatch.context() as patch:
        signal_after(patch, features.Shards, "add", 2)
        code, *_ = probe(out)
    assert code == EXIT_INTERRUPTED
    code, printed, _ = probe(out)
    assert code == 0 and "going on with 2 of 24 batches" in printed
    assert probe(tmp_path / "whole")[0] == 0
    assert (out / "predictions.csv").read_text() == (tmp_path / "whole" / "predictions.csv").read_text()
    assert not (out / "partial_features").exists()


def test_feature_shards_that_do_not_follow_each_other_are_not_joined(tmp_path, monkeypatch):
    def shards(key="a"):
        return features.Shards(tmp_path / "shards", key)

    first = shards()
    for rows in ([0.0, 0.0], [1.0]):
        assert first.add([torch.tensor(rows)]) == []
    assert shards().rows.tolist() == [0, 0, 1]
    shards("b").add([torch.zeros(2)])  # another encoder, ended after one shard
    shards().add([torch.zeros(3)])  # the first again, in longer shards: the old second one does not follow it
    assert shards().rows.tolist() == [0, 0, 0]
    for strange in (None, "rows", torch.zeros(2, 2), torch.zeros(2).half(), torch.zeros(()), torch.zeros(0)):
        utils.save_tensors({"key": "a", "start": 3, "rows": strange}, shards().path())
        assert shards().rows.tolist() == [0, 0, 0]

    def full(*_):
        raise InputError("no room")

    refused = shards("c")
    with monkeypatch.context() as patch:
        patch.setattr(utils, "save_tensors", full)
        kept = refused.add([torch.zeros(1)])
    assert len(kept) == 1
    refused.add([*kept, torch.ones(1)])
    assert shards("c").rows.tolist() == [0, 1]


def test_a_save_that_did_not_happen_is_told_at_the_end(tmp_path, monkeypatch):
    hold = threading.Event()
    write = utils.write_tensors

    def slow(contents, path):
        hold.wait()
        write(contents, path)

    monkeypatch.setattr(utils, "write_tensors", slow)
    monkeypatch.setattr(saver.Saver.wait, "__defaults__", (0.1,))
    keeper = saver.Saver(tmp_path, (1, None))
    keeper.save({"step": 1})
    keeper.save({"step": 2})  # the disk hangs: given up
    hold.set()
    keeper.thread.join()
    with pytest.raises(InputError, match="has not answered"):
        keeper.close()

    def broken(contents, path):
        raise MemoryError

    monkeypatch.setattr(utils, "write_tensors", broken)
    keeper = saver.Saver(tmp_path, (1, None))
    keeper.save({"step": 3})
    keeper.thread.join()
    with pytest.raises(InputError, match="step 3 could not be written"):
        keeper.close()


def test_the_same_command_with_resume_goes_on_with_its_own_checkpoint(roco, tmp_path, capsys):
    words = ["--root", roco, "--arch", "test_efficientnet", "--text-model", "tiny", "--image-size", "32", "--device"]
    words += ["cpu", "--batch-size", "8", "--workers", "0", "--objective", "clip"]

    def train(*more):
        return run_cli(capsys, main.main, options.train_parser, *words, *more)

    assert train("--epochs", "1", "--output-dir", tmp_path / "one")[0] == 0
    more = ("--epochs", "2", "--resume", tmp_path / "one" / "checkpoint.pt", "--output-dir", tmp_path / "two")
    assert f"going on with {tmp_path / 'one'}" in train(*more)[1]
    assert f"{tmp_path / 'two' / 'checkpoint.pt'}: all 2 epochs are done" in train(*more)[1]
