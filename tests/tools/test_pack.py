"""tools/pack.py: any set into shards that the webdataset library and type "webdataset" read as the set itself."""

import json
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
import webdataset

import datasets
from conftest import picture
from data import images, locations, views
from scripts import until
from tools import pack


def packed(scripts, *words) -> str:
    code, printed, errors = scripts.run("tools/pack.py", *words)
    assert code == 0, errors
    return printed


def refused(scripts, *words) -> str:
    code, _, errors = scripts.run("tools/pack.py", *words)
    assert code == 2 and len(errors.splitlines()) == 1, errors
    return errors


def new_entry(printed: str, name: str, catalog) -> dict:
    """The entry that was printed, put into a catalog and found there."""
    catalog.write_text(printed.partition("for the catalog:\n")[2])
    return datasets.find_entry(str(catalog), name)


def files(folder) -> dict:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def articles(roco):
    """The ROCO tree with articles of some pairs."""
    lines = [f"ROCO_{number:05d},PMC{number // 2}_a.jpg,CC BY\n" for number in range(20)]
    (roco / "train" / "radiology" / "licences.txt").write_text("".join(lines))
    return roco


def test_pairs_come_back_as_they_were(articles, tmp_path, scripts):
    out = tmp_path / "packed"
    words = ("--dataset", "roco", "--root", articles, "--samples-per-shard", 7)
    printed = packed(scripts, *words, "--out", out)
    assert f"{out}: 32 samples in 6 shards" in printed
    new = new_entry(printed, "roco_shards", tmp_path / "catalog.json")
    old = {"type": "roco", "name": "roco", "path": str(articles), "window": ""}
    for split in ("train", "validation"):
        before, after = (datasets.paired_set(entry, split) for entry in (old, new))
        assert list(after.ids) == list(before.ids) and list(after.captions) == list(before.captions)
        places = [(before.path(i), after.path(i)) for i in range(len(before))]
        assert all(locations.read(one) == locations.read(other) for one, other in places)
        batches = [
            views.TrainViews(images.Files(some.path, len(some)), None, "slip", 64, 0).__getitems__([(0, 7), (0, 2)])
            for some in (before, after)
        ]
        assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])
        if split == "train":
            assert len(after) == 24 and after.articles.get(3) == "PMC1" and after.articles.get(23) is None
            assert [after.articles.get(i) for i in range(24)] == [before.articles.get(i) for i in range(24)]
    samples = list(webdataset.WebDataset(f"{out}/{new['train']}", shardshuffle=False).decode("pil"))
    assert [one["json"]["id"] for one in samples] == list(datasets.paired_set(old, "train").ids)
    assert samples[5]["txt"].startswith("Axial CT showing") and samples[5]["jpg"].size == (60, 48)
    packed(scripts, *words, "--out", tmp_path / "again", "--workers", 3)
    assert files(tmp_path / "again") == {name: x for name, x in files(out).items() if "medslip_cache" not in name}


def test_a_packing_that_was_killed_goes_on(articles, tmp_path, scripts):
    words = ("--dataset", "roco", "--root", articles, "--samples-per-shard", 1, "--workers", 1)
    packed(scripts, *words, "--out", tmp_path / "whole")
    run = scripts.start("tools/pack.py", *words, "--out", tmp_path / "killed")
    until(lambda: len(list((tmp_path / "killed").rglob("*.tar"))) >= 3, run)
    run.end()
    (tmp_path / "killed" / "train" / ".shard-000020.tar.host.1.tmp").write_bytes(b"what a kill leaves")
    assert "32 samples in 32 shards" in packed(scripts, *words, "--out", tmp_path / "killed")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert "0 of them new" in packed(scripts, *words, "--out", tmp_path / "killed")


def test_a_labelled_set_comes_back_as_it_was(folders, phantoms, tmp_path, scripts):
    """Ids with a slash and a dot; classes, patients and how an image is made square."""
    new = new_entry(
        packed(scripts, "--catalog", folders, "--dataset", "imagenet", "--out", tmp_path / "a"),
        "imagenet_shards", tmp_path / "new.json",
    )  # fmt: skip
    cbis = ("--dataset", "cbis_calc", "--root", phantoms / "cbis", "--out", tmp_path / "b", "--shard-mb", "0.05")
    printed = packed(scripts, *cbis)
    assert len(list((tmp_path / "b" / "train").glob("*.tar"))) > 3
    entries = [(datasets.find_entry(str(folders), "imagenet"), new)]
    entries.append(
        (
            datasets.find_entry(
                str(Path(datasets.__file__).with_name("dataset_catalog.json")), "cbis_calc", phantoms / "cbis"
            ),
            new_entry(printed, "cbis_calc_shards", tmp_path / "new.json"),
        )
    )
    for old, new in entries:
        for split in ("train", "test"):
            before, after = (datasets.labelled_set(entry, split) for entry in (old, new))
            assert after.ids == before.ids and after.labels.tolist() == before.labels.tolist()
            assert (after.classes, after.patients, after.fit) == (before.classes, before.patients, before.fit)
            assert all(np.array_equal(before[i].levels[0], after[i].levels[0]) for i in range(len(before)))
    shard = next(iter((tmp_path / "a" / "train").glob("*.tar")))
    sample = next(iter(webdataset.WebDataset(str(shard), shardshuffle=False)))
    assert sample["__key__"] == "bright%2F0%2Epng" and sample["cls"] == b"0"
    assert json.loads(sample["json"]) == {"id": "bright/0.png", "label": "bright"}


@pytest.mark.parametrize("name", ["a/b.jpg", "..", "../x", "/etc/passwd", "a b%2E", "é", "__x__", ".hidden"])
def test_keys(name):
    key = pack.key_of(name)
    assert not set("/.\\ ") & set(key) and unquote(key) == name


def test_the_suffix_is_the_contents_own(articles, tmp_path, scripts):
    folder = articles / "train" / "radiology" / "images"
    for number, kind in enumerate(("png", "webp", "tiff", "gif", "bmp")):
        picture(number).save(folder / f"ROCO_{number:05d}.jpg", kind)
    (folder / "ROCO_00006.jpg").write_bytes(bytes(128) + b"DICM" + bytes(99))
    out = tmp_path / "packed"
    packed(scripts, "--dataset", "roco", "--root", articles, "--split", "train", "--out", out)
    samples = webdataset.WebDataset(f"{out}/train/shard-000000.tar", shardshuffle=False)
    found = [next(iter(one.keys() - {"__key__", "__url__", "__local_path__", "txt", "json"})) for one in samples]
    assert found[:8] == ["png", "webp", "tif", "gif", "bmp", "jpg", "dcm", "jpg"] and len(found) == 24


def test_refused_in_one_line(articles, folders, tmp_path, scripts):
    out = tmp_path / "out"
    words = ("--dataset", "roco", "--root", articles, "--out", out)
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    assert f"--out {out}: holds mine.txt and is no packing" in refused(scripts, *words)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    shutil.rmtree(out)
    packed(scripts, *words)
    before = files(out)
    assert "holds shards of other data or of another size" in refused(scripts, *words, "--samples-per-shard", 9)
    assert "holds shards of other data" in refused(scripts, *words, "--subset", "mammo")
    assert files(out) == before
    image = articles / "train" / "radiology" / "images" / "ROCO_00003.jpg"
    image.write_bytes(b"")
    image.rename(image.with_suffix(".png"))
    words = (*words[:-1], tmp_path / "other")
    (articles / "train" / "radiology" / "images" / "ROCO_00005.jpg").unlink()
    (articles / "train" / "radiology" / "images" / "ROCO_00005.jpg").symlink_to("nowhere")
    assert "ROCO_00005.jpg: cannot be read: no such file" in refused(scripts, *words)
    assert not list((tmp_path / "other").rglob("*.tmp"))
    words = ("--catalog", folders, "--dataset", "imagenet", "--out", tmp_path / "third")
    assert "--metadata and --subset choose among captions" in refused(scripts, *words, "--subset", "mammo")
    assert "has the splits train and test" in refused(scripts, *words, "--split", "validation")
