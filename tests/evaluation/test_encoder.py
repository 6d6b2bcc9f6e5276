"""evaluation/encoder.py: a run, a checkpoint and an export are asked as the probe and the validation ask them."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from tiny_run import CAPTIONS, make_run

import main_linear
import medslip
import options
import utils
from conftest import picture, run_cli
from data.images import Files
from data.tokens import Tokens
from dicom_files import write_dicom
from evaluation import retrieval
from evaluation.encoder import InputError, open_encoder, similarity
from evaluation.exports import EXPORT


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "slip").parent


@pytest.fixture(scope="module")
def encoder(run):
    return open_encoder(run)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Gray and coloured pictures of several shapes."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        picture(number, size=(60 + 20 * number, 48), colour=number % 3 == 0).save(path)
    return paths


def test_a_run_a_checkpoint_and_an_export_are_the_same_model(run, encoder, files, tmp_path):
    make_run(tmp_path / "run", seed=1)
    best = make_run(tmp_path / "run", name="checkpoint_best.pt")
    folder = tmp_path / "export"
    folder.mkdir()
    state = {name: value.contiguous() for name, value in encoder.model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    encoder.tokenizer.save_pretrained(folder / "words")
    opened = {"weights": "model.safetensors", "tokenizer": "words"}
    known = {"format": "plain", "args": vars(encoder.args), "open": opened}
    utils.write_json(folder / EXPORT, known)
    images, texts = encoder.encode_image(files), encoder.encode_text(CAPTIONS)
    assert images.shape == (6, 512) == (6, encoder.embed_dim) and texts.shape == (4, 512) and images.std() > 0.01
    assert (
        encoder.image_size == 32
        and encoder.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
        and "tokenizer" not in repr(encoder)
    )
    for path in (run / "checkpoint.pt", tmp_path / "run", best, folder):
        other = open_encoder(path)
        assert torch.equal(other.encode_image(files), images) and torch.equal(other.encode_text(CAPTIONS), texts)
    assert not torch.equal(open_encoder(tmp_path / "run" / "checkpoint.pt").encode_image(files), images)
    assert not hasattr(open_encoder(run, text=False).model, "text_encoder")
    utils.write_json(folder / EXPORT, {**known, "format": "onnx", "open": None})
    with pytest.raises(InputError, match="an export to onnx, which other programs open"):
        open_encoder(folder)


def test_images_are_seen_as_the_probe_sees_them(run, encoder, folders, tmp_path, capsys):
    words = (
        "--catalog", folders, "--dataset", "imagenet", "--pretrained", run / "checkpoint.pt", "--batch-size", "5",
        "--output-dir", tmp_path / "out", "--device", "cpu", "--workers", "0", "--amp", "off", "--probe", "knn",
    )  # fmt: skip
    code, _, errors = run_cli(capsys, main_linear.main, options.linear_parser, *words)
    assert code == 0, errors
    kept = torch.load(tmp_path / "out" / "features.pt", weights_only=True)["test"]
    paths = [folders.parent / "folders" / "val" / one.removeprefix("val/") for one in kept["ids"]]
    asked = replace(encoder, fit="center256")  # as the type imagefolder has it
    assert len(paths) == 12 and torch.equal(asked.encode_image(paths, batch_size=5), kept["features"])
    loaded = medslip.load_probe(tmp_path / "out", device="cpu")
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert loaded.classes == ["bright", "dark"]
    rows = kept["features"].numpy()
    assert np.array_equal(loaded.fitted(rows), table[["p_bright", "p_dark"]].to_numpy())
    assert np.array_equal(loaded.predict(paths, batch_size=5), loaded.fitted.calibrated(rows))


def test_pairs_are_embedded_as_the_validation_embeds_them(encoder, files):
    args = Namespace(**{**vars(encoder.args), "batch_size": 4, "workers": 0, "amp": "off"})
    tokens = Tokens(encoder.tokenizer, CAPTIONS, args.context_length)
    pictures = Files(lambda i: str(files[i]), len(CAPTIONS))
    with retrieval.validation_loader(args, pictures, tokens, encoder.device) as loader:
        image, caption = retrieval.embed(encoder.model, retrieval.Validation(range(4), loader, None), args)
    assert torch.equal(F.normalize(encoder.encode_image(files[:4], batch_size=4), dim=-1), image)
    found = encoder.encode_text(CAPTIONS, batch_size=4)
    assert torch.equal(F.normalize(found, dim=-1), caption)
    assert torch.allclose(similarity(encoder.encode_image(files[:4]), found), image @ caption.T, atol=1e-6)


def test_padding_takes_part_only_where_the_training_had_it(encoder, tmp_path):
    alone = torch.cat([encoder.encode_text([one]) for one in CAPTIONS])
    assert encoder.pad_to is None and torch.allclose(alone, encoder.encode_text(CAPTIONS), atol=1e-5)
    padded = open_encoder(make_run(tmp_path, text_pooling="padded"))
    found = padded.tokens(CAPTIONS)
    assert padded.pad_to == 24 and [len(ids[0]) for ids in found["input_ids"]] == [24]
    rows = padded.model.encode_text(found["input_ids"][0], found["attention_mask"][0])
    assert torch.equal(padded.encode_text(CAPTIONS), rows[found["text_order"]])
    assert (padded.encode_text(CAPTIONS) - alone).abs().max() > 1e-3  # the same weights


def test_a_window_of_the_run_shows_its_dicom_files(encoder, tmp_path):
    levels = np.arange(0, 4096, 4, dtype=np.uint16).reshape(32, 32)
    path = write_dicom(tmp_path / "ct.dcm", levels, WindowCenter="2000", WindowWidth="4000")
    narrow = open_encoder(make_run(tmp_path / "run", window=[500, 100]))
    shown, wide = np.asarray(narrow.read(path)), np.asarray(encoder.read(path))
    assert narrow.window == "500/100" and 0 < ((shown > 0) & (shown < 255)).sum() < 30 and len(np.unique(wide)) > 200


def test_paths_pictures_and_arrays_are_one(encoder, files):
    pictures = [Image.open(path) for path in files]
    arrays = [np.asarray(one) for one in pictures]
    deep = [one.astype(np.uint16) * 257 for one in arrays]
    expected = encoder.encode_image(files)
    for images in (map(str, files), pictures, arrays, deep, (one for one in arrays), [files[0], *arrays[1:]]):
        assert torch.equal(encoder.encode_image(images), expected)
    assert torch.equal(encoder.encode_image(files, batch_size=6), expected)
    pooled = encoder.encode_image(files, projected=False)
    assert torch.allclose(encoder.model.image_projection(pooled), expected, atol=1e-6)
    twelve = np.array([[0, 200], [100, 255]], np.uint16)  # as a 16-bit file of such levels is read
    assert np.array_equal(encoder.read(twelve), twelve)
    assert encoder.encode_image([]).shape == (0, 512) == encoder.encode_text([]).shape
    with pytest.raises(InputError, match="batch_size 0: give 1 or more"):  # and not none of the embeddings
        encoder.encode_image(files, batch_size=0)


@pytest.mark.parametrize(
    ("ask", "given", "message"),
    [
        ("encode_image", "one.png", "images: give a list of them, also of a single one, not str"),
        ("encode_image", Path("one.png"), "images: give a list of them"),
        ("encode_image", Image.new("L", (8, 8)), "images: give a list of them, also of a single one, not Image"),
        ("encode_image", np.zeros((8, 8, 3), np.uint8), "images: give a list of them, also of a single one, not ndarr"),
        ("encode_image", torch.zeros(2, 3, 8, 8), "not Tensor"),
        ("encode_image", [torch.zeros(3, 8, 8)], "torch.Tensor: no image: give a path, a PIL image, or an array"),
        ("encode_image", [np.zeros((8, 8))], r"an array of \(8, 8\) of float64 is no image: give"),
        ("encode_image", [np.zeros((3, 8, 8), np.uint8)], r"\(3, 8, 8\) of uint8 is no image"),
        ("encode_image", [np.zeros((0, 8), np.uint8)], r"\(0, 8\) of uint8 is no image"),
        ("encode_image", ["nowhere.png"], "nowhere.png: the image is not there any more$"),
        ("encode_image", [__file__], r"test_encoder.py: the image cannot be read \(not an image\): .* remove it$"),
        ("encode_text", "a mass", "texts: give a list of them, also of a single one, not str"),
        ("encode_image", [Image.new("L", (0, 8))], "an image of 0 x 8 pixels shows nothing"),
        ("encode_image", ["a.png\0b"], r"'a.png\\x00b': neither a path nor a location"),
        ("encode_text", ["a mass", float("nan")], "nan: no text: give strings"),
        ("encode_text", ["a \udce4 mass"], r"'a \\udce4 mass': no text of UTF-8"),
    ],
)
def test_bad_input_is_one_line(encoder, ask, given, message):
    with pytest.raises(InputError, match=message) as error:
        getattr(encoder, ask)(given)
    assert len(str(error.value).splitlines()) == 1


def test_a_model_that_cannot_be_had(encoder, run, tmp_path):
    cut = tmp_path / "cut.png"
    picture(0).save(cut)
    cut.write_bytes(cut.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"cut\.png: cannot be read"):
        encoder.encode_image([Image.open(cut)])
    images_alone = open_encoder(make_run(tmp_path / "simclr", objective="simclr"))
    assert images_alone.logit_scale is None
    with pytest.raises(InputError, match="has no text tower"):
        images_alone.encode_text(CAPTIONS)
    for words, message in (
        ({"device": "gpu"}, "^device gpu: Expected one of"),
        ({"amp": "int8"}, "amp 'int8': not one of bf16, fp16, off"),
        ({"path": tmp_path}, "holds neither checkpoint_best.pt nor checkpoint.pt"),
        ({"path": tmp_path / "none"}, "none: no such checkpoint"),
        ({"path": cut}, "cut.png: holds more than weights"),
    ):
        with pytest.raises(InputError, match=message) as error:
            open_encoder(**{"path": run, **words})
        assert len(str(error.value).splitlines()) == 1
