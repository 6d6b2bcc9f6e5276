"""Folders as transformers saves them: its own outputs, its preprocessing and its tokens; what is missing is named."""

import io
import json
import shutil

import numpy as np
import pytest
import sentencepiece
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models as bpe, pre_tokenizers, trainers

import main
import main_linear
import models
import options
from conftest import make_roco, picture, run_cli
from damage import code, edit
from data import images, views
from data.tokens import Tokens
from towers.parts import Published
from utils import InputError

VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {**VISION, "hidden_size": 24, "intermediate_size": 48, "max_position_embeddings": 20}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
TEXTS = [f"Mammogram showing a mass number {i}, {'calcification ' * (i % 4)}benign" for i in range(40)]
KINDS = ("clip", "siglip", "dinov2")
SMALL = ("--device", "cpu", "--workers", "0", "--amp", "off")


def clip_tokenizer() -> transformers.CLIPTokenizer:
    tokenizer = Tokenizer(bpe.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, end_of_word_suffix="</w>")
    tokenizer.train_from_iterator([text.lower() for text in TEXTS], trainer)
    made = json.loads(tokenizer.to_str())["model"]
    return transformers.CLIPTokenizer(vocab=made["vocab"], merges=[tuple(pair) for pair in made["merges"]])


def siglip_tokenizer(folder) -> transformers.SiglipTokenizer:
    """One of sentencepiece, whose padding is its end token, as SigLIP's is."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=trained, vocab_size=36, pad_id=-1, bos_id=-1, eos_id=1, unk_id=2,
        control_symbols=["<pad>"], minloglevel=2,
    )  # fmt: skip
    (folder / "made.model").write_bytes(trained.getvalue())
    return transformers.SiglipTokenizer(vocab_file=str(folder / "made.model"))


def make(kind: str, folder):
    """A small model, its image processor and its tokenizer, saved as transformers does -> the model."""
    folder.mkdir()
    torch.manual_seed(0)
    if kind == "clip":
        tokenizer = clip_tokenizer()
        config = transformers.CLIPConfig(
            vision_config={**VISION, "image_size": 64, "patch_size": 16},
            text_config={**TEXT, **SPECIAL, "vocab_size": len(tokenizer)}, projection_dim=16,
        )  # fmt: skip
        model = transformers.CLIPModel(config)
        shown = transformers.CLIPImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})
    elif kind == "siglip":
        tokenizer = siglip_tokenizer(folder)
        config = transformers.SiglipConfig(
            vision_config={**VISION, "image_size": 64, "patch_size": 16},
            text_config={**TEXT, **SPECIAL, "hidden_size": 32, "projection_size": 32, "vocab_size": 64},
        )
        model = transformers.SiglipModel(config)
        shown = transformers.SiglipImageProcessor(size={"height": 64, "width": 64})
    else:
        tokenizer = None
        model = transformers.Dinov2Model(transformers.Dinov2Config(**VISION, image_size=56, patch_size=14))
        side = {"height": 56, "width": 56}
        shown = transformers.BitImageProcessor(size={"shortest_edge": 56}, crop_size=side, image_mean=[0.53] * 3)
    with torch.no_grad():  # of no two parts the same outputs by chance
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for part in (model, shown, tokenizer):
        if part is not None:
            part.save_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """{kind: (the folder, the model that was saved there)}"""
    root = tmp_path_factory.mktemp("hf")
    return {kind: (root / kind, make(kind, root / kind)) for kind in KINDS}


@pytest.fixture
def copied(saved, tmp_path):
    """A copy of a folder that a test may damage."""
    return lambda kind: shutil.copytree(saved[kind][0], tmp_path / kind)


def published(arch) -> Published:
    return models.resolve(models.source(arch).published)(arch, None)


def ours(folder, objective="clip", image_size=None, **more):
    arch = f"hf:{folder}"
    size = image_size or published(arch).image_size
    return models.create_model(arch, objective, "published", image_size=size, ssl_mlp_dim=16, ssl_emb_dim=8, **more)


def features(model, pixels):
    """What transformers makes of images: projected, or DINOv2's class token after the last norm."""
    if isinstance(model, transformers.Dinov2Model):
        return model(pixels).last_hidden_state[:, 0]
    return model.get_image_features(pixels, interpolate_pos_encoding=True).pooler_output


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [0, 1, 2])
def test_images_as_transformers_encodes_them(saved, kind, more):
    """At the model's own size and at larger ones, for which the position embeddings are interpolated."""
    folder, theirs = saved[kind]
    size = (56 + 14 * more) if kind == "dinov2" else 64 + 16 * more
    model = ours(folder, "simclr", size).eval()
    pixels = torch.randn(3, 3, size, size)
    found = model.encode_image(pixels, projected=kind != "dinov2")
    assert found.shape == (3, {"clip": 16, "siglip": 32, "dinov2": 32}[kind])
    assert (found - features(theirs, pixels)).abs().max() < 1e-5
    assert ("image_projection" in model.loaded) == (kind != "dinov2")
    assert model.encode_image(pixels[:, :1]).shape == (3, model.embed_dim)  # gray


@torch.no_grad()
def test_clip_texts(saved):
    folder, theirs = saved["clip"]
    model = ours(folder).eval()
    tokenizer, kept = models.own_tokenizer(f"hf:{folder}", published(f"hf:{folder}")._asdict())
    batch = Tokens(tokenizer, TEXTS, 20).batch(range(len(TEXTS)))
    chunks = [model.encode_text(*chunk) for chunk in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    found = torch.cat(chunks)[batch["text_order"]]
    own = transformers.AutoTokenizer.from_pretrained(folder)
    words = own(TEXTS, padding=True, truncation=True, max_length=20, return_tensors="pt")
    expected = theirs.get_text_features(words["input_ids"], words["attention_mask"]).pooler_output
    assert words["attention_mask"].sum(dim=1).unique().numel() > 1
    assert (found - expected).abs().max() < 1e-5
    assert model.logit_scale.item() == theirs.logit_scale.item() != models.Towers._field_defaults["logit_scale"]
    again, _ = models.own_tokenizer(f"hf:{folder}", published(f"hf:{folder}")._asdict(), kept)
    rows = [Tokens(one, TEXTS, 20).rows(range(len(TEXTS))) for one in (tokenizer, again)]
    assert all(np.array_equal(*both) for both in zip(*rows, strict=True))
    assert again.pad_token_id == tokenizer.pad_token_id


@torch.no_grad()
def test_siglip_texts_are_padded_to_one_length(saved):
    folder, theirs = saved["siglip"]
    known = published(f"hf:{folder}")
    assert (known.context_length, known.padded) == (20, True)
    tokenizer, kept = models.own_tokenizer(f"hf:{folder}", known._asdict())
    tokenizer, _ = models.own_tokenizer(f"hf:{folder}", known._asdict(), kept)
    batch = Tokens(tokenizer, TEXTS, 20, pad_to=20).batch(range(len(TEXTS)))
    model = ours(folder).eval()
    (ids,), (mask,) = batch["input_ids"], batch["attention_mask"]
    found = model.encode_text(ids, mask)[batch["text_order"]]
    words = transformers.AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding="max_length", truncation=True, max_length=20, return_tensors="pt"
    )
    assert (found - theirs.get_text_features(words["input_ids"]).pooler_output).abs().max() < 1e-5
    assert model.logit_scale.item() == theirs.logit_scale.item()
    assert model.logit_bias.item() == theirs.logit_bias.item() != 0


@pytest.mark.parametrize(("kind", "objective"), [("clip", "slip"), ("siglip", "clip"), ("dinov2", "slip")])
def test_every_parameter_gets_a_gradient(saved, kind, objective):
    model = ours(saved[kind][0], objective, text_model="tiny")
    size = 56 if kind == "dinov2" else 64
    ids = torch.tensor([[0, 5, 6, 1], [0, 7, 8, 1]])
    views = [torch.randn(2, 3, size, size) for _ in range(2)] if objective == "slip" else [None, None]
    out = model(torch.randn(2, 3, size, size), ids, torch.ones_like(ids), *views)
    sum(value.sum() for value in out.values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(97, 60), (61, 200), (80, 80)])
def test_an_evaluation_shows_what_the_image_processor_shows(saved, kind, size):
    folder, _ = saved[kind]
    known = published(f"hf:{folder}")
    image = picture(3, size, colour=True)
    view = views.whole(images.as_picture(image), known.image_size, known.fit).astype(np.float32) / 255
    found = (view - np.array(known.mean)) / np.array(known.std)
    shown = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")(image, return_tensors="np")
    assert np.abs(found.transpose(2, 0, 1) - shown["pixel_values"][0]).max() < 1e-5


def test_training_and_after(saved, tmp_path, capsys):
    """A run keeps what it needs of the folder: resumed and probed when that is gone."""
    folder = shutil.copytree(saved["clip"][0], tmp_path / "clip")
    root, out = make_roco(tmp_path / "roco", train=16, validation=8), tmp_path / "run"
    words = ("--root", root, "--arch", f"hf:{folder}", "--objective", "clip", "--batch-size", 8, "--output-dir", out)

    def run(*more):
        return run_cli(capsys, main.main, options.train_parser, *words, *SMALL, "--cache", "none", *more)

    code, printed, errors = run("--epochs", 1)
    assert code == 0, errors
    assert f"weights: hf:{folder} (published layout)" in printed + errors and "Loading weights" not in errors
    config = json.loads((out / "config.json").read_text())["args"]
    assert (config["context_length"], config["image_size"], config["normalize"]) == (20, 64, "published")
    shutil.rmtree(folder)
    code, _, errors = run("--epochs", 2)
    assert code == 0, errors
    assert len((out / "log.txt").read_text().splitlines()) == 2
    state = torch.load(out / "checkpoint.pt", weights_only=True)["model"]
    assert state["image_projection.weight"].shape == (16, 32)


@torch.no_grad()
def test_zero_shot_is_that_of_transformers(saved, folders, tmp_path, capsys):
    folder, theirs = saved["clip"]
    prompts = tmp_path / "prompts.json"
    prompts.write_text('{"templates": ["a {} mass", "Mammogram showing {}"]}')
    code, _, errors = run_cli(
        capsys, main_linear.main, options.linear_parser, "--catalog", folders, "--dataset", "imagenet", "--probe",
        "zeroshot", "--prompts", prompts, "--arch", f"hf:{folder}", "--output-dir", tmp_path / "out", *SMALL,
    )  # fmt: skip
    assert code == 0, errors
    shown = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    own = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [line.split(",") for line in (tmp_path / "out" / "predictions.csv").read_text().splitlines()]
    texts = own(
        [t.format(name) for name in ("bright", "dark") for t in ("a {} mass", "Mammogram showing {}")],
        padding=True, return_tensors="pt",
    )  # fmt: skip
    embedded = F.normalize(theirs.get_text_features(**texts).pooler_output, dim=-1)
    classes = F.normalize(embedded.reshape(2, 2, -1).mean(dim=1), dim=-1)
    column = rows[0].index("p_bright")
    for row in rows[1:]:
        (path,) = tmp_path.rglob(f"val/{row[0].removeprefix('val/')}")
        pixels = shown(Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]
        image = F.normalize(features(theirs, pixels), dim=-1)
        chances = (theirs.logit_scale.exp() * image @ classes.T).softmax(dim=1)
        assert float(row[column]) == pytest.approx(chances[0, 0].item(), abs=1e-5)


def drop_weight(folder) -> None:
    state = load_file(folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def not_finite(folder) -> None:
    state = load_file(folder / "model.safetensors")
    state["visual_projection.weight"][0] = float("nan")
    save_file(state, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "preprocessor_config.json").unlink(),
            "no preprocessor_config.json .* mean and standard deviat",
        ),
        (lambda f: (f / "config.json").unlink(), "its config.json cannot be read"),
        (lambda f: (f / "config.json").write_text("{"), "its config.json cannot be read"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "clip", "vision_config": 3}'),
            "its config.json cannot",
        ),
        (lambda f: edit(f / "config.json", model_type="bert"), "a model of type bert; hf: takes clip, siglip, dinov2"),
        (lambda f: edit(f / "config.json", projection_dim=24), "its weights"),
        (lambda f: edit(f / "preprocessor_config.json", do_normalize=False), "such preprocessing is not known"),
        (lambda f: edit(f / "preprocessor_config.json", resample=0), "such preprocessing is not known"),
        (lambda f: (f / "model.safetensors").unlink(), "its weights cannot be loaded"),
        (lambda f: (f / "model.safetensors").write_bytes(b"no weights"), "its weights cannot be loaded"),
        (code, "its weights cannot be loaded: holds more than weights, which could run code$"),
        (drop_weight, "its weights do not fit its config.json: visual_projection.weight"),
        (not_finite, "not finite: image_projection.weight"),
    ],
)
def test_what_is_wrong_is_named(copied, damage, message):
    folder = copied("clip")
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        ours(folder)
    assert "\n" not in str(error.value) and f"hf:{folder}" in str(error.value)


def test_a_folder_without_tokenizer(copied):
    folder = copied("clip")
    for path in folder.glob("*token*"):
        path.unlink()
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match="its tokenizer cannot be loaded"):
        models.own_tokenizer(f"hf:{folder}", published(f"hf:{folder}")._asdict())


@pytest.mark.parametrize("name", ["absent/folder/of/mine", "/absent", "", "a b"])
def test_names_that_are_none(name):
    with pytest.raises(InputError, match=f"--arch hf:{name}: no such folder, and no model of that name on the Hugging"):
        published(f"hf:{name}")


def test_the_weights_of_another_model(saved):
    """They are not those of the arch, and must not be taken for them in silence."""
    arch, other = f"hf:{saved['clip'][0]}", f"hf:{saved['siglip'][0]}"
    with pytest.raises(InputError, match=f"--pretrained {other}: the weights of --arch {arch} are its own, leave it"):
        models.create_model(arch, "clip", other)
    assert models.create_model(arch, "clip", arch).loaded


def test_a_name_and_no_network():
    with pytest.raises(
        InputError, match=r"--arch hf:nobody/nothing: .*HF_HUB_OFFLINE is set, and the hub's cache lacks"
    ):
        published("hf:nobody/nothing")


def test_the_hubs_cache(saved, tmp_path, monkeypatch):
    """A model that was fetched before is used without a network."""
    folder, theirs = saved["dinov2"]
    root = tmp_path / "models--org--name"
    shutil.copytree(folder, root / "snapshots" / ("a" * 40))
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = ours("org/name", None).eval()
    pixels = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        assert (model.encode_image(pixels, projected=False) - features(theirs, pixels)).abs().max() < 1e-5


def test_a_text_model_for_a_model_that_has_its_own(saved, tmp_path, capsys):
    words = ("--root", tmp_path, "--arch", f"hf:{saved['clip'][0]}", "--text-model", "tiny", *SMALL)
    code, _, errors = run_cli(capsys, main.main, options.train_parser, "--output-dir", tmp_path / "out", *words)
    assert code == 2 and "has a text tower of its own: leave out --text-model" in errors
