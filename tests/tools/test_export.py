"""tools/export.py: what it writes for MedCLIP is the published file, key for key; it keeps nothing that differs."""

import json
from argparse import Namespace

import pytest
import torch
from medclip_layout import FIXTURES, medclip_state, shallow_text

import distributed
import models
import options
from tools import export
from tools.formats import medclip


def checkpoint(path, model, tokenizer=None, **words):
    """What main.py saves of a model that was trained with these arguments; `tokenizer` is the one that it trained."""
    args = {"normalize": "imagenet", "image_size": 224, "ssl_mlp_dim": 16, "ssl_emb_dim": 8}
    args["text_model"] = options.BIO_CLINICAL_BERT
    args = {**options.plain(options.parse(options.train_parser(), [])), **args, **words}
    torch.save({"model": model.state_dict(), "args": args, "tokenizer": tokenizer}, path)


@pytest.mark.parametrize(("kind", "arch"), [("vit", "medclip_vit"), ("resnet", "medclip_resnet")])
def test_medclips_own_keys(kind, arch):
    """Names, shapes and types are those of the file that MedCLIP saves."""
    with torch.device("meta"):
        state = models.create_model(arch, "slip").state_dict()
    found = medclip.published(state, arch)
    layout = json.loads((FIXTURES / f"keys_{kind}.json").read_text())
    assert {name: [list(x.shape), str(x.dtype)[6:]] for name, x in found.items()} == layout


def test_what_was_medclips_becomes_it_again(tmp_path, capsys, monkeypatch):
    """Two layers of the text tower are enough: all twelve have their names in `test_medclips_own_keys`."""
    shallow_text(monkeypatch)
    published = medclip_state("vit", layers=2)
    torch.save(published, tmp_path / "pytorch_model.bin")
    model = models.create_model("medclip_vit", "slip", str(tmp_path), ssl_mlp_dim=16, ssl_emb_dim=8)
    (tmp_path / "run").mkdir()
    checkpoint(tmp_path / "run" / "checkpoint.pt", model, arch="medclip_vit")
    out = str(tmp_path / "out")
    args = Namespace(run=str(tmp_path / "run"), to="medclip", out=out, images=None, probes=[], push=None)
    distributed.run_script(export.main, args)
    printed = "".join(capsys.readouterr())
    assert "counts its padding" in printed and "largest difference: image 0, text 0" in printed
    found = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True)
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == [
        "README.md", "medslip.json", "pytorch_model.bin",
    ]  # fmt: skip
    assert found.keys() == published.keys()
    assert [name for name, x in found.items() if "pooler" not in name and not torch.equal(x, published[name])] == []


@pytest.fixture
def small(tmp_path):
    """A folder with a run of a small model without texts, a file of bare weights, and a folder that is not empty."""
    model = models.create_model("resnet10t", "simclr", ssl_mlp_dim=16, ssl_emb_dim=8, image_size=32)
    for name in ("run", "full", "empty"):
        (tmp_path / name).mkdir()
    checkpoint(tmp_path / "run" / "checkpoint_best.pt", model, arch="resnet10t", objective="simclr", image_size=32)
    torch.save(model.state_dict(), tmp_path / "full" / "weights.pt")
    torch.save({"model": torch.zeros(1), "args": {"arch": "resnet10t"}}, tmp_path / "full" / "no_model.pt")
    return tmp_path


@pytest.mark.parametrize(
    ("run", "out", "message"),
    [
        ("run", "out", "--to medclip: MedCLIP has medclip_vit and medclip_resnet, not resnet10t"),
        ("run", "full", "full: is there already: give a new folder"),
        ("full/weights.pt", "out", "weights.pt: not a checkpoint of main.py"),
        ("empty", "out", "empty: holds neither checkpoint_best.pt nor checkpoint.pt"),
        ("nowhere", "out", "nowhere: no such checkpoint"),
        ("run", "full/weights.pt/out", "out: cannot be written (Not a directory)"),
        ("run", "new/folder/out", "--to medclip: MedCLIP has"),
        ("full/no_model.pt", "out", "no_model.pt: not a checkpoint of main.py"),
    ],
)
def test_bad_input(small, scripts, run, out, message):
    code, _, errors = scripts.run("tools/export.py", run, "--to", "medclip", "--out", out, cwd=small)
    assert code == 2 and message in errors and len(errors.strip().splitlines()) == 1
    assert sorted(one.name for one in small.iterdir()) == ["empty", "full", "run"]


def altered(encoder, folder):
    """A format whose file holds something else than the model."""
    model = encoder.model
    torch.save(model.image_projection.weight * 1.01, folder / "weights.pt")
    weight = torch.load(folder / "weights.pt", weights_only=True)
    return lambda given: {"image": model.encode_image(given["pixels"], projected=False) @ weight.T}, None


def test_an_export_that_differs_is_not_kept(small, capsys, monkeypatch):
    monkeypatch.setitem(export.FORMATS, "altered", f"{__name__}:altered")
    args = Namespace(run=str(small / "run"), to="altered", out=str(small / "out"), images=None, probes=[], push=None)
    with pytest.raises(SystemExit) as stop:
        distributed.run_script(export.main, args)
    errors = capsys.readouterr().err
    assert stop.value.code == 2 and len(errors.splitlines()) == 1
    assert "'image' of what was written differs by" in errors
    assert sorted(one.name for one in small.iterdir()) == ["empty", "full", "run"]
