"""tools/search.py on a small trained run: a text and an image as queries, the page, and bad input."""

import csv
import os
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from conftest import make_roco
from embeddings_file import write_embeddings
from evaluation.encoder import open_encoder
from evaluation.features import weights_crc
from evaluation.fitted import IMAGE_PARTS
from tools import search
from utils import InputError

TRAIN = "--text-model tiny --pretrained none --image-size 32 --device cpu --disable-amp --workers 0 --epochs 1".split()


def train(scripts, root, out, *words):
    small = ("--arch", "test_efficientnet", "--batch-size", 8, "--ssl-mlp-dim", 16, "--ssl-emb-dim", 8)
    code, _, errors = scripts.run("main.py", "--root", root, "--output-dir", out, *small, *TRAIN, *words)
    assert code == 0, errors


@pytest.fixture(scope="module")
def place(script_server, tmp_path_factory):
    """A folder with a run, 24 images, and `e.parquet` of them; the last image is gone since."""
    place = tmp_path_factory.mktemp("search")
    root = make_roco(place / "roco")
    train(script_server, root, place / "run", "--objective", "clip")
    encoder = open_encoder(place / "run")
    lines = (root / "train/radiology/captions.txt").read_text().splitlines()[:24]
    ids, captions = zip(*(line.split("\t") for line in lines), strict=True)
    files = [str(root / f"train/radiology/images/{one}.jpg") for one in ids]
    captions = ["a <b>mass</b>\nand \x1b[2J" + "x" * 80, *(one.strip() for one in captions[1:])]
    made = {"run": str(encoder.path), "weights": weights_crc(encoder.model, IMAGE_PARTS)}
    made |= {"features": "projected", "fit": "center", "window": ""}
    vectors = encoder.encode_image(files).numpy()
    write_embeddings(place / "e.parquet", vectors, made, id=list(ids), image=files, caption=captions)
    pooled = encoder.encode_image(files, projected=False).numpy()
    write_embeddings(place / "pooled.parquet", pooled, {**made, "features": "pooled"}, image=files)
    write_embeddings(place / "narrow.parquet", vectors[:, :8], made)
    write_embeddings(place / "other.parquet", vectors, {**made, "weights": "00000000"})
    write_embeddings(place / "gone.parquet", vectors, {**made, "run": str(place / "nowhere.pt")})
    contents = torch.load(encoder.path, weights_only=True)
    contents["model"] = {name: x for name, x in contents["model"].items() if name.startswith("image_")}
    contents["args"]["objective"] = "simclr"
    torch.save(contents, place / "simclr.pt")
    os.remove(files[-1])
    return place


def test_texts_and_images(place, scripts):
    """In one search; the neighbours are those of the embeddings that the encoder gives."""
    query = "roco/train/radiology/images/ROCO_00004.jpg"
    words = ("Axial CT showing a cyst", "--image", query, "a mass", "--top", 24, "--csv", "new/s.csv")
    code, printed, errors = scripts.run("tools/search.py", "e.parquet", *words, cwd=place)
    assert code == 0, errors
    encoder, table = open_encoder(place / "run"), pq.read_table(place / "e.parquet").to_pydict()
    queries = torch.cat(
        [encoder.encode_text(["Axial CT showing a cyst", "a mass"]), encoder.encode_image([place / query])]
    )
    vectors = torch.tensor(table["embedding"])
    cosines = torch.nn.functional.normalize(queries).double() @ torch.nn.functional.normalize(vectors).double().T
    with open(place / "new/s.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["query"] for row in rows[::24]] == ["Axial CT showing a cyst", "a mass", query]
    for number, expected in enumerate(cosines):
        found = rows[24 * number :][:24]
        order = [int(row["row"]) - 1 for row in found]
        assert sorted(order) == list(range(24)) and [int(row["rank"]) for row in found] == list(range(1, 25))
        similarities = np.array([float(row["similarity"]) for row in found])
        assert (np.diff(similarities) <= 0).all() and similarities == pytest.approx(expected[order].numpy(), abs=2e-6)
        assert [row["id"] for row in found] == [table["id"][row] for row in order]
    assert rows[48]["id"] == "ROCO_00004" and float(rows[48]["similarity"]) == pytest.approx(1, abs=1e-5)
    assert printed.count("the nearest of 24 images (FAISS, exact)") == 3
    assert printed.count("ROCO_00004 (the query itself)") == 1 and "\x1b" not in printed
    assert "ROCO_00023.jpg: the image is not there any more" in errors + printed

    page = (place / "search.html").read_text()
    assert page.count('<div class="card') == 72 and page.count("data:image/jpeg;base64,") == 70
    assert page.count("The image is not there any more") == 3 and page.count("(the query itself)") == 1
    assert "<b>" not in page and "a &lt;b&gt;mass&lt;/b&gt;" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and "@import" not in page and "<script" not in page


def test_moved_runs_pooled_features_and_no_faiss(place, scripts, tmp_path):
    """An image is compared with pooled features, by a run that has moved."""
    shutil.copytree(place / "run", tmp_path / "run")
    image = place / "roco/train/radiology/images/ROCO_00000.jpg"
    words = ("--image", image, "--top", 1, "--index", "exact", "--out", tmp_path / "s.html", "--run", tmp_path / "run")
    code, printed, errors = scripts.run("tools/search.py", place / "pooled.parquet", *words)
    assert code == 0 and "24 images (numpy, exact)" in printed and " 1.0000  0 (the query itself) " in printed, errors


def test_a_member_of_a_shard_is_no_file_that_was_asked_for(place, tmp_path):
    """Its location is no path; only whole files can be the query."""
    image = str(place / "roco/train/radiology/images/ROCO_00000.jpg")
    rows = [image, f"{image}\0at=0+{os.path.getsize(image)}\0name=0.jpg"]
    file = write_embeddings(tmp_path / "e.parquet", np.eye(2), image=rows)
    found = search.told(search.Embeddings(file), np.ones(2), np.arange(2), image)
    assert [(one.itself, one.file) for one in found] == [(True, image), (False, f"{image}, 0.jpg")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["e.parquet"], "give a text to search for"),
        (["e.parquet", "a mass", "--run", "simclr.pt"], "simclr.pt: has no text tower"),
        (["e.parquet", " "], "an empty text finds nothing"),
        (["e.parquet", "--image", "nowhere.png"], "--image nowhere.png: no such file"),
        (["e.parquet", "--image", "e.parquet"], "e.parquet: the image cannot be read"),
        (["pooled.parquet", "a mass"], "pooled.parquet: its embeddings are pooled features, which no text"),
        (["narrow.parquet", "a mass"], "narrow.parquet: embeddings of 8 numbers, and the model's have 512"),
        (["other.parquet", "a mass"], "checkpoint_best.pt: not the weights that made other.parquet"),
        (["gone.parquet", "a mass"], "nowhere.pt: the model of gone.parquet is not there any more: say"),
        (["e.parquet", "a mass", "--run", "nowhere"], "nowhere: no such checkpoint"),
        (["e.parquet", "a mass", "--out", "e.parquet/s.html"], "--out "),
        (["e.parquet", "a mass", "--out", "e.parquet"], "--out e.parquet: give a file that is called .html"),
        (["e.parquet", "a mass", "--csv", "search.html"], "--csv search.html: give a file that is called .csv"),
    ],
)
def test_bad_input(place, monkeypatch, words, message):
    monkeypatch.chdir(place)
    before = sorted(place.iterdir())
    with pytest.raises(InputError) as caught:
        search.main(search.search_parser().parse_intermixed_args(words))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(place.iterdir()) == before


def test_bad_input_is_one_line(place, scripts):
    code, _, errors = scripts.run("tools/search.py", "nowhere.parquet", "a mass", cwd=place)
    assert (
        code == 2
        and errors.strip() == "search.py: error: nowhere.parquet: no such file: give one that tools/embed.py wrote"
    )
