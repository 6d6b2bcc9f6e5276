"""GLoRIA's checkpoints: torchvision's ResNet-50 at 299 pixels, and its own sum of word pieces up to a factor."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
import transformers
from PIL import Image
from torch import nn

import models
from data import images, views
from utils import InputError


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """(a checkpoint's path, a text model's folder, and the parts that its weights are of)"""
    root = tmp_path_factory.mktemp("gloria")
    torch.manual_seed(0)
    image, embedder = torchvision.models.resnet50().eval(), nn.Linear(2048, 768)
    image.fc = nn.Identity()
    config = transformers.BertConfig(vocab_size=60, num_hidden_layers=4, intermediate_size=64)
    text = transformers.BertModel(config).eval()
    text.save_pretrained(root / "text")
    state = {f"gloria.img_encoder.model.{key}": value for key, value in image.state_dict().items()}
    state |= {f"gloria.img_encoder.global_embedder.{key}": value for key, value in embedder.state_dict().items()}
    state["gloria.img_encoder.local_embedder.weight"] = torch.randn(4, 4, 1, 1)
    state |= {f"gloria.text_encoder.model.{key}": value for key, value in text.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 12, "pytorch-lightning_version": "1.1.4"}, root / "gloria.ckpt")
    return root / "gloria.ckpt", str(root / "text"), image, embedder, text


def words_summed(text, ids, end: int, starts: set) -> torch.Tensor:
    """GLoRIA's sentence embedding: the pieces of each word are summed, up to the end token; the rest is zero; the mean
    over all positions, then the sum over the last four layers."""
    states = text(ids[None], torch.ones_like(ids[None]), output_hidden_states=True).hidden_states[-4:]
    total = torch.zeros(768)
    for layer in states:
        words = []
        for token, state in zip(ids.tolist(), layer[0], strict=True):
            if token in starts or token == end or not words:
                words.append(state)
            else:
                words[-1] = words[-1] + state
            if token == end:
                break
        padded = torch.stack(words + [torch.zeros(768)] * (97 - len(words)))
        total += padded.mean(dim=0)
    return total


@torch.no_grad()
def test_both_towers(parts):
    path, folder, image, embedder, text = parts
    model = models.create_model("gloria", "clip", str(path), folder, vocab_size=60).eval()
    assert model.loaded == {"image_encoder", "image_projection", "text_encoder", "text_projection"}
    pixels = torch.randn(2, 3, 224, 224)
    features = image(nn.Upsample(size=(299, 299), mode="bilinear", align_corners=True)(pixels))
    for found, expected in (
        (model.encode_image(pixels, projected=False), features),
        (model.encode_image(pixels), embedder(features)),
    ):
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    ids = torch.tensor([[2, 10, 41, 42, 11, 3, 0, 0], [2, 12, 43, 13, 14, 44, 45, 3]])  # from 40 on: pieces of words
    mask = (ids != 0).long()
    found = model.encode_text(ids, mask)
    for row, length, one in zip(ids, mask.sum(dim=1), found, strict=True):
        expected = words_summed(text, row[:length], 3, set(range(40)))
        assert (F.normalize(one, dim=0) - F.normalize(expected, dim=0)).abs().max() < 1e-6
    assert model.logit_scale.exp().item() == pytest.approx(10)


def test_the_longer_side_is_shown_with_black_around():
    known = models.resolve(models.source("gloria").published)("gloria", None)
    white = images.as_picture(Image.new("L", (100, 50), 255))
    view = views.whole(white, known.image_size, known.fit)  # 256 x 128 in 256 x 256, of which the middle 224 are left
    assert view.shape == (224, 224) and (view[48:176] == 255).all()
    assert not view[:48].any() and not view[176:].any()
    assert np.array_equal(view.T, views.whole(images.as_picture(Image.new("L", (50, 100), 255)), 224, known.fit))


def test_what_does_not_fit_is_named(parts):
    path, folder, *_ = parts
    with pytest.raises(InputError, match=r"--text-model tiny: 256 wide, and --arch gloria, .* needs 768"):
        models.create_model("gloria", "clip", str(path), "tiny")
    with pytest.raises(InputError, match="--text-pooling padded: --arch gloria has one of its own"):
        models.create_model("gloria", "clip", str(path), folder, "padded")
    with pytest.raises(InputError, match=r"fetch chexpert_resnet50\.ckpt from .*and give its path as --pretrained"):
        models.create_model("gloria", None, "published")
    with pytest.raises(InputError, match=r"\(GLoRIA layout\) does not fit --arch resnet18"):
        models.create_model("resnet18", None, str(path))
