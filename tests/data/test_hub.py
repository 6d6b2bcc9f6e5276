"""A text model given by name without a network: an answer within seconds, from the hub's cache if that has it."""

import os
import socket
import subprocess
import sys

import pytest
from transformers import BertConfig, BertModel

from conftest import REPOSITORY, put
from forked import make_text_model

# The time is taken inside the process, without its start, of the calls that a run makes; what it computes itself,
# which other processes may delay, is left out.
CODE = """
import sys, time
import models
from data import tokens
def without_delays():  # seconds less those of computing, and of waiting for a core
    queued = int(open("/proc/self/schedstat").read().split()[1]) / 1e9
    return time.monotonic() - time.process_time() - queued
began = without_delays()
for name in sys.argv[1:]:
    for call in (lambda: tokens.load_tokenizer(name), lambda: models.text_encoder(name, pretrained=True)):
        try:
            print("found", type(call()).__name__)
        except Exception as error:
            print(type(error).__name__, error)
print(without_delays() - began)
"""


def ask(home, endpoint, *names):
    """Load each name's tokenizer and weights -> what came of each, and the seconds that were spent waiting."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_ENDPOINT": endpoint}
    words = [sys.executable, "-c", CODE, *names]
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    *lines, waited = done.stdout.splitlines()
    return lines, float(waited)


@pytest.fixture
def silent():
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def refused(lines, endpoint):
    for line, what in zip(lines, ("its tokenizer", "no weights"), strict=True):
        assert line.startswith("InputError --text-model no/model: ") and what in line
        assert f"{endpoint} does not answer, and the hub's cache lacks it" in line and ": give " in line


def test_a_host_that_has_no_address(tmp_path):
    lines, waited = ask(tmp_path, "http://no-such-host.invalid", "no/model")
    refused(lines, "http://no-such-host.invalid")
    assert waited < 5


def test_a_hub_that_is_silent_and_what_its_cache_has(tmp_path, silent):
    source = make_text_model(tmp_path)
    BertModel(BertConfig.from_pretrained(source)).save_pretrained(source)
    put(tmp_path, "some/model", source, "config.json", "vocab.txt", "model.safetensors")
    put(tmp_path, "cut/short", source, "config.json")
    lines, waited = ask(tmp_path, silent, "no/model", "some/model", "cut/short")
    refused(lines[:2], silent)
    assert lines[2:4] == ["found BertTokenizer", "found BertModel"]
    assert "no vocabulary" in lines[4] and "no weights" in lines[5]
    assert waited < 5
