"""The order in which a run's parts begin and end."""

import json
import signal
import threading

import pytest
import torch

import main
import utils
from evaluation import retrieval
from scripts import HANG
from test_main import read_checkpoint, train
from training import signals
from training.run import Run
from utils import InputError


def test_a_run_that_lost_its_folder_during_an_evaluation_does_not_save(roco, tmp_path, capsys, monkeypatch):
    """As when a process was suspended for so long that another one took the folder over."""
    opened, evaluate = [], retrieval.evaluate

    def evaluate_for_long(*args):
        results = evaluate(*args)
        owner = {"host": "another", "pid": 1, "start": None, "boot": None, "namespace": None, "token": "other"}
        (tmp_path / "out" / ".lock").write_text(json.dumps(owner))
        opened[0].held.touched = 0.0
        return results

    begin = Run.begin
    monkeypatch.setattr(Run, "begin", lambda self, *args: opened.append(self) or begin(self, *args))
    monkeypatch.setattr(retrieval, "evaluate", evaluate_for_long)
    code, _, errors = train(capsys, roco, tmp_path / "out", "--epochs", 1)
    assert code == 2 and "has taken it over" in errors
    assert not list((tmp_path / "out").glob("*.pt"))


def test_an_error_waits_for_the_save_that_is_under_way(roco, tmp_path, capsys, monkeypatch):
    """Else the thread that writes would meet the interpreter's end, and the save be lost."""
    write, failed = utils.write_tensors, threading.Event()

    def slow(contents, path):
        assert failed.wait(HANG)
        write(contents, path)

    def between_steps(self, step_in_epoch):
        self.saver.save(self.state(step_in_epoch))
        self.stack.callback(failed.set)  # called first of all that is closed
        raise InputError("the disk of the images is gone")

    monkeypatch.setattr(utils, "write_tensors", slow)
    monkeypatch.setattr(Run, "between_steps", between_steps)
    code, _, errors = train(capsys, roco, tmp_path / "out", "--epochs", 1)
    assert code == 2 and "the disk of the images is gone" in errors
    assert read_checkpoint(tmp_path / "out" / "checkpoint.pt")["step"] == 1


def test_signals_are_caught_from_the_first_step_on(roco, tmp_path, capsys, monkeypatch):
    """A signal during the build of the training cache, which may take an hour, ends the process at once."""
    seen, open_training = [], main.open_training

    def look(*args):
        seen.append(signal.getsignal(signal.SIGTERM))
        return open_training(*args)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(main, "open_training", look)
    monkeypatch.setattr(Run, "end_epoch", lambda self, *_: seen.append(signal.getsignal(signal.SIGTERM)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(capsys, roco, tmp_path / "out", "--epochs", 1)
    assert seen[0] == before and isinstance(seen[1].__self__, signals.StopRequest)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_that_is_done_reads_no_data(roco, tmp_path, capsys):
    assert train(capsys, roco, tmp_path / "out", "--epochs", 1)[0] == 0
    state = read_checkpoint(tmp_path / "out" / "checkpoint.pt")
    code, printed, _ = train(capsys, tmp_path / "nowhere", tmp_path / "out", "--epochs", 1)
    assert code == 0 and "all 1 epochs are done; raise --epochs to go on" in printed
    again = read_checkpoint(tmp_path / "out" / "checkpoint.pt")
    assert all(torch.equal(value, again["model"][name]) for name, value in state["model"].items())
