"""The cache of pictures: what it holds, what it builds again, and its error for a folder that cannot be used."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import picture
from data import cache, images, views
from utils import InputError


@pytest.fixture
def paths(tmp_path):
    """Seven files: a large gray JPEG (stored as RGB), a large coloured one, small ones."""
    made = []
    for number, size in enumerate(((1000, 700), (640, 900), (300, 500), (60, 48), (7, 300), (512, 512), (1, 1))):
        made.append(str(tmp_path / f"{number}.jpg"))
        picture(number, size, colour=number == 1).convert("RGB").save(made[-1], quality=95)
    return made


def build(folder, paths):
    made = cache.Cache(folder, paths.__getitem__, len(paths))
    missing = made.open()
    folder.mkdir(exist_ok=True)
    made.build(missing)
    assert made.open() == []
    return made, missing


def test_it_holds_every_size_of_every_picture(paths, tmp_path):
    made, _ = build(tmp_path / "cache", paths)
    assert [level.shape for level in made[0].levels] == [(512, 731), (256, 366)]
    assert [level.shape for level in made[1].levels] == [(720, 512, 3), (360, 256, 3)]
    assert [len(made[i].levels) for i in range(2, 7)] == [2, 1, 1, 2, 1]
    for i in (3, 4, 6):  # smaller than any size: the file's own pixels
        assert np.array_equal(made[i].levels[0], np.asarray(images.read_image(paths[i])))
    assert made[0][:2] == (1000, 700)


def test_views_from_it_are_those_from_the_files(paths, tmp_path):
    """The boxes are the same, and the views differ by less than 1.5 grey levels in the mean."""
    kept, files = build(tmp_path / "cache", paths)[0], images.Files(paths.__getitem__, len(paths))
    for i in (0, 1, 2, 3):
        one, two = (views.TrainViews(source, None, "slip", 64, 0).__getitems__([(0, i)]) for source in (kept, files))
        assert torch.equal(one["params"], two["params"])
        name = "colour" if i == 1 else "gray"
        assert len(one[name]) == 1 and (one[name].float() - two[name].float()).abs().mean() < 1.5
        pairs = (views.whole(source[i], 64, "center").astype(float) for source in (kept, files))
        assert np.abs(np.subtract(*pairs)).mean() < 1.5


def test_it_is_built_again_where_a_file_changed(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 2)
    assert build(tmp_path / "cache", paths)[1] == [0, 1, 2, 3]
    assert build(tmp_path / "cache", paths)[1] == []
    picture(77, (300, 500)).save(paths[2])
    (tmp_path / "cache" / "00003.npy").unlink()  # as if killed before it
    with open(tmp_path / "cache" / "00000.bin", "ab") as file:
        file.write(b"x")
    made, missing = build(tmp_path / "cache", paths)
    assert missing == [0, 1, 3]
    assert np.abs(made[2].levels[0].astype(int) - np.asarray(images.read_image(paths[2]))).max() == 0


def test_a_damaged_index_is_built_again(paths, tmp_path):
    made, _ = build(tmp_path / "cache", paths)
    index = made.file(0, ".npy")
    whole, contents = np.load(index), index.read_bytes()
    for name, value in (
        ("width", 0),
        ("height", -5),
        ("width", 2**31 - 1),
        ("planes", 4),
        ("offset", -1),
        ("offset", 1),
    ):
        rows = whole.copy()
        rows[name][3] = value
        np.save(index, rows)
        assert made.open() == [0], (name, value)
    promise = contents.replace(b"(7,)", b"(9999999999999,)").replace(b" " * 12 + b"\n", b"\n")  # 360 terabytes
    assert len(promise) == len(contents)
    for damaged in (contents[:-1], contents.replace(b"{", b"("), b"PK\3\4", b"", promise):
        index.write_bytes(damaged)
        assert made.open() == [0]
    index.write_bytes(contents)
    assert made.open() == []


def test_an_index_says_how_long_its_file_is():
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows, end = np.zeros(3, cache.ROW), 0
        for row in rows:
            row["offset"], row["planes"] = end, rng.choice((1, 3))
            row["width"], row["height"] = rng.integers(1, rng.choice((4, 600, 5000)), 2)
            shapes = cache.level_shapes(int(row["width"]), int(row["height"]))
            end += sum(height * width for height, width in shapes) * int(row["planes"])
        assert cache.lie_end_to_end(rows, end) and not cache.lie_end_to_end(rows, end + 1)


def test_choices(paths, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="medslip")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    arguments = (str(tmp_path), "set", paths.__getitem__, len(paths), 224)
    assert isinstance(cache.pictures("none", *arguments), images.Files)
    assert cache.pictures("auto", *arguments).folder.parent == tmp_path / "medslip_cache"
    assert "building a cache of about" in caplog.text
    caplog.clear()
    assert cache.pictures("auto", *arguments).folder.parent == tmp_path / "medslip_cache"
    assert "pictures from the cache" in caplog.text and "building" not in caplog.text
    assert cache.pictures(str(tmp_path / "mine"), *arguments).folder.parent == tmp_path / "mine"
    monkeypatch.setattr(cache, "free_bytes", lambda folder: 10)
    other = (str(tmp_path), "set", paths[1:].__getitem__, len(paths) - 1, 224)
    assert isinstance(cache.pictures("auto", *other), images.Files)
    assert "would not fit" in caplog.text
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--cache .*cannot be made"):
        cache.pictures(str(tmp_path / "file"), *other)


def test_an_image_that_cannot_be_read_is_named(paths, tmp_path):
    os.truncate(paths[1], 200)
    with pytest.raises(InputError, match=r"1\.jpg: the image cannot be read"):
        build(tmp_path / "cache", paths)
    assert not list((tmp_path / "cache").glob("*"))


def test_a_jpeg_known_to_be_gray_is_decoded_the_same(paths):
    files = images.Files(paths.__getitem__, len(paths))
    first, second = files[0], files[0]
    assert files.gray.tolist() == [True] + [False] * 6
    assert np.array_equal(first.levels[0], second.levels[0])
    assert Image.open(paths[0]).mode == "RGB" and first.levels[0].ndim == 2
