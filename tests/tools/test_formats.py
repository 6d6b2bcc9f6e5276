"""timm, open_clip, onnx and torch: each library opens what was written for it, in a process without this code."""

import json
import shutil
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, picture
from openclip_layout import bert_tokenizer, publish
from transformers import BertConfig

import models
import options
from evaluation.encoder import open_encoder, ready
from tools import export
from tools.formats import open_clip, preprocessing, timm
from utils import InputError

TEXTS = ["a benign mass", "the chest x ray of a picture showing a dark mass is number axial"]
# Arguments: the folder with the exports. From JPEGs and strings to embeddings, with each library's own means.
READER = """
import importlib.util, json, sys
from pathlib import Path
import numpy as np, onnxruntime, open_clip, timm, torch
from PIL import Image
from tokenizers import Tokenizer
torch.set_grad_enabled(False)
folder, repository, texts = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
found, images = {}, [Image.open(path) for path in sorted(folder.glob("*.jpg"))]

model = timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True).eval()
view = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
shown = torch.stack([view(image.convert("RGB")) for image in images])
found["timm image"] = model(shown)
found["timm pooled"] = model.forward_head(model.forward_features(shown), pre_logits=True)

name = f"local-dir:{folder / 'open_clip'}"
model, view = open_clip.create_model_from_pretrained(name)
model.eval()
found["open_clip image"] = model.encode_image(torch.stack([view(image) for image in images]))
found["open_clip text"] = model.encode_text(open_clip.get_tokenizer(name)(texts))

spec = importlib.util.spec_from_file_location("onnx_client", folder / "onnx" / "onnx_client.py")
client = importlib.util.module_from_spec(spec)
spec.loader.exec_module(client)
how = json.loads((folder / "onnx" / "preprocessing.json").read_text())
pixels = np.concatenate([client.pixels(image, how["image"]) for image in images])
tokens = client.tokens(texts, Tokenizer.from_file(str(folder / "onnx" / "tokenizer.json")), how["text"])
found["onnx image"], found["onnx text"] = client.run("image", pixels=pixels), client.run("text", **tokens)
image = torch.export.load(folder / "torch" / "image.pt2").module()
text = torch.export.load(folder / "torch" / "text.pt2").module()
found["torch image"] = image(torch.from_numpy(pixels))
found["torch text"] = text(*(torch.from_numpy(tokens[name]) for name in ("input_ids", "attention_mask")))
files = [getattr(one, "__file__", None) or "" for one in sys.modules.values()]
assert not [one for one in files if one.startswith(repository) and "site-packages" not in one]
np.savez(folder / "found.npz", **found)
"""


def save_run(folder, arch: str, model, **words):
    """A run's folder with what main.py saves of a model."""
    folder.mkdir()
    args = {"arch": arch, "objective": "clip", "normalize": "imagenet", "image_size": 64, "context_length": 77}
    args = {**options.plain(options.parse(options.train_parser(), [])), **args, **words}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    torch.save({"model": model.state_dict(), "args": args}, folder / "checkpoint.pt")


def published_run(kind: str, folder):
    """A run whose model was published by open_clip."""
    arch = f"open_clip:local-dir:{publish(kind, folder / kind)}"
    known = models.resolve(models.source(arch).published)(arch, None)._asdict()
    model = models.create_model(arch, "clip", published=known)
    words = {"published": known, "normalize": "published", "image_size": known["image_size"], "context_length": 32}
    save_run(folder / f"{kind}_run", arch, model, **words)
    return folder / f"{kind}_run"


def exported(run, to: str, out, images) -> None:
    export.main(Namespace(run=str(run), to=to, out=str(out), images=str(images), probes=[], push=None))


def test_read_back_without_this_code(tmp_path, caplog):
    caplog.set_level("WARNING", "torch.__trace")  # of which pytest would keep every line
    bert_tokenizer().save_pretrained(tmp_path / "text")
    config = BertConfig(
        vocab_size=len(bert_tokenizer()), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48,
    )  # fmt: skip
    config.save_pretrained(tmp_path / "text")
    # timm and torchvision round a side down that this project rounds: these sides come out whole.
    images = [tmp_path / f"{name}.jpg" for name in "abc"]
    for seed, (path, size) in enumerate(zip(images, [(128, 96), (64, 64), (150, 100)], strict=True)):
        picture(seed, size, colour=seed == 1).save(path, quality=95)
    text = str(tmp_path / "text")
    save_run(tmp_path / "run", "test_resnet", models.create_model("test_resnet", "clip", "none", text), text_model=text)
    runs = dict.fromkeys(("timm", "onnx", "torch"), tmp_path / "run") | {
        "open_clip": published_run("biomedclip", tmp_path)
    }
    for to, run in runs.items():
        exported(run, to, tmp_path / to, tmp_path)
    words = [sys.executable, "-I", "-c", READER, str(tmp_path), str(REPOSITORY), json.dumps(TEXTS)]
    done = subprocess.run(words, cwd=tmp_path / "text", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    assert len(found.files) == 8
    for name in found.files:
        to, what = name.split()
        encoder = open_encoder(runs[to])
        own = encoder.encode_text(TEXTS) if what == "text" else encoder.encode_image(images, what == "image")
        difference = np.abs(found[name] - own.numpy()).max()
        print(f"{name}: {difference:.2g}")
        assert difference < 1e-5, name

    for to in ("timm", "open_clip"):  # and this code opens what holds weights
        run, again = open_encoder(runs[to]), open_encoder(tmp_path / to)
        assert again.fit == run.fit and torch.equal(again.encode_image(images), run.encode_image(images))
    assert torch.equal(again.encode_text(TEXTS), run.encode_text(TEXTS))
    arch = f"local-dir:{tmp_path / 'timm'}"
    tower = models.create_model(arch, None, "published", image_size=64).eval()
    pixels = open_encoder(runs["timm"]).pixels(images)
    assert torch.equal(tower.encode_image(pixels, False), open_encoder(runs["timm"]).model.encode_image(pixels, False))


@torch.no_grad()
def test_medclips_swin_is_timms(tmp_path):
    model = models.create_model("medclip_vit", None)
    for parameter in model.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    args = {"arch": "medclip_vit", "image_size": 224, "normalize": "medclip", "published": None}
    args |= {"text_model": None, "text_pooling": "masked"}
    encoder = ready(model, Namespace(**args, objective="simclr"), "run", "cpu", "off")
    read_back, opened = timm.write(encoder, tmp_path)
    given = torch.randn(1, 3, 224, 224)
    for name, value in read_back({"pixels": given}).items():
        assert (value - model.encode_image(given, name == "image")).abs().max() < 1e-5
    (tmp_path / "medslip.json").write_text(json.dumps({"format": "timm", "args": args, "open": opened}))
    again = open_encoder(tmp_path).model
    assert (again.encode_image(given) - model.encode_image(given)).abs().max() < 1e-5
    encoder.args.image_size = 256
    with pytest.raises(InputError, match="only images of a multiple of 224 pixels"):
        timm.write(encoder, tmp_path)
    with pytest.raises(InputError, match="--to open_clip: needs a text tower, and --objective simclr trains none"):
        open_clip.write(encoder, tmp_path)
    encoder.load_tokenizer, model.text_pooling = object, "masked"
    with pytest.raises(InputError, match="--arch medclip_vit with the pooling 'masked' does not: use huggingface"):
        open_clip.write(encoder, tmp_path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("mean", "a classifier of timm's is one linear layer"), ("native", "is none of timm's: use onnx or torch")],
)
def test_what_timm_cannot_hold(tmp_path, kind, message):
    with pytest.raises(InputError, match=message):
        timm.write(open_encoder(published_run(kind, tmp_path)), tmp_path)


def test_the_client_says_what_it_lacks(tmp_path):
    """Of a model without a text tower, or whose tokenizer was not there."""
    shutil.copy(preprocessing.CLIENT, tmp_path)
    (tmp_path / "preprocessing.json").write_text("{}")
    words = [sys.executable, tmp_path / preprocessing.CLIENT.name, "a mass", "a.png"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("no tokenizer.json lies here") and not done.stdout
