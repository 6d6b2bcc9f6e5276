"""steps.txt, warnings.txt and the three loggers, read back by their own readers after a run was killed and went on."""

import json
import signal
import struct
import subprocess
import sys
import threading
from argparse import Namespace

import numpy as np
import pytest
import torch

from conftest import REPOSITORY, picture
from data import augment, views
from data.images import as_picture
from scripts import HANG
from test_main import command, log_lines, read_checkpoint, train
import options
from training import loggers, record, relay

TINY = ("--arch", "test_efficientnet", "--epochs", "2", "--batch-size", "4", "--save-every", "4", "--lr", "1e-3")
PATIENT = f"""  # main.py, with as much time for its loggers as a test has; killed at step 9 if KILL is set
import os, signal, sys
sys.path.insert(0, {str(REPOSITORY)!r})
import options
import distributed, main
from training import record
from training.run import Run
record.CLOSING = {HANG}
between_steps = Run.between_steps

def kill(self, number):
    between_steps(self, number)
    if "KILL" in os.environ and self.epoch == 1 and number == 3:
        for one in [*self.record.loggers, self.record.steps]:
            one.drain({HANG})  # all that was sent has been taken
        os.kill(os.getpid(), signal.SIGKILL)

Run.between_steps = kill
distributed.run_script(main.main, options.parse(options.train_parser()))
"""


@pytest.fixture
def patient(tmp_path):
    path = tmp_path / "patient.py"
    path.write_text(PATIENT)
    return path


def steps_of(out):
    return [json.loads(line) for line in (out / "steps.txt").read_text().splitlines()]


def wandb_records(path):
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes, with W&B's own messages in it."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts, found = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # no header fits into what is left of the block
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(Record.FromString(parts))
            parts = b""
    return found


def test_a_killed_run_goes_on_in_the_same_records(roco, tmp_path, scripts, patient):
    """Saved at step 6 of 12, killed at step 9; each record then has every step once, and the weights are the same."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    words = (*command(roco, out, *TINY, "--log-every", "1", "--tensorboard", "--wandb", "--mlflow")[2:],)
    there = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    run = scripts.start(patient, *words, KILL=1, **there)
    assert run.wait() == -signal.SIGKILL, run.output()
    assert read_checkpoint(out / "checkpoint.pt")["step"] == 6
    assert [line["step"] for line in steps_of(out)] == list(range(1, 8))  # two are read later
    with open(out / "steps.txt", "a") as file:
        file.write('{"epoch": 1, "st')
    views_picture = (out / "views.png").read_bytes()
    code, printed, errors = scripts.run(patient, *words, **there)
    assert code == 0 and "going on with" in printed and "left out" not in printed, printed + errors
    lines = steps_of(out)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert {"lr", "loss", "clip_loss", "ssl_loss", "gradient_norm", "logit_scale", "samples_per_s"} <= set(lines[0])
    assert all(line["samples_per_s"] > 0 and 0 <= line["data_wait"] <= 1 for line in lines)
    losses = [(line["step"], line["loss"]) for line in lines]
    recalls = [(line["step"], line["val_i2t_r5"]) for line in log_lines(out)]
    assert [step for step, _ in recalls] == [6, 12]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(out)).Reload()
    for name, expected in (("step/loss", losses), ("val_i2t_r5", recalls)):
        found = [(one.step, one.value) for one in board.Scalars(name)]
        assert found == [(step, np.float32(value)) for step, value in expected]
    (image,) = board.Images("views")
    assert (image.width, image.height) == (96, 128) and image.step == 0

    ids = {path.name.rpartition("-")[2] for path in (out / "wandb").glob("offline-run-*")}
    assert ids == {(out / "wandb_run.txt").read_text().strip()}
    newest = max((out / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    rows = {}
    for one in wandb_records(newest):
        if one.HasField("history"):
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in one.history.item}
            assert rows.setdefault(row["_step"], row) is row  # each step once
    assert [(step, row["step/loss"]) for step, row in sorted(rows.items()) if step] == losses
    assert [(step, row["val_i2t_r5"]) for step, row in sorted(rows.items()) if "val_i2t_r5" in row] == recalls
    assert rows[0]["views._type"] == "image-file" and list(newest.parent.glob("files/media/images/views*.png"))

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'medslip'")
    (stored,) = client.search_runs([experiment.experiment_id])
    assert stored.info.status == "FINISHED" and stored.data.params["arch"] == "test_efficientnet"
    for name, expected in (("step/loss", losses), ("val_i2t_r5", recalls)):
        history = client.get_metric_history(stored.info.run_id, name)
        assert sorted((one.step, one.value) for one in history) == expected
    assert [one.path for one in client.list_artifacts(stored.info.run_id)] == ["views.png"]
    assert (out / "views.png").read_bytes() == views_picture

    code, printed, errors = scripts.run("main.py", *command(roco, whole, *TINY)[2:])
    assert code == 0, errors
    one, two = (read_checkpoint(folder / "checkpoint.pt")["model"] for folder in (out, whole))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert not (whole / "views.png").exists()


def test_a_logger_that_fails_is_left_out(roco, tmp_path, scripts, patient):
    """MLflow's server is gone."""
    out = tmp_path / "out"
    words = command(roco, out, *TINY[:2], "--objective", "simclr", "--epochs", "1", "--log-every", "1", "--mlflow")[2:]
    there = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    code, printed, errors = scripts.run(patient, *words, **there)
    assert code == 0 and printed.count("it is left out from now on, and training goes on") == 1, printed + errors
    assert read_checkpoint(out / "checkpoint.pt")["epoch"] == 1 and len(steps_of(out)) == 3
    (line,) = (out / "warnings.txt").read_text().splitlines()
    assert " WARNING --mlflow: MlflowException: " in line


def test_a_missing_package_is_one_line(roco, tmp_path, capsys, monkeypatch):
    for name in loggers.LOGGERS:
        monkeypatch.setitem(sys.modules, name, None)
        code, _, errors = train(capsys, roco, tmp_path / "out", f"--{name}")
        assert code == 2 and f"pip install {name}" in errors and len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


HANGING = f"""
import atexit, sys, threading
sys.path.insert(0, {str(REPOSITORY)!r})
import options
import distributed
from training import relay
from training.relay import Relay
from utils import InputError

def main(args):
    atexit.register(threading.Event().wait)  # as that of a library which waits for its server
    hangs, well, taken = Relay("hangs", threading.Event), Relay("well", list), []
    for one in (hangs, well):
        one.start()
    hangs.send(lambda event: event.wait())
    well.send(lambda _: taken.append(1))
    relay.close([hangs, well, Relay("never started", list)], lambda _: taken.append(2), 0.5)
    distributed.skip_exit_hooks()
    print(taken, hangs.left_out, well.left_out, flush=True)
    raise InputError("and its exit code is kept")

distributed.run_script(main, None)
"""


def test_a_logger_that_hangs_does_not_keep_the_process(tmp_path, scripts):
    path = tmp_path / "hanging.py"
    path.write_text(HANGING)
    code, printed, errors = scripts.run(path)
    assert code == 2 and errors == "hanging.py: error: and its exit code is kept\n"
    assert "[1, 2] True False" in printed and "hangs: it was not done within 0 s; its record may lack" in printed


def test_one_that_would_exit_is_left_out(caplog):
    one, hold = relay.Relay("exits", list), threading.Event()
    one.start()
    one.send(lambda _: hold.wait() and sys.exit())
    threading.Timer(0.2, hold.set).start()
    one.drain(HANG)  # ends with what it waits for
    assert one.left_out and "exits: SystemExit: " in caplog.text


def test_one_that_lets_calls_wait_is_left_out(monkeypatch, caplog):
    monkeypatch.setattr(relay, "WAITING", 3)
    hold, made = threading.Event(), []
    one = relay.Relay("slow", lambda: made)
    one.start()
    for number in range(10):
        one.send(lambda made, number=number: hold.wait() and made.append(number))
    assert one.left_out and caplog.text.count("has not answered") == 1
    hold.set()
    one.thread.join()
    assert len(made) <= 4


def test_loggers_are_made_before_the_workers_are_forked(tmp_path, monkeypatch):
    """A worker that is forked while a logger starts a process would hold its pipe open."""
    made = []

    class Slow:
        def __init__(self, out, args, resumed):
            made.append(subprocess.run([sys.executable, "-c", "import time; time.sleep(0.3)"]).returncode)

        def close(self, code):
            pass

    monkeypatch.setattr(record.loggers, "LOGGERS", {"tensorboard": Slow})
    words = options.parse(options.train_parser(), ["--tensorboard"])
    update = Namespace(device=torch.device("cpu"), verdicts=Namespace())
    with record.Record(words, tmp_path) as one:
        one.begin(update, 8, 0)
        assert made == [0]


def test_views_are_shown_as_the_loss_sees_them():
    pictures = [as_picture(picture(number, colour=number % 3 == 1)) for number in range(10)]
    batch = views.TrainViews(pictures, None, "simclr", 32, 0).__getitems__([(0, i) for i in range(10)])
    made = augment.make_views(batch, (0.5,) * 3, (0.25,) * 3, torch.device("cpu"))
    shown = record.views_picture(batch)
    assert shown.shape == (8 * 32, 2 * 32, 3)
    for row in range(8):
        for column in range(2):
            tile = shown[row * 32 : (row + 1) * 32, column * 32 : (column + 1) * 32]
            expected = (made[column][row] * 0.25 + 0.5).clamp(0, 1).permute(1, 2, 0) * 255
            assert np.abs(tile - expected.numpy()).max() <= 0.5001
