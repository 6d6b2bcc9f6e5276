"""The catalog's checks, and the labelled sets of each type."""

import json

import numpy as np
import pytest
import torchvision
from conftest import picture

import datasets
from training import resume
from utils import InputError


def catalog(tmp_path, entries) -> str:
    path = tmp_path / "catalog.json"
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return str(path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("{", r"catalog\.json, line 1: not JSON"),
        ("[]", "not a catalog"),
        ({"other": {"path": "x", "type": "roco"}}, "no entry 'mine', only other"),
        (
            {"mine": {"path": "x", "type": "imagefoler", "train": "a", "test": "b"}},
            "the type 'imagefoler' is not one of",
        ),
        (
            {"mine": {"path": "x", "type": "imagefolder", "trian": "a", "test": "b"}},
            "lacks train and does not know trian",
        ),
        ({"mine": {"pth": "x", "type": "roco"}}, "lacks path and does not know pth"),
        ({"mine": {"path": 3, "type": "roco"}}, "expected an object of strings"),
        ({"mine": {"path": "x", "type": "special"}}, "a special set is one of cifar10"),
        ({"mine": {"path": "x", "type": "roco", "window": "40/0"}}, "the window '40/0' is not CENTER/WIDTH"),
        ({"mine": {"path": "x", "type": "roco", "window": "40"}}, "the window '40' is not CENTER/WIDTH"),
    ],
)
def test_bad_catalogs(tmp_path, entries, message):
    with pytest.raises(InputError, match=message):
        datasets.find_entry(catalog(tmp_path, entries), "mine")


def test_paths_are_relative_to_the_catalog(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    path = catalog(tmp_path, {"mine": {"path": "here", "type": "roco"}})
    assert datasets.find_entry(path, "mine")["path"] == str(tmp_path / "here")
    assert datasets.find_entry(path, "mine", "/else/where")["path"] == "/else/where"


def test_image_folder(folders):
    entry = datasets.find_entry(str(folders), "imagenet")
    data = datasets.labelled_set(entry, "test")
    assert data.classes == ["bright", "dark"] and len(data) == 12 and data.patients is None
    assert data[0].levels[0].ndim == 2 and data.labels.tolist() == [0] * 6 + [1] * 6
    smaller = data.without({data.images[0]})
    assert len(smaller) == 11 and smaller.ids[0] == data.ids[1] and smaller.labels.sum() == 6


def make_list(root, images, labels, split="train"):
    root.mkdir(exist_ok=True)
    np.save(root / f"{split}_images.npy", images)
    np.save(root / f"{split}_labels.npy", labels)


def test_file_list(tmp_path):
    root = tmp_path / "list"
    make_list(root, np.array(["a.png", "b.png", "c.png"]), np.array(["sick", "well", "sick"]))
    make_list(root, np.array(["b.png"]), np.array(["well"]), "val")
    np.save(root / "train_patients.npy", np.array([7, 7, 8]))
    picture(0).save(root / "b.png")
    entries = {"mine": {"path": "list", "type": "filelist", "train": "train", "test": "val"}}
    entry = datasets.find_entry(catalog(tmp_path, entries), "mine")
    train, test = datasets.labelled_set(entry, "train"), datasets.labelled_set(entry, "test")
    assert (
        train.classes == ["sick", "well"] and train.labels.tolist() == [0, 1, 0] and train.patients == ["7", "7", "8"]
    )
    assert test.labels.tolist() == [1] and test.patients is None and test[0][:2] == (60, 48)
    make_list(root, np.array(["b.png"]), np.array(["dead"]), "val")
    with pytest.raises(InputError, match=r"val_labels\.npy, row 0: 'dead' is no class"):
        datasets.labelled_set(entry, "test")
    make_list(root, np.array(["../b.png"]), np.array(["well"]), "val")
    with pytest.raises(InputError, match=r"row 0: '\.\./b\.png' leaves the data folder"):
        datasets.labelled_set(entry, "test")
    np.save(root / "val_images.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="not a plain NumPy array"):
        datasets.labelled_set(entry, "test")


def test_special_from_torchvisions_own_files(tmp_path):
    """MNIST's files, written here in its format: read without any download."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for stem, count in (("train", 20), ("t10k", 10)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = np.array([0x803, count, 28, 28], dtype=">i4").tobytes()
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(
            np.array([0x801, count], dtype=">i4").tobytes() + labels.tobytes()
        )
    assert torchvision.datasets.MNIST(tmp_path, train=True)
    entry = datasets.find_entry(catalog(tmp_path, {"mnist": {"path": ".", "type": "special"}}), "mnist")
    data = datasets.labelled_set(entry, "test")
    assert len(data) == 10 and len(data.classes) == 10 and data[3].levels[0].ndim == 2 and data.ids[0] == "test_00000"
    assert np.array_equal(datasets.labelled_set({**entry, "window": "40/400"}, "test")[3].levels[0], data[3].levels[0])


def test_a_set_without_classes(tmp_path):
    entry = datasets.find_entry(catalog(tmp_path, {"mine": {"path": ".", "type": "roco"}}), "mine")
    with pytest.raises(InputError, match="captions and no classes"):
        datasets.labelled_set(entry, "train")


def test_the_window_is_kept_with_the_run(tmp_path):
    """Also that of the catalog, which no argument tells: a run does not go on within an epoch in another window."""
    picture(0).save(tmp_path / "0.png")
    (tmp_path / "t.csv").write_text("image,caption,label,split\n0.png,a,x,train\n")
    path = catalog(tmp_path, {"mine": {"path": "t.csv", "type": "table", "window": "40/400", "share": "0"}})
    own, other = (datasets.find_entry(path, "mine", window=window) for window in (None, (50, 400)))
    pairs, others = (datasets.paired_set(entry, "train") for entry in (own, other))
    assert pairs.notes["window"] == "40/400" and others.notes["window"] == "50/400"
    assert datasets.labelled_set(own, "train").notes["window"] == "40/400"
    assert resume.fingerprint(pairs) != resume.fingerprint(others)
    plain = datasets.paired_set({**own, "window": ""}, "train")
    assert "window" not in plain.notes and resume.fingerprint(plain) not in map(resume.fingerprint, (pairs, others))
