"""Every layout loads; keys that do not fit are named in an error, before anything is copied."""

import argparse
import http.server
import io
import json
import socket
import threading
import zipfile

import pytest
import torch
from medclip_layout import medclip_state, shallow_text
from safetensors.torch import save_file

import checkpoints
import models
from utils import InputError


def small(objective="slip", arch="resnet10t"):
    return models.create_model(arch, objective, text_model="tiny", ssl_mlp_dim=16, ssl_emb_dim=8)


def save(contents, path):
    torch.save(contents, path)
    return str(path)


def load(model, path, arch="resnet10t"):
    checkpoints.load_weights(model, checkpoints.read(path), path, arch)
    return model


def same(one, other, prefix=""):
    other = other.state_dict()
    return all(torch.equal(value, other[key]) for key, value in one.state_dict().items() if key.startswith(prefix))


def test_own_layout(tmp_path):
    source = small()
    path = save({"model": source.state_dict(), "args": {"arch": "resnet10t"}, "epoch": 3}, tmp_path / "c.pt")
    assert same(load(small(), path), source)
    assert same(load(small(None), path), source)  # the probe builds the image tower alone


@pytest.mark.parametrize("prefix", ["", "module."])
def test_slip_layout(tmp_path, prefix):
    source = small()
    state = {f"visual.{key}": value for key, value in source.image_encoder.state_dict().items()}
    state |= {
        "image_projection": source.image_projection.weight.detach().T.clone(),
        "text_projection": torch.randn(4, 4),
        "transformer.resblocks.0.ln_1.weight": torch.randn(4),
        "token_embedding.weight": torch.randn(4, 4),
        "positional_embedding": torch.randn(4, 4),
        "ln_final.weight": torch.randn(4),
        "image_mlp.layer1.weight": torch.randn(4, 4),
        "logit_scale": torch.tensor(3.0),
    }
    namespace = argparse.Namespace(model="SLIP_VITS16", lr=3e-3)
    contents = {"state_dict": {prefix + key: value for key, value in state.items()}, "args": namespace, "epoch": 25}
    model = load(small(), save(contents, tmp_path / "slip.pt"))
    assert same(model.image_encoder, source.image_encoder)
    assert torch.equal(model.image_projection.weight, source.image_projection.weight)
    assert model.logit_scale.item() == pytest.approx(2.6593, abs=1e-4)  # log(1 / 0.07), not the file's


def test_first_medslip_layout(tmp_path, monkeypatch):
    shallow_text(monkeypatch)
    medclip = medclip_state("resnet", layers=2)
    model = models.create_model("medclip_resnet", "slip", ssl_mlp_dim=16, ssl_emb_dim=8)
    names = {"0": "layer1", "1": "bn1", "3": "layer2", "4": "bn2", "6": "layer3"}
    head = small().ssl_head
    state = {f"module.MedCLIP_model.{key}": value for key, value in medclip.items()}
    for key, value in head.state_dict().items():
        number, rest = key.split(".", 1)
        state[f"module.image_mlp.{names[number]}.{rest}"] = value
    state |= {"module.logit_scale": torch.tensor(3.25), "module.visual.cls_token": torch.randn(4)}
    state |= {"module.token_embedding.weight": torch.randn(4, 4), "module.image_projection": torch.randn(4, 4)}
    load(model, save({"state_dict": state, "args": argparse.Namespace(lr=1)}, tmp_path / "first.pt"), "medclip_resnet")
    assert same(model.ssl_head, head)
    assert model.logit_scale.item() == 3.25
    assert torch.equal(model.image_projection.weight, medclip["vision_model.model.fc.weight"])
    bare = {
        key.removeprefix("vision_model."): value for key, value in medclip.items() if key.startswith("vision_model.")
    }
    encoder = models.create_model("medclip_resnet", None, save(bare, tmp_path / "image_encoder.pth"))
    assert same(encoder, model)


def test_medclip_zip_and_old_names(tmp_path, monkeypatch):
    """The published zip, read without unpacking it: a member that climbs out of the folder is never written."""
    shallow_text(monkeypatch)
    state = medclip_state("vit", layers=2)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with zipfile.ZipFile(tmp_path / "medclip-vit-pretrained.zip", "w") as archive:
        archive.writestr("../../escaped.txt", "out")
        archive.writestr("medclip-vit/pytorch_model.bin", buffer.getvalue())
    model = models.create_model("medclip_vit", "clip", str(tmp_path / "medclip-vit-pretrained.zip"))
    query = next(v for k, v in model.state_dict().items() if "layers.0.blocks.0.attention" in k and "q" in k)
    assert torch.equal(query, state["vision_model.model.encoder.layers.0.blocks.0.attention.self.query.weight"])
    assert not list(tmp_path.parent.rglob("escaped.txt"))


def packed(module):
    """Its weights as safetensors takes them: not channels last."""
    return {key: value.contiguous() for key, value in module.state_dict().items()}


def shared_out(state, folder, files=2):
    """Weights in several safetensors files with an index, as transformers saves large models."""
    names = [f"model-{number:05d}.safetensors" for number in range(files)]
    for number, name in enumerate(names):
        save_file(dict(list(state.items())[number::files]), folder / name)
    where = {key: names[number % files] for number, key in enumerate(state)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def test_safetensors_of_any_layout(tmp_path):
    source = small()
    save_file(packed(source), tmp_path / "own.safetensors")
    assert same(load(small(), tmp_path / "own.safetensors"), source)
    medclip = medclip_state("resnet", layers=2)
    save_file({key: value.contiguous() for key, value in medclip.items()}, tmp_path / "model.safetensors")
    model = models.create_model("medclip_resnet", None, str(tmp_path))  # the folder that holds it
    assert torch.equal(model.image_projection.weight, medclip["vision_model.model.fc.weight"])
    visual = {f"visual.{key}": value for key, value in packed(source.image_encoder).items()}
    (tmp_path / "shards").mkdir()
    folder = shared_out(visual, tmp_path / "shards")
    assert same(load(small(None), folder).image_encoder, source.image_encoder)
    assert same(load(small(None), folder / "model.safetensors.index.json").image_encoder, source.image_encoder)


def safetensors(text: bytes, after: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header, whose length is said to be `length`."""
    return (len(text) if length is None else length).to_bytes(8, "little") + text + after


ONE = b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'  # and eight bytes


@pytest.mark.parametrize(
    ("contents", "why"),
    [
        (b"", "header too small"),
        (b"no safetensors file", "header too large"),
        (safetensors(b"{}", length=1 << 62), "header too large"),
        (safetensors(b"{}", length=99_000_000), "header"),
        (safetensors(b"[]"), "JSON"),
        (safetensors(b'{"a": {}}'), "JSON"),
        (safetensors(b"[" * 100_000), "JSON"),
        (safetensors(ONE, b"1234"), "incomplete"),  # cut short
        (safetensors(ONE, b"12345678and more"), "incomplete"),
        (safetensors(ONE.replace(b"[2]", b"[3]"), b"12345678"), "shape"),
        (safetensors(ONE.replace(b"[2]", b"[9999999999999999999999]"), b"12345678"), "JSON"),
        (safetensors(ONE.replace(b"F32", b"X99"), b"12345678"), "JSON"),
        (safetensors(ONE.replace(b"[0, 8]", b"[8, 16]"), b"12345678"), "offset"),
    ],
)
def test_damaged_safetensors(tmp_path, contents, why):
    (tmp_path / "model.safetensors").write_bytes(contents)
    message = rf"model\.safetensors: is damaged or no safetensors file \(.*{why}.*\); it was not loaded"
    with pytest.raises(InputError, match=message) as error:
        checkpoints.read(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_safetensors_that_do_not_fit(tmp_path):
    state = packed(small())
    key, path = "image_projection.weight", tmp_path / "c.safetensors"
    for wrong, message in (
        (torch.ones(2, 2), r"misshapen: .* is \(2, 2\)"),
        (torch.full_like(state[key], float("nan")), f"not finite: {key}"),
        (state[key].to(torch.float8_e4m3fn), f"{key}: of torch.float8_e4m3fn, which is not loaded"),
    ):
        save_file({**state, key: wrong}, path)
        with pytest.raises(InputError, match=message):
            load(small(), path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must name files beside it"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "must name files beside it"),
        ('{"weight_map": {"a": "/etc/hostname"}}', "must name files beside it"),
        ('{"weight_map": {"a": 3}}', "must name files beside it"),
        ('{"weight_map": {"a": "absent.safetensors"}}', r"names absent\.safetensors, which is not there"),
        ('{"weight_map": {"image_encoder.none": "model-00000.safetensors"}}', "lack image_encoder.none"),
    ],
)
def test_a_wrong_index(tmp_path, text, message):
    shared_out(packed(small()), tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match=message):
        checkpoints.read(tmp_path)


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(InputError, match=r"no checkpoint in this folder.*model\.safetensors.*pytorch_model\.bin"):
        checkpoints.read(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("image_encoder.conv1.0.weight"), "missing: image_encoder.conv1.0.weight"),
        (lambda state: state.update({"image_encoder.extra": torch.ones(1)}), "unexpected: image_encoder.extra"),
        (lambda state: state.update({"image_projection.weight": torch.ones(2, 2)}), r"misshapen: .* is \(2, 2\)"),
        (lambda state: state["image_projection.weight"].fill_(float("nan")), "not finite: image_projection.weight"),
        (lambda state: state.update({"image_projection.weight": "text"}), "is a str, not a tensor"),
    ],
)
def test_misfits_are_named_and_nothing_is_copied(tmp_path, damage, message):
    state = {key: value.clone() for key, value in small().state_dict().items()}
    damage(state)
    path = save({"model": state}, tmp_path / "c.pt")
    model = small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        load(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_another_architecture(tmp_path):
    path = save({"model": small().state_dict(), "args": {"arch": "resnet10t"}}, tmp_path / "c.pt")
    with pytest.raises(InputError, match="--arch resnet10t, but --arch resnet18"):
        load(small(arch="resnet18"), path, "resnet18")
    path = save({"model": small().state_dict()}, tmp_path / "c.pt")
    with pytest.raises(InputError, match="does not fit --arch resnet18"):
        load(small(arch="resnet18"), path, "resnet18")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    evil = Evil(str(tmp_path / "canary"))
    path = save({"state_dict": {"visual.x": torch.ones(1)}, "hook": evil}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="could run code"):
        checkpoints.read(path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("contents", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_files_that_are_no_checkpoints(tmp_path, contents):
    (tmp_path / "c.pt").write_bytes(contents)
    with pytest.raises(InputError, match=r"c\.pt: is damaged or not a checkpoint|could run code"):
        checkpoints.read(tmp_path / "c.pt")
    with pytest.raises(InputError, match="no such checkpoint"):
        checkpoints.read(tmp_path / "absent.pt")


def test_download_once_and_whole(tmp_path, monkeypatch):
    """The zip is fetched once; an answer that is cut off leaves nothing; offline the error says where it goes."""
    hits = []
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("pytorch_model.bin", b"weights")
    body = buffer.getvalue()

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if len(hits) == 1 else body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(checkpoints, "MEDCLIP_URL", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "medclip"
    with pytest.raises(InputError, match="cannot download"):
        checkpoints.download_medclip("medclip_vit")
    assert list(folder.iterdir()) == []
    path = checkpoints.download_medclip("medclip_vit")
    assert path.read_bytes() == body and checkpoints.download_medclip("medclip_vit") == path
    assert hits == ["/medclip-vit-pretrained.zip"] * 2
    server.shutdown()
    server.server_close()
    with socket.socket() as silent:  # bound, so that nobody else answers there, and not listening
        silent.bind(("127.0.0.1", 0))
        monkeypatch.setattr(checkpoints, "MEDCLIP_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        with pytest.raises(InputError, match=r"cannot download http.*medclip-pretrained\.zip.*put it at"):
            checkpoints.download_medclip("medclip_resnet")
