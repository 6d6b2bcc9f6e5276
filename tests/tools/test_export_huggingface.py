"""tools/export.py --to huggingface: a process without this code opens it by transformers alone, and finds the same."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import make_roco, picture
from PIL import Image
from test_export import checkpoint
from transformers import SwinConfig

import models
from data.images import as_picture, to_gray_or_rgb
from data.tokens import train_bpe
from data.views import whole
from evaluation.encoder import open_encoder
from tools import export
from tools.formats.modeling_medslip import MedSLIPImageProcessor
from towers import swin

OUTSIDE = """
import json, sys, torch
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, SwinModel
from PIL import Image
folder, swin, image, out = sys.argv[1:]
model, found = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert not any(found.values()), found
pixels = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)(Image.open(image))["pixel_values"]
tokens = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)(
    ["a mass", "an effusion in the left lung"], padding=True, truncation=True, return_tensors="pt")
tower, found = SwinModel.from_pretrained(swin, subfolder="image_tower", output_loading_info=True)
assert not any(found.values()), found
with torch.no_grad():
    both = model(**tokens, pixel_values=pixels, return_loss=False)
    torch.save({
        "image": model.get_image_features(pixels).pooler_output,
        "text": model.get_text_features(**tokens).pooler_output,
        "logits": both.logits_per_image,
        "pooled": tower.eval()(torch.ones(1, 3, 224, 224)).pooler_output,
    }, out)
assert "evaluation" not in sys.modules and "towers" not in sys.modules
"""


def run_of(tmp_path, arch: str, **words):
    """The folder of a run on a ROCO tree of pictures, with what main.py saves of its model."""
    args = {"arch": arch, "objective": "clip", "text_model": "tiny", "root": str(make_roco(tmp_path / "roco", 8))}
    args |= {"context_length": 12, **words}
    captions = ["a mass in the left lung", "an effusion"] * 20
    model = models.create_model(
        arch, "clip", text_model="tiny", vocab_size=300, text_pooling=args.get("text_pooling", "masked"),
        image_size=args.get("image_size"),
    )  # fmt: skip
    (tmp_path / "run").mkdir()
    checkpoint(tmp_path / "run" / "checkpoint.pt", model, tokenizer=train_bpe(captions, 300), **args)
    return tmp_path / "run"


def export_to(tmp_path, run, **words):
    words = {"to": "huggingface", "out": str(tmp_path / "out"), "images": None, "probes": [], "push": None, **words}
    export.main(Namespace(run=str(run), **words))
    return tmp_path / "out"


def test_a_process_without_this_code_opens_it(tmp_path, monkeypatch, capsys):
    small = partial(SwinConfig, embed_dim=24, depths=[1] * 4, num_heads=[1, 1, 2, 2])
    monkeypatch.setattr(swin, "SwinConfig", small)
    out = export_to(tmp_path, run_of(tmp_path, "medclip_vit"))
    assert "compared on 8 images and 8 captions, real (roco, validation split)" in capsys.readouterr().out
    picture(3, (300, 411), colour=True).save(tmp_path / "image.png")
    (tmp_path / "elsewhere").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_HOME"] = str(tmp_path / "hub")  # transformers copies the code there that it runs
    command = [sys.executable, "-c", OUTSIDE, out, out, tmp_path / "image.png", tmp_path / "found.pt"]
    done = subprocess.run(command, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)

    again = open_encoder(out)  # this code opens it too, wherever it lies
    for encoder in (open_encoder(tmp_path / "run"), again):
        image = encoder.encode_image([tmp_path / "image.png"])
        text = encoder.encode_text(["a mass", "an effusion in the left lung"])
        logits = encoder.model.logit_scale.exp() * torch.cosine_similarity(image, text)[None]
        for name, own in (("image", image), ("text", text), ("logits", logits)):
            torch.testing.assert_close(found[name], own, atol=1e-5, rtol=1e-5)
        pooled = encoder.model.encode_image(torch.ones(1, 3, 224, 224), projected=False)
        torch.testing.assert_close(found["pooled"], pooled, atol=1e-5, rtol=1e-5)
    assert again.path.parent == out and again.args.text_model == str(out / "text_tower")


def test_a_timm_tower_whose_buffers_no_file_holds_and_padded_captions(tmp_path):
    """Its rotary positions are in no state dict: from_pretrained builds it without memory, and must compute them."""
    run = run_of(tmp_path, "eva02_tiny_patch14_224", text_pooling="padded", image_size=56)
    out = export_to(tmp_path, run)
    assert json.loads((out / "medslip.json").read_text())["largest_difference"].keys() == {
        "image", "pixels", "text", "input_ids",
    }  # fmt: skip
    assert open_encoder(out).pad_to == 12


@pytest.mark.parametrize(
    "fit",
    ["center", "center256", "squash", "shortest bicubic 0 0.9", "middle bilinear", "longest bicubic 114 0.875"],
)
def test_its_image_processor_shows_the_same_pixels(fit):
    processor = MedSLIPImageProcessor(image_size=48, fit=fit, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4])
    sixteen = Image.fromarray(np.asarray(picture(0, (91, 60))).astype(np.uint16) * 257)
    clear = picture(1, (60, 97), colour=True).convert("RGBA")
    clear.putalpha(120)
    for image in (picture(2, (211, 120)), picture(3, (50, 131), colour=True), sixteen, clear):
        own = whole(as_picture(to_gray_or_rgb(image)), 48, fit)
        own = np.broadcast_to(own[..., None], (48, 48, 3)) if own.ndim == 2 else own
        own = (own / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
        found = processor(image)["pixel_values"]
        assert found.dtype == torch.float32 and np.abs(found[0].permute(1, 2, 0).numpy() - own).max() < 1e-5
