"""Mammo-CLIP's checkpoints: its EfficientNet's features, the end token, and settings that are not opened."""

import json
import re
import sys
import types

import numpy as np
import pytest
import torch
from medclip_layout import FIXTURES, made_up

import checkpoints
import models
from utils import InputError

# Keys, shapes and features of lukemelas' EfficientNet-B2 (efficientnet_pytorch 0.7.1) with these made-up weights.
KEYS = json.loads((FIXTURES / "keys_mammo_clip_b2.json").read_text())
GOLDEN = np.load(FIXTURES / "golden_mammo_clip_b2.npz")


def image_state() -> dict[str, torch.Tensor]:
    state = {}
    for name, (shape, kind) in KEYS.items():
        value = made_up(name, tuple(shape), 1) if kind == "float32" else np.array(0)
        state[name] = torch.as_tensor(value) * (0.42 if name.endswith("running_var") else 1)
    return state


def checkpoint(text) -> dict:
    """What the published files hold, with the weights of another text encoder."""
    state = image_state() | {
        "image_projection.projection.weight": torch.randn(512, 1408),
        "image_projection.projection.bias": torch.randn(512),
        "text_projection.projection.weight": torch.randn(512, text.config.hidden_size),
        "text_projection.projection.bias": torch.randn(512),
        "logit_scale": torch.tensor(2.5),
    }
    state |= {f"text_encoder.text_encoder.{key}": value for key, value in text.state_dict().items()}
    state["text_encoder.text_encoder.pooler.dense.bias"] = torch.zeros(4)
    return {"model": state, "optimizer": {}, "scheduler": {}, "epoch": 7, "train_loss": 1.0}


@pytest.fixture
def text():
    return models.text_encoder("tiny", 300).eval()


@torch.no_grad()
def test_both_towers(tmp_path, text):
    contents = checkpoint(text)
    torch.save(contents, tmp_path / "b2.tar")
    model = models.create_model("mammo_clip_b2", "clip", str(tmp_path / "b2.tar"), "tiny", vocab_size=300).eval()
    state, draw = contents["model"], np.random.default_rng(0)
    for height, width in ((260, 260), (96, 130)):  # padded as for 260 pixels, whatever the image
        pixels = torch.from_numpy(draw.standard_normal((2, 3, height, width), dtype=np.float32))
        pooled = torch.from_numpy(GOLDEN[f"pooled_{height}x{width}"])
        assert (pooled[0] - pooled[1]).abs().max() > 1e-2
        assert (model.encode_image(pixels, projected=False) - pooled).abs().max() < 1e-5
        projected = pooled @ state["image_projection.projection.weight"].T + state["image_projection.projection.bias"]
        assert (model.encode_image(pixels) - projected).abs().max() < 1e-4
    ids, mask = torch.randint(5, 300, (3, 9)), torch.ones(3, 9, dtype=torch.int64)
    mask[1, 4:] = 0
    states = text(input_ids=ids, attention_mask=mask).last_hidden_state
    ends = torch.stack([states[0, 8], states[1, 3], states[2, 8]])
    expected = ends @ state["text_projection.projection.weight"].T + state["text_projection.projection.bias"]
    assert (model.encode_text(ids, mask) - expected).abs().max() < 1e-5
    assert model.logit_scale.item() == 2.5


class Canary:
    """Opens a file when its state is set, or it is called."""

    path = None

    def __init__(self, *_):
        open(Canary.path, "w").close()

    def __setstate__(self, _):
        open(Canary.path, "w").close()

    def __reduce__(self):
        return (type(self), ("settings",), {"a": [1]})


def named(module: str, monkeypatch) -> type:
    """A Canary that pickles as a class of `module`."""
    kind = type("DictConfig", (Canary,), {"__module__": module})
    parts = module.split(".")
    for number in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:number]), types.ModuleType(parts[number - 1]))
    sys.modules[module].DictConfig = kind
    return kind


@pytest.mark.parametrize("module", ["omegaconf.dictconfig", "pytorch_lightning.callbacks.base", "somebody.elses"])
def test_settings_beside_the_weights_are_not_opened(tmp_path, monkeypatch, module):
    kind, path = named(module, monkeypatch), tmp_path / "settings.tar"
    settings = kind.__new__(kind)
    torch.save({"model": {"a": torch.ones(1)}, "config": settings, "callbacks": {kind: {"best": 1}}}, path)
    Canary.path = str(tmp_path / "canary")
    if module.startswith("somebody"):
        with pytest.raises(InputError, match="could run code"):
            checkpoints.read(path)
    else:
        contents = checkpoints.read(path)
        assert contents["model"]["a"].item() == 1 and type(contents["config"]).__name__ == "SetAside"
    assert not (tmp_path / "canary").exists()
    monkeypatch.undo()  # nor is the module needed
    if not module.startswith("somebody"):
        assert checkpoints.read(path)["model"]["a"].item() == 1


def test_b5_has_its_size():
    """The last of 39 blocks, and 28.3 million weights, which is lukemelas' EfficientNet-B5 without its last layer."""
    image = models.create_model("mammo_clip_b5", None).image_encoder
    assert len(image.blocks) == 39 and image.width == 2048
    assert sum(p.numel() for p in image.parameters()) == 28_340_784


def test_b2_weights_for_b5(tmp_path, text):
    torch.save(checkpoint(text), tmp_path / "b2.tar")
    with pytest.raises(
        InputError, match=r"\(Mammo-CLIP layout\) does not fit --arch mammo_clip_b5.*missing: image_enc"
    ):
        models.create_model("mammo_clip_b5", None, str(tmp_path / "b2.tar"))


def test_no_network():
    with pytest.raises(
        InputError, match=r"HF_HUB_OFFLINE is set.*b5-model-best-epoch-7\.tar of shawn24/Mammo-CLIP"
    ) as error:
        models.create_model("mammo_clip_b5", None, "published")
    assert "give its path as --pretrained" in str(error.value)


@pytest.mark.parametrize("recompute", [False, True])
def test_every_parameter_gets_a_gradient(recompute):
    model = models.create_model("mammo_clip_b2", "slip", text_model="tiny", ssl_mlp_dim=16, ssl_emb_dim=8)
    if recompute:
        model.checkpoint_gradients()
    ids = torch.randint(5, 100, (2, 9))
    out = model(torch.randn(2, 3, 64, 64), ids, torch.ones_like(ids), *[torch.randn(2, 3, 64, 64) for _ in range(2)])
    sum(value.sum() for value in out.values()).backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == [] and re.fullmatch(r"0\.19\d+", str(model.image_encoder.blocks[-1].drop))
