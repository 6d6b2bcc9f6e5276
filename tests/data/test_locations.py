"""Locations: a file, or a stretch of one."""

import io

import numpy as np
import pytest
from PIL import Image

from data import cache, images, locations
from data.buffers import Choices
from utils import InputError


@pytest.fixture
def joined(tmp_path):
    """Three pictures in one file -> their locations, their pixels, and the file."""
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (40 + k, 30), dtype=np.uint8) for k in range(3)]
    path, places, offset = tmp_path / "all.tar", [], 0
    with open(path, "wb") as file:
        for k, one in enumerate(pixels):
            encoded = io.BytesIO()
            Image.fromarray(one).save(encoded, "png")
            size = file.write(encoded.getvalue())
            places.append(locations.make(str(path), at=f"{offset}+{size}", name=f"{k}.png"))
            offset += size
    return places, pixels, path


def test_fields(tmp_path):
    made = locations.make("a/b.tar", at="512+20", name="x/y.dcm", window="-600/1500")
    assert locations.split(made) == locations.Location("a/b.tar", (512, 20), None, "x/y.dcm", (-600.0, 1500.0))
    assert locations.show(made) == "a/b.tar, x/y.dcm" and locations.suffix(made) == ".dcm"
    assert locations.split("plain.jpg") == locations.Location("plain.jpg")
    assert locations.make("plain.jpg", window="") == "plain.jpg"


def test_a_stretch_is_an_image(joined):
    places, pixels, path = joined
    for place, expected in zip(places, pixels, strict=True):
        assert np.array_equal(np.asarray(images.read_image(place)), expected)
        assert images.looks_whole(place) and images.read_small(place, 16).mode == "L"
    assert images.unreadable(places, decode=True) == {}
    with open(path, "rb+") as file:
        file.truncate(path.stat().st_size - 20)
    (broken,) = images.unreadable(places).items()
    assert broken[0] == places[2] and "all.tar, 2.png: the image cannot be read" in broken[1]
    with pytest.raises(InputError, match=r"2\.png"):
        images.read_image(places[2])


def test_a_cache_of_stretches(joined, tmp_path):
    places, pixels, path = joined
    made = cache.Cache(tmp_path / "cache", places.__getitem__, 3)
    made.folder.mkdir()
    made.build(made.open())
    assert made.open() == []
    assert all(np.array_equal(made[i].levels[0], pixels[i]) for i in range(3))
    path.write_bytes(path.read_bytes() + b"x")
    assert made.open() == [0], "a file that has changed is read again"


def test_choices_of_strings_or_none():
    made = Choices.of(["a", None, "b", "a"])
    assert [made.get(i) for i in range(4)] == ["a", None, "b", "a"] and len(made.strings) == 2
    assert [made.take(np.array([0, 1, 1, 0], bool)).get(i) for i in range(2)] == [None, "b"]
    assert len(Choices.of([])) == 0
