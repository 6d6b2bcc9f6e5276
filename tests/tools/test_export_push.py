"""tools/export.py --push: refused in one line before any work, or sent to a server here by the hub's own library."""

import base64
import json
import threading
from argparse import Namespace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from data import hub
from test_export import small as small
from tools import export
from utils import InputError


class Hub(BaseHTTPRequestHandler):
    """What the hub answers to a new repository and a commit of small files; `got` is what came."""

    got: list = []  # noqa: RUF012

    def answer(self, code: int, contents: dict) -> None:
        body = json.dumps(contents).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.answer(200, {})

    def do_GET(self):
        self.answer(404, {})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        lines = [json.loads(line) for line in body.decode().splitlines()]
        self.got.append((self.path, self.headers["Authorization"], lines))
        url = f"http://{self.headers['Host']}/org/model"
        if self.path.endswith("/create"):
            self.answer(200, {"url": url, "id": "org/model"})
        elif "/preupload/" in self.path:
            files = [{"path": one["path"], "uploadMode": "regular"} for one in lines[0]["files"]]
            self.answer(200, {"files": [{**one, "shouldIgnore": False} for one in files]})
        elif "/commit/" in self.path:
            self.answer(200, {"commitUrl": f"{url}/commit/1", "commitOid": "1", "success": True})
        else:  # the card's front matter
            self.answer(200, {"errors": [], "warnings": []})

    def log_message(self, *_):
        pass


@pytest.fixture
def reachable(monkeypatch):
    """A hub on this machine, and a token."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.got.clear()
    for where, name, value in (
        (constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}"),
        (constants, "HF_HUB_OFFLINE", False),
        (hub, "OFFLINE", False),
    ):
        monkeypatch.setattr(where, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    hub.reach.cache_clear()
    yield server
    hub.reach.cache_clear()
    server.shutdown()
    server.server_close()


def given(small, push="org/model"):
    words = {"to": "huggingface", "images": None, "probes": [], "push": push}
    return Namespace(run=str(small / "run"), out=str(small / "out"), **words)


def test_an_export_is_uploaded_to_a_private_repository(small, reachable, capsys):
    export.main(given(small))
    assert "pushed: " in capsys.readouterr().out
    created = next(lines[0] for path, _, lines in Hub.got if path.endswith("/create"))
    assert (created["name"], created["organization"]) == ("model", "org")
    assert created.get("visibility") == "private" or created.get("private") is True
    token, lines = next((token, lines) for path, token, lines in Hub.got if "/commit/" in path)
    assert token == "Bearer hf_made_up"
    sent = {one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines if one["key"] == "file"}
    files = {
        str(one.relative_to(small / "out")): one.read_bytes() for one in (small / "out").rglob("*") if one.is_file()
    }
    assert sent == files and {"README.md", "config.json", "model.safetensors", "modeling_medslip.py"} <= files.keys()


def test_an_upload_that_fails_leaves_the_export(small, reachable, monkeypatch):
    monkeypatch.setattr(Hub, "do_POST", lambda self: self.answer(403, {"error": "no right to write there"}))
    with pytest.raises(
        InputError, match=r"--push org/model: .*403.*; the export is whole in .*out: push it with `hf up"
    ):
        export.main(given(small))
    assert (small / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("push", "token", "message"),
    [
        ("model", "hf_made_up", "--push model: an owner and a name are needed: ORG/REPO"),
        ("org/a model", "hf_made_up", "--push org/a model: "),
        ("org/model", "", "--push org/model: no token of the Hugging Face hub"),
        ("org/model", "hf_made_up", "--push org/model: HF_HUB_OFFLINE is set"),  # in all tests
    ],
)
def test_refused_before_any_work(small, monkeypatch, tmp_path, push, token, message):
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError) as refused:
        export.main(given(small, push))
    assert str(refused.value).startswith(message) and not (small / "out").exists()
