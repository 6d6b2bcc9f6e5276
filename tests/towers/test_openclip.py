"""open_clip's models as MedSLIP's: the same embeddings, views, tokens and zero-shot as open_clip's own."""

import json
import pickle
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import picture, put
from huggingface_hub import constants
from open_clip.transform import PreprocessCfg, image_transform_v2
from openclip_layout import MODELS, TEXTS, opened_by_open_clip, publish

import models
from data import augment
from data.images import as_picture, to_gray_or_rgb
from data.tokens import Tokens
from data.views import WholeImages, whole
from utils import InputError


def create(folder, objective="clip", **how):
    """-> the model with the folder's weights in eval mode, and what is known of it."""
    arch = f"open_clip:local-dir:{folder}"
    known = models.resolve(models.source(arch).published)(arch, None)
    size = how.pop("image_size", known.image_size)
    how.setdefault("pretrained", known.pretrained)
    return models.create_model(arch, objective, image_size=size, published=known._asdict(), **how).eval(), known


@torch.no_grad()
def text_embeddings(model, known, folder, texts, kept=None):
    tokenizer, kept = models.own_tokenizer(f"open_clip:local-dir:{folder}", known._asdict(), kept)
    batch = Tokens(tokenizer, texts, known.context_length).batch(range(len(texts)))
    chunks = [model.encode_text(*one) for one in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    return torch.cat(chunks)[batch["text_order"]], tokenizer, kept


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
def test_the_embeddings_are_open_clips(kind, tmp_path):
    folder = publish(kind, tmp_path / "model", safe=kind != "resnet")
    model, known = create(folder)
    reference, transform, tokenize = opened_by_open_clip(folder)
    pictures = [picture(i, size, colour) for i, (size, colour) in enumerate([((300, 201), False), ((90, 260), True)])]

    class Some:
        def __len__(self):
            return len(pictures)

        def __getitem__(self, i):
            return as_picture(to_gray_or_rgb(pictures[i]))

    batch = WholeImages(Some(), None, known.image_size, known.fit).__getitems__([0, 1])
    (pixels,) = augment.make_views(batch, known.mean, known.std, torch.device("cpu"))
    given = torch.stack([transform(one.convert("RGB")) for one in pictures])
    assert (pixels - given).abs().max() < 1e-5
    difference = {"image": (model.encode_image(pixels) - reference.encode_image(given)).abs().max().item()}
    found, _, kept = text_embeddings(model, known, folder, TEXTS)
    difference["text"] = (found - reference.encode_text(tokenize(TEXTS))).abs().max().item()
    print(kind, difference)
    assert max(difference.values()) < 1e-5
    assert model.logit_scale.item() == reference.logit_scale.item()
    assert (reference.logit_bias is None) == ("logit_bias" not in model.state_dict())
    again, *_ = text_embeddings(model, known, folder, TEXTS, kept)
    assert torch.equal(again, found)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if MODELS[kind][2] or kind == "native"])
def test_the_tokens_are_open_clips(kind, tmp_path):
    folder = publish(kind, tmp_path / "model")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    _, known = create(folder, pretrained="none")
    tokenizer, _ = models.own_tokenizer(f"open_clip:local-dir:{folder}", known._asdict())
    batch = Tokens(tokenizer, TEXTS, known.context_length, pad_to=known.context_length).batch(range(len(TEXTS)))
    assert torch.equal(batch["input_ids"][0][batch["text_order"]], tokenize(TEXTS))
    lazy = Tokens(pickle.loads(pickle.dumps(tokenizer)), TEXTS * 50_000, known.context_length)  # as a worker gets it
    assert lazy.lazy
    for row, own in zip(
        lazy.rows(range(3)), tokenizer(TEXTS[:3], True, known.context_length)["input_ids"], strict=True
    ):
        assert np.array_equal(row, own)
    shorter = Tokens(tokenizer, TEXTS[:3], known.context_length).batch(range(3))["input_ids"][0].shape[1]
    assert (shorter == known.context_length) == (kind == "siglip")  # whose tower sees the padding
    long = tokenize(TEXTS, 500)
    ends = kind in ("siglip", "mean")  # their end token is their padding, or is made to be
    assert tokenizer.count(TEXTS) == ((long != tokenizer.pad_token_id).sum(dim=1) + ends).tolist()


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_view_is_open_clips_to_the_pixel(mode, interpolation):
    for number, size in enumerate([(64, 64), (65, 64), (33, 90), (301, 200), (199, 411), (7, 64), (500, 9)]):
        image = picture(number, size, colour=number % 2 == 0)
        how = {"size": 64, "mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": interpolation, "resize_mode": mode}
        transform = image_transform_v2(PreprocessCfg(**how, fill_color=9), is_train=False)
        expected = (transform(image.convert("RGB")) * 255).round().byte().permute(1, 2, 0).numpy()
        found = whole(as_picture(image), 64, f"{mode} {interpolation} 9")
        assert np.array_equal(np.broadcast_to(found.reshape(64, 64, -1), (64, 64, 3)), expected), size


@torch.no_grad()
@pytest.mark.parametrize(("kind", "size"), [("native", 96), ("biomedclip", 96)])
def test_another_image_size_is_open_clips_too(kind, size, tmp_path):
    folder = publish(kind, tmp_path / "model")
    model, _ = create(folder, image_size=size)
    reference, *_ = opened_by_open_clip(folder, force_image_size=size)
    pixels = torch.randn(2, 3, size, size)
    assert (model.encode_image(pixels) - reference.encode_image(pixels)).abs().max() < 1e-5
    if kind == "native":
        with pytest.raises(InputError, match=r"--image-size 100: .* multiples of 16"):
            create(folder, image_size=100)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["native", "biomedclip"])
def test_a_run_at_one_size_is_probed_at_another(kind, tmp_path):
    """As published weights are: each time the position embeddings are resized from those that were trained."""
    model, known = create(publish(kind, tmp_path / "model"), image_size=96)
    arch, pixels = f"open_clip:local-dir:{tmp_path / 'model'}", torch.randn(1, 3, 64, 64)
    contents = {"model": model.state_dict(), "args": {"arch": arch, "image_size": 96}}
    for size in (96, 64, known.image_size):
        how = {"image_size": size, "published": known._asdict(), "weights": (contents, "a.pt")}
        found = models.create_model(arch, "clip", **how)
        key = "image_encoder.pos_embed" if kind == "biomedclip" else "image_encoder.positional_embedding"
        assert found.state_dict()[key].shape[-2] == (size // 16) ** 2 + 1
        same = torch.equal(found.state_dict()[key], model.state_dict()[key])
        assert same == (size == 96)
        if size == 64:
            assert found.eval().encode_image(pixels).isfinite().all()


def test_a_resnet_takes_its_own_size_alone(tmp_path):
    folder = publish("resnet", tmp_path / "model")
    with pytest.raises(InputError, match=r"--image-size 96: .* takes images of 64 pixels alone"):
        create(folder, image_size=96)
    model, _ = create(folder)
    with pytest.raises(InputError, match="--grad-checkpointing: ModifiedResNet cannot"):
        model.checkpoint_gradients()


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "resnet"])
def test_every_parameter_trains_and_may_be_recomputed(kind, tmp_path):
    model, known = create(publish(kind, tmp_path / "model"), "slip", ssl_mlp_dim=16, ssl_emb_dim=8)
    ids = torch.randint(5, 25, (3, known.context_length if kind == "siglip" else 9))
    pixels = torch.randn(3, 3, known.image_size, known.image_size)

    def gradients():
        model.train().zero_grad()
        torch.manual_seed(1)
        out = model(pixels, ids, torch.ones_like(ids), pixels, pixels)
        (sum(out[name].square().sum() for name in out if name.endswith("embed")) + out["logit_scale"]).backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    plain = gradients()
    model.checkpoint_gradients()
    assert torch.allclose(gradients(), plain, rtol=1e-4, atol=1e-5 * plain.abs().max().item())


BIOMEDBERT = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"


@torch.no_grad()
@pytest.mark.parametrize("safe", [True, False])
def test_a_text_model_that_cannot_be_asked_for_has_the_dimensions_of_its_weights(safe, tmp_path):
    """open_clip itself asks the hub for its configuration, and cannot open such a folder without a network."""
    reference, _, tokenize = opened_by_open_clip(publish("biomedclip", tmp_path / "first", safe))
    folder = publish("biomedclip", tmp_path / "model", safe, text=BIOMEDBERT)
    with pytest.raises(OSError, match=r"offline|connect"):
        opened_by_open_clip(folder)
    model, known = create(folder)
    assert known.config["hf_config"] is None
    found, *_ = text_embeddings(model, known, folder, TEXTS)
    assert (found - reference.encode_text(tokenize(TEXTS))).abs().max() < 1e-5
    with pytest.raises(InputError, match="no configuration of its text model microsoft/Bio"):
        create(folder, pretrained="none")


@torch.no_grad()
def test_a_repository_in_the_hubs_cache(tmp_path, monkeypatch):
    folder = publish("biomedclip", tmp_path / "model", safe=False, text=BIOMEDBERT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    put(tmp_path / "home", "some/clip", folder, *(file.name for file in folder.iterdir()))
    arch = "open_clip:hf-hub:some/clip"
    known = models.resolve(models.source(arch).published)(arch, None)
    model = models.create_model(arch, "clip", "published", image_size=160).eval()
    reference, *_ = create(folder)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in reference.state_dict().items())
    tokenizer, _ = models.own_tokenizer(arch, known._asdict())
    assert len(tokenizer(["benign"], True, 9)["input_ids"][0]) == 3
    with pytest.raises(InputError, match=r"no open_clip_config.json of no/clip .HF_HUB_OFFLINE is set, .* lacks it"):
        models.create_model("open_clip:hf-hub:no/clip", "clip", "published")


@torch.no_grad()
def test_a_name_and_a_tag(tmp_path, monkeypatch):
    """open_clip's own table says where the weights of a tag lie: here in the hub's cache, of a model made small."""
    folder = publish("native", tmp_path / "model")
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32-quickgelu", config)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    put(tmp_path / "home", "timm/vit_base_patch32_clip_224.openai", folder, "open_clip_model.safetensors")
    arch = "open_clip:ViT-B-32-quickgelu"
    model = models.create_model(arch, "clip", "open_clip:openai", image_size=64).eval()
    pixels = torch.randn(2, 3, 64, 64)
    reference = open_clip.create_model("ViT-B-32-quickgelu", "openai").eval()
    assert (model.encode_image(pixels) - reference.encode_image(pixels)).abs().max() < 1e-5
    for pretrained in ("open_clip:opnai", "open_clip:", "published"):
        with pytest.raises(InputError, match=f"--pretrained {pretrained}: .* open_clip has openai, laion400m_e31"):
            models.create_model(arch, "clip", pretrained)
    with pytest.raises(InputError, match=r"--pretrained open_clip:laion400m_e32: .*HF_HUB_OFFLINE is set"):
        models.create_model(arch, "clip", "open_clip:laion400m_e32")
    with pytest.raises(InputError, match=r"open_clip:vit-b32: open_clip has no such model: it has .*ViT-B-32"):
        models.create_model("open_clip:vit-b32", "clip")


def change(folder, part, **values):
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    (config if part in config else config["model_cfg"])[part].update(values)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "open_clip_config.json").unlink(), "the folder has no open_clip_config.json"),
        (lambda folder: (folder / "open_clip_config.json").write_text("{"), "not a configuration of open_clip"),
        (lambda folder: (folder / "open_clip_config.json").write_text("[]"), "not a configuration of open_clip"),
        (lambda folder: (folder / "open_clip_model.safetensors").unlink(), "the folder has no weights"),
        (lambda folder: (folder / "open_clip_model.safetensors").write_bytes(b"x" * 99), "safetensors: is damaged"),
        (lambda folder: cut(folder / "open_clip_model.safetensors"), "safetensors: is damaged"),
        (lambda folder: change(folder, "text_cfg", layers=3), r"open_clip layout.* does not fit .* missing: text"),
        (lambda folder: change(folder, "vision_cfg", width=32), "does not fit .* misshapen: image_encoder"),
        (lambda folder: change(folder, "vision_cfg", unheard_of=1), "cannot build it: .*unheard_of"),
        (lambda folder: change(folder, "vision_cfg", image_size=[64, 32]), "images of 64 x 32 pixels"),
        (lambda folder: change(folder, "vision_cfg", image_size="x"), "cannot be used: "),
        (lambda folder: change(folder, "preprocess_cfg", mean=[1, 2]), "mean and std have three numbers"),
        (lambda folder: change(folder, "preprocess_cfg", resize_mode="fit"), "resize_mode is shortest, squash or long"),
        (lambda folder: change(folder, "text_cfg", embed_cls=True), "CoCa"),
        (lambda folder: change(folder, "text_cfg", hf_tokenizer_name="x"), "its tokenizer cannot be had"),
    ],
)  # fmt: skip
def test_a_folder_that_is_none(spoil, message, tmp_path):
    folder = publish("native", tmp_path / "model")
    spoil(folder)
    with pytest.raises(InputError, match=message) as found:
        _, known = create(folder)
        models.own_tokenizer(f"open_clip:local-dir:{folder}", known._asdict())
    assert len(str(found.value).splitlines()) == 1


def test_a_tokenizer_that_does_not_fit(tmp_path):
    folder = publish("native", tmp_path / "model")
    change(folder, "text_cfg", vocab_size=100)
    _, known = create(folder, pretrained="none")
    tokenizer, _ = models.own_tokenizer(f"open_clip:local-dir:{folder}", known._asdict())
    with pytest.raises(InputError, match="its tokenizer has 49408 entries, its text tower 100"):
        create(folder, pretrained="none", vocab_size=len(tokenizer))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def test_weights_that_would_run_code(tmp_path):
    folder = publish("native", tmp_path / "model", safe=False)
    torch.save({"visual.trunk.a": Path("x")}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(InputError, match=r"open_clip_pytorch_model.bin: holds more than weights, which could run code"):
        create(folder)
