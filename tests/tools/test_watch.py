"""tools/watch.py on the files of a real run: what it says of them at each of the run's ends, and whom it answers."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time

import pytest

from data import lock
from scripts import until
from test_main import log_lines, train
from tools.watch_page.state import POINTS, STAMP, curves, read_state

TINY = ("--arch", "test_efficientnet", "--objective", "simclr", "--log-every", "1")


@pytest.fixture
def folder(roco, tmp_path, capsys):
    """A run of two epochs of three steps."""
    assert train(capsys, roco, tmp_path / "run", *TINY, "--epochs", 2)[0] == 0
    return tmp_path / "run"


def say(folder, level, text, at=None):
    with open(folder / "warnings.txt", "a") as file:
        file.write(f"{time.strftime(STAMP, time.localtime(at))} {level} {text}\n")


def test_what_is_said_of_a_run(folder, tmp_path):
    found = read_state(folder)
    assert (found["state"], found["step"], found["steps"], found["epoch"], found["epochs"]) == ("finished", 6, 6, 2, 2)
    losses = [[line["epoch"] + 1, line["train_loss"]] for line in log_lines(folder)]
    assert found["by_epoch"]["train_loss"] == losses and len(found["by_step"]["gradient_norm"]) == 6
    with open(folder / "steps.txt", "ab") as file:
        file.write('{"epoch": 2, "step": 7, "loss": NaN}\n{"epoch": 2, "step": 8, "text": "ä'.encode()[:-1])
    assert read_state(folder)["step"] in (0, 6, 7)  # half a letter: read again when it is whole
    (folder / "steps.txt").write_bytes((folder / "steps.txt").read_bytes() + b"\xa4\n")
    assert read_state(folder)["step"] == 7 and len(read_state(folder)["by_step"]["loss"]) == 6
    json.dumps(found, allow_nan=False)

    say(folder, "FAILED", "the last checkpoint cannot be written")
    assert read_state(folder)["state"] == "failed"  # though all epochs are done
    (folder / "warnings.txt").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["args"]["epochs"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    assert read_state(folder)["state"] == "gone"  # neither a lock nor a word
    say(folder, "FAILED", "of an earlier process", at=0)
    assert read_state(folder)["state"] == "gone"
    say(folder, "INTERRUPTED", "SIGTERM")
    assert read_state(folder)["state"] == "interrupted"
    say(folder, "FAILED", "the disk is gone")
    say(folder, "WARNING", "--mlflow: left out")
    found = read_state(folder)
    assert found["state"] == "failed" and found["warnings"][-2]["text"] == "the disk is gone"
    with lock.Lock(folder, "--output-dir"):
        found = read_state(folder)
        assert found["state"] == "running" and found["owner"]["lives"] and found["rate"] > 0 and found["left"] > 0
    dead = subprocess.Popen(["true"])
    dead.wait()
    (folder / ".lock").write_text(json.dumps({**lock.myself(), "pid": dead.pid}))
    found = read_state(folder)
    assert found["state"] == "failed" and found["owner"]["lives"] is False
    assert read_state(tmp_path / "later")["state"] == "waiting"
    for contents in ('{"args": ', '{"args": []}', '{"args": {"epochs": "2"}}', "[" * 100_000):  # half written, no run's
        (folder / "config.json").write_text(contents)
        assert read_state(folder)["state"] == "waiting"
    with open(folder / "steps.txt", "ab") as file:  # damaged by the disk
        file.write(b'\xff\xfe\n{"epoch": 2, "step": -1}\n{"epoch": 2, "step": 9, "x": 1' + b"0" * 400 + b"}\n")
    assert read_state(folder)["step"] == 9


def test_long_curves_are_thinned_to_means():
    lines = [{"epoch": 0, "step": step, "loss": float(step % 2)} for step in range(1, 10 * POINTS + 1)]
    found = curves(lines, lambda line: line["step"], POINTS)["loss"]
    assert len(found) == POINTS and found[-1] == [10 * POINTS, 0.5]


def ask(port, path, host=None):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.headers


def test_the_server(folder, tmp_path, scripts):
    say(folder, "WARNING", "</script><script>alert(1)</script>")
    run = scripts.start("tools/watch.py", folder, tmp_path / "later", "--port", "0")
    port = int(until(lambda: re.search(r"127\.0\.0\.1:(\d+) shows", run.out.read_text()), run)[1])
    code, page, headers = ask(port, "/")
    assert code == 200 and "default-src 'none'" in headers["Content-Security-Policy"]
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|https?://(?!www\.w3\.org/2000/svg)", page)
    code, data, _ = ask(port, "/data.json", "localhost:9000")  # as through a tunnel
    assert code == 200 and [one["state"] for one in json.loads(data)] == ["finished", "waiting"]
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "[::2]", "["):
        assert ask(port, "/data.json", host)[0] == 403
    for path in ("/config.json", "/../config.json", "/data.json?x", f"{folder}/config.json"):
        assert ask(port, path)[0] == 404
    with socket.socket() as other:
        other.connect(("127.0.0.1", port))  # one that says nothing keeps nobody from being answered
        assert ask(port, "/data.json")[0] == 200
    code, _, errors = scripts.run("tools/watch.py", folder, "--port", port)
    assert code == 2 and f"--port {port}: Address already in use" in errors and len(errors.splitlines()) == 1
    os.kill(run.pid, signal.SIGINT)
    assert run.wait() == 0 and run.err.read_text() == ""
    code, _, errors = scripts.run("tools/watch.py", folder, "--once", tmp_path / "page.html")
    assert code == 0, errors
    page = (tmp_path / "page.html").read_text()
    assert page.count("</script>") == 2 and "\\u003c/script>" in page
