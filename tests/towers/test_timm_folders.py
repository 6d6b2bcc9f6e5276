"""timm's folders and hub names: its own features and its own view, from the folder or from the hub's cache."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from timm.models._hub import save_for_hf

import main
import main_linear
import models
import options
from conftest import make_roco, picture, run_cli
from damage import code, edit
from data import images, views
from utils import InputError

NAMES = {  # with what else is to be kept: a size, a statistic
    "resnet10t": ({}, {}),
    "vit_tiny_patch16_224": (
        {"img_size": 64, "depth": 2},
        {"mean": (0.4, 0.5, 0.6), "crop_pct": 1.0, "interpolation": "bilinear"},
    ),
    "test_efficientnet": ({}, {"crop_mode": "squash", "input_size": (3, 96, 96)}),
}
SMALL = ("--device", "cpu", "--workers", "0", "--amp", "off")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """{timm's name: (the folder, the model that was saved there)}"""
    root, made = tmp_path_factory.mktemp("timm"), {}
    for name, (arguments, shown) in NAMES.items():
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=7, pretrained_cfg_overlay=shown, **arguments).eval()
        with torch.no_grad():
            for tensor in model.state_dict().values():  # running means and variances too
                tensor.copy_(tensor + 0.05 * torch.rand_like(tensor)) if tensor.is_floating_point() else None
        save_for_hf(model, root / name, safe_serialization=name != "resnet10t")
        made[name] = root / name, model
    return made


def put_in_cache(folder, cache, name="org/name"):
    """A folder as the hub's library would have kept it, whose blobs the snapshot links to."""
    root = cache / f"models--{name.replace('/', '--')}"
    for part in ("refs", "blobs", "snapshots/" + "b" * 40):
        (root / part).mkdir(parents=True)
    (root / "refs" / "main").write_text("b" * 40)
    for number, path in enumerate(folder.iterdir()):
        shutil.copy(path, root / "blobs" / f"{number}")
        (root / "snapshots" / ("b" * 40) / path.name).symlink_to(f"../../blobs/{number}")


def published(arch):
    return models.resolve(models.source(arch).published)(arch, None)


def ours(arch, objective=None, size=None, pretrained="published"):
    return models.create_model(
        arch,
        objective,
        pretrained,
        "tiny",
        image_size=size or published(arch).image_size,
        ssl_mlp_dim=16,
        ssl_emb_dim=8,
    )


@torch.no_grad()
def check(model, theirs, size):
    pixels = torch.randn(3, 3, size, size).contiguous(memory_format=torch.channels_last)
    theirs = theirs.to(memory_format=torch.channels_last)
    expected = theirs.forward_head(theirs.forward_features(pixels), pre_logits=True)
    assert model.loaded == {"image_encoder"}
    assert (model.eval().encode_image(pixels, projected=False) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pretrained", ["published", "timm"])
def test_a_folder(saved, name, pretrained):
    folder, theirs = saved[name]
    known = published(f"local-dir:{folder}")
    assert known.image_size == {"resnet10t": 176, "vit_tiny_patch16_224": 64, "test_efficientnet": 96}[name]
    assert known.mean == list(NAMES[name][1].get("mean", timm.data.IMAGENET_DEFAULT_MEAN))
    check(ours(f"local-dir:{folder}", pretrained=pretrained), theirs, known.image_size)


def test_the_hubs_cache(saved, tmp_path, monkeypatch):
    folder, theirs = saved["test_efficientnet"]
    put_in_cache(folder, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    check(ours("hf-hub:org/name"), theirs, 96)
    check(ours(f"hf-hub:org/name@{'b' * 40}"), theirs, 96)
    with pytest.raises(
        InputError, match=r"--arch hf-hub:org/other: .*HF_HUB_OFFLINE is set, and the hub's cache lacks it"
    ):
        published("hf-hub:org/other")


def test_the_weights_of_another_folder(saved):
    arch = f"local-dir:{saved['test_efficientnet'][0]}"
    with pytest.raises(InputError, match=f"--pretrained local-dir:other: the weights of --arch {arch} are its own"):
        ours(arch, pretrained="local-dir:other")


def test_images_of_another_size(saved):
    folder, theirs = saved["vit_tiny_patch16_224"]
    with pytest.raises(InputError, match="--image-size 100: --arch test_vit takes multiples of 16 pixels"):
        models.create_model("test_vit", None, "none", image_size=100)
    model = ours(f"local-dir:{folder}", size=96)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=96).eval()
    check(model, theirs, 96)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(200, 131), (131, 200), (40, 50)])
def test_an_evaluation_shows_what_timm_shows(saved, name, size):
    folder, _ = saved[name]
    theirs = timm.create_model(f"local-dir:{folder}")  # whose configuration is the folder's
    known, image = published(f"local-dir:{folder}"), picture(3, size, colour=True)
    view = views.whole(images.as_picture(image), known.image_size, known.fit).astype(np.float32) / 255
    found = ((view - np.array(known.mean)) / np.array(known.std)).transpose(2, 0, 1)
    shown = create_transform(**resolve_data_config(pretrained_cfg=theirs.pretrained_cfg), is_training=False)(image)
    assert np.abs(found - shown.numpy()).max() < 1e-5


def test_training_and_after(saved, tmp_path, capsys, folders):
    """A run keeps what it needs of the folder: resumed and probed when that is gone."""
    folder = shutil.copytree(saved["vit_tiny_patch16_224"][0], tmp_path / "vit")
    root, out = make_roco(tmp_path / "roco", train=16, validation=8), tmp_path / "run"
    words = ("--root", root, "--arch", f"local-dir:{folder}", "--objective", "clip", "--text-model", "tiny")

    def run(*more):
        found = run_cli(
            capsys, main.main, options.train_parser, *words, "--batch-size", 8, "--output-dir", out, *SMALL, *more
        )
        assert found[0] == 0, found[2]

    run("--epochs", 1, "--pretrained", "none")  # which needs no tiny text model from the hub
    args = json.loads((out / "config.json").read_text())["args"]
    assert (args["image_size"], args["normalize"], args["published"]["mean"]) == (64, "published", [0.4, 0.5, 0.6])
    shutil.rmtree(folder)
    run("--epochs", 2, "--pretrained", "none")
    code, _, errors = run_cli(
        capsys, main_linear.main, options.linear_parser, "--catalog", folders, "--dataset", "imagenet",
        "--pretrained", out / "checkpoint.pt", "--output-dir", tmp_path / "probe", *SMALL,
    )  # fmt: skip
    assert code == 0, errors


def test_a_probe_of_a_folder(saved, tmp_path, capsys, folders):
    arch = f"local-dir:{saved['resnet10t'][0]}"
    words = ("--catalog", folders, "--dataset", "imagenet", "--arch", arch, "--output-dir", tmp_path / "probe")
    code, printed, errors = run_cli(capsys, main_linear.main, options.linear_parser, *words, *SMALL)
    assert code == 0 and "features: pooled" in printed, errors
    assert torch.load(tmp_path / "probe" / "features.pt")["train"]["features"].shape == (24, 512)


def misshape(folder) -> None:
    state = load_file(folder / "model.safetensors")
    key = next(key for key, value in state.items() if value.ndim == 4)
    save_file({**state, key: torch.ones(2, 2)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no model of timm's .*: no folder with a config.json"),
        (lambda f: (f / "config.json").unlink(), "no folder with a config.json"),
        (lambda f: (f / "config.json").write_text("[]"), "no model of timm's"),
        (lambda f: edit(f / "config.json", architecture="resnet_of_mine"), "timm has no model resnet_of_mine"),
        (
            lambda f: edit(f / "config.json", model_args={"checkpoint_path": "evil.pt"}),
            "timm cannot build test_eff|weights",
        ),
        (lambda f: edit(f / "config.json", pretrained_cfg={"interpolation": "lanczos"}), "are not known here"),
        (
            lambda f: (f / "model.safetensors").unlink(),
            "its weights cannot be loaded: .*no folder with a model.safetens",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"none"), "its weights cannot be loaded: .*header"),
        (code, "its weights cannot be loaded: holds more than weights, which could run code$"),
        (misshape, "its weights cannot be loaded: .*size mismatch"),
    ],
)
def test_what_is_wrong_is_named(saved, tmp_path, damage, message):
    folder = shutil.copytree(saved["test_efficientnet"][0], tmp_path / "damaged")
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        ours(f"local-dir:{folder}")
    assert "\n" not in str(error.value) and f"--arch local-dir:{folder}" in str(error.value)
