"""Type "webdataset": what the library writes is read as the library reads it, by position, from a kept index."""

import io
import json
import multiprocessing
import os
import subprocess
import tarfile

import braceexpand
import numpy as np
import pytest
import webdataset

import datasets
from conftest import picture
from data import images, locations, shard_index, shards
from utils import InputError


def png(number: int) -> bytes:
    contents = io.BytesIO()
    picture(number, (12, 10)).save(contents, "png")
    return contents.getvalue()


def write(root, samples, most=3, name="train"):
    """Samples as the library's ShardWriter writes them."""
    (root / name).mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(f"{root}/{name}/s-%03d.tar", maxcount=most, verbose=0) as writer:
        for key, members in samples:
            writer.write({"__key__": key, **members})
    return root


def write_tar(path, members):
    """Members (name, contents) in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, contents in members:
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            archive.addfile(info, io.BytesIO(contents))


def entry(root, **keys):
    return {"type": "webdataset", "name": "mine", "path": str(root), "window": "", "train": "train", **keys}


def pairs_of(root, **keys):
    return datasets.paired_set(entry(root, **keys), "train")


@pytest.fixture
def eight(tmp_path):
    """Eight pairs in three shards, of four articles."""
    return write(
        tmp_path / "set",
        [
            (f"p{k // 2}/k{k}", {"png": png(k), "txt": f"caption {k}", "json": {"article": f"A{k // 2}"}})
            for k in range(8)
        ],
    )


def test_pairs_of_what_the_library_writes(eight):
    pairs = pairs_of(eight, train="train/s-{000..002}.tar")
    read = webdataset.WebDataset(str(eight / "train" / "s-{000..002}.tar"), shardshuffle=False, empty_check=False)
    samples = list(read)
    assert list(pairs.ids) == [sample["__key__"] for sample in samples] == [f"p{k // 2}/k{k}" for k in range(8)]
    assert [text.encode() for text in pairs.captions] == [sample["txt"] for sample in samples]
    assert [locations.read(pairs.path(i)) for i in range(8)] == [sample["png"] for sample in samples]
    assert [pairs.articles.get(i) for i in range(8)] == [f"A{k // 2}" for k in range(8)]
    assert pairs.counts == {"samples": 8, "without image": 0, "without caption": 0, "pairs": 8} and not pairs.missing
    assert np.array_equal(np.asarray(images.read_image(pairs.path(7))), np.asarray(picture(7, (12, 10))))
    assert images.broken_files(pairs.paths(), skip=True) == {}
    assert locations.show(pairs.path(7)) == f"{eight}/train/s-002.tar, p3/k7.png"


@pytest.mark.parametrize(
    "train", ["train", "train/*.tar", "train/s-00{0,1}.tar::train/s-002.tar", "train/s-{000..2}.tar"]
)
def test_ways_to_name_shards(eight, train):
    assert list(pairs_of(eight, train=train).ids) == list(pairs_of(eight).ids)


@pytest.mark.parametrize(
    "text",
    [
        "a-{0..3}",
        "a-{007..011}.tar",
        "{3..1}{a,b}",
        "x{0..9..4}y",
        "{a,b{0..1}}",
        "{t-{00..2},v/{1,2}}",
        "plain",
        "{,x}",
    ],
)
def test_braces_as_the_library_expands_them(text):
    assert shards.expand(text) == list(braceexpand.braceexpand(text))


def test_what_the_library_groups_we_group(tmp_path):
    """Members in any order, a name twice, folders, dots, upper case, names that are passed over."""
    names = (
        "a.txt a.json a.JPG b.jpg a.txt d.e/f.jpg d.e/f.txt g.h.jpg g.txt .x.jpg nodot __m__ h.png h.jpg h.txt".split()
    )
    contents = {".txt": b"text", "json": b"{}"}
    write_tar(tmp_path / "train" / "s.tar", [(name, contents.get(name[-4:], name.encode())) for name in names])
    pairs = pairs_of(tmp_path)
    samples = list(webdataset.WebDataset(str(tmp_path / "train" / "s.tar"), shardshuffle=False, empty_check=False))
    assert pairs.counts["samples"] == len(samples) == 6
    whole = [one for one in samples if "txt" in one and "jpg" in one]
    assert list(pairs.ids) == [one["__key__"] for one in whole] == ["a", "d.e/f", "h"]
    assert [locations.read(pairs.path(i)) for i in range(len(pairs))] == [one["jpg"] for one in whole]
    assert pairs.missing == ["a", "g", "b"]  # a second "a" without image; g.h.jpg has the suffix h.jpg


def test_captions_and_names_of_the_json(tmp_path):
    rows = [
        {"id": "one", "caption": " of the\n json ", "long": "longer"},
        {"caption": 3, "pmcid": 77},
        {"caption": "No caption found"},
        {"caption": ["a list"]},
        {},
    ]
    write(tmp_path, [(f"k{k}", {"png": png(k), "json": row}) for k, row in enumerate(rows)])
    write(tmp_path / "second", [("k9", {"png": png(9), "json": {"id": "nine", "long": "why"}, "txt": " of  the txt"})])
    source = {"train": "train::second/train"}
    pairs = pairs_of(tmp_path, **source)
    assert list(pairs.ids) == ["one", "k1", "nine"] and list(pairs.captions) == ["of the json", "3", "of the txt"]
    assert pairs.missing == ["k2", "k3", "k4"]
    assert pairs.counts['with the caption "No caption found"'] == 1 and pairs.counts["without caption"] == 3
    pairs = pairs_of(tmp_path, **source, caption="long", article="pmcid")
    assert list(pairs.captions) == ["longer", "why"], "a field that the entry names goes before .txt"
    assert pairs.articles.get(0) is None
    with pytest.raises(
        InputError, match="no JSON of train has 'pmid', the entry's article: the first has id, caption, lo"
    ):
        pairs_of(tmp_path, article="pmid")
    with pytest.raises(InputError, match=r"no pair of an image and a caption in 5 samples of train"):
        pairs_of(tmp_path, caption="title")


def test_ids_that_come_twice(tmp_path):
    write(tmp_path, [(key, {"png": png(0), "txt": key}) for key in ("a", "b", "c", "a", "d", "a")], most=3)
    assert list(pairs_of(tmp_path).ids) == ["train/s-000/a", "b", "c", "train/s-001/a", "d", "train/s-001/a#2"]


def test_subset_and_optional_splits(tmp_path):
    write(tmp_path, [(f"k{k}", {"png": png(k), "txt": text}) for k, text in enumerate(("A mammogram", "Axial CT"))])
    pairs = datasets.paired_set(entry(tmp_path), "train", None, "mammo")
    assert list(pairs.ids) == ["k0"] and pairs.counts["mammo"] == 1 and pairs.missing == []
    assert datasets.paired_set(entry(tmp_path), "validation", optional=True) is None
    with pytest.raises(InputError, match="its entry names no 'validation' shards"):
        datasets.paired_set(entry(tmp_path), "validation")
    with pytest.raises(InputError, match=r"--metadata mine\.txt: type 'webdataset' has its captions in the shards"):
        datasets.paired_set(entry(tmp_path), "train", "mine.txt")


def test_labelled_by_class_number_label_or_both(tmp_path):
    rows = [("cyst", 1), ("mass", 0), ("cyst", 1)]
    for name, keep in (("both", (1, 1)), ("json", (1, 0)), ("cls", (0, 1))):
        for split in ("train", "test"):
            samples = []
            for k, (label, number) in enumerate(rows):
                record = {"patient": f"p{k // 2}", **({"label": label} if keep[0] else {})}
                samples.append((f"k{k}", {"png": png(k), "json": record, **({"cls": number} if keep[1] else {})}))
            write(tmp_path / name, samples, name=split)
    expected = {
        "both": (["mass", "cyst"], [1, 0, 1]),
        "json": (["cyst", "mass"], [0, 1, 0]),
        "cls": (["0", "1"], [1, 0, 1]),
    }
    for name, (classes, labels) in expected.items():
        for split in ("train", "test"):
            data = datasets.labelled_set(entry(tmp_path / name, test="test"), split)
            assert data.classes == classes and data.labels.tolist() == labels and data.patients == ["p0", "p0", "p1"]
            assert data[2].width == 12 and data.fit == "center256" and data.ids == ["k0", "k1", "k2"]
    with pytest.raises(InputError, match="the fit 'round' is not one of center256, center, squash"):
        datasets.labelled_set(entry(tmp_path / "both", fit="round"), "train")
    with pytest.raises(InputError, match="the label 'cyst' is no class of the training split"):
        datasets.labelled_set(entry(tmp_path, train="cls/train", test="json/test"), "test")
    with pytest.raises(InputError, match=r"test/s-000\.tar is in 'train' and in 'test'"):
        datasets.labelled_set(entry(tmp_path / "cls", train="train::test", test="test"), "test")
    write(
        tmp_path / "odd",
        [
            ("a", {"png": png(0), "cls": 0, "json": {"label": "x"}}),
            ("b", {"png": png(0), "cls": 0, "json": {"label": "y"}}),
        ],
    )
    with pytest.raises(InputError, match="contradict each other"):
        datasets.labelled_set(entry(tmp_path / "odd"), "train")
    with pytest.raises(InputError, match="sample k1 of train: no label"):
        write(tmp_path / "none", [("k0", {"png": png(0), "cls": 0}), ("k1", {"png": png(0)})])
        datasets.labelled_set(entry(tmp_path / "none"), "train")


# What is left out, and what is refused.


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("b.json", b"{no", "b.json: not JSON (Expecting"),
        ("b.json", b"[1]", "b.json: not JSON (no object)"),
        ("b.json", b"[" * 100_000, "b.json: not JSON (maximum recursion"),
        ("b.json", b'{"caption": "\\ud800"}', "b.json: not JSON (no characters)"),
        ("b.txt", b"\xff\xfe", "b.txt: not UTF-8 text"),
    ],
)
def test_texts_that_are_none_are_left_out_and_named(tmp_path, caplog, name, contents, message):
    write_tar(
        tmp_path / "train" / "s.tar", [("a.png", png(0)), ("a.txt", b"fine"), ("b.png", png(1)), (name, contents)]
    )
    caplog.set_level("WARNING", "medslip")
    pairs = pairs_of(tmp_path)
    assert list(pairs.ids) == ["a"] and pairs.missing == ["b"]
    assert f"{tmp_path}/train/s.tar, {message}" in caplog.text and "left out" in caplog.text
    caplog.clear()
    pairs_of(tmp_path)
    assert message in caplog.text, "the kept index says it too"


def test_members_that_are_no_files_or_have_no_name_are_left_out(tmp_path, caplog):
    path = tmp_path / "train" / "s.tar"
    write_tar(path, [("a.png", png(0)), ("a.txt", b"fine")])
    with tarfile.open(path, "a", errors="surrogateescape") as archive:
        for kind, name in ((tarfile.SYMTYPE, "b.png"), (tarfile.FIFOTYPE, "c.png"), (tarfile.DIRTYPE, "folder")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for name in ("d\udce9.png", "e\n.png"):
            archive.addfile(tarfile.TarInfo(name))
    caplog.set_level("WARNING", "medslip")
    assert list(pairs_of(tmp_path).ids) == ["a"]
    for line in ("'b.png': a link, not a file", "'c.png': a pipe, not a file", "not a name in UTF-8 of one line"):
        assert line in caplog.text
    assert "folder" not in caplog.text and len(caplog.records) == 4


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            "train/s-{000..009}.tar",
            r"7 of 10 shards of 'train/s-\{000..009\}.tar' are not there, the first is 'train/s-003",
        ),
        ("none/*.tar", r"0 of 0 shards of 'none/\*.tar' are not there: download"),
        ("train/s-{0..99999999}.tar", "names over 1,000,000 shards"),
        ("train/s-{0..9999}{0..9999}.tar", "names over 1,000,000 shards"),
        ("train/s-{}.tar", "expected braces such as"),
        ("https://host/s-{000..002}.tar", "shards are read from the disk"),
        ("pipe:cat a", "shards are read from the disk"),
        ("train::train/s-001.tar", "the shard train/s-001.tar comes twice in 'train'"),
        ("\0", "shards are read from the disk"),
        ("\ud800.tar", "1 of 1 shards"),
    ],
)
def test_shards_that_are_not_there(eight, train, message):
    with pytest.raises(InputError, match=message) as error:
        pairs_of(eight, train=train)
    assert "\n" not in str(error.value)


def test_a_folder_of_compressed_shards(eight):
    for path in (eight / "train").glob("*.tar"):
        subprocess.run(["gzip", path], check=True)
    with pytest.raises(InputError, match=r"s-000\.tar\.gz: compressed, .* unpack it with gunzip"):
        pairs_of(eight)


def test_a_set_of_nothing_says_what_was_left_out(tmp_path):
    write_tar(tmp_path / "train" / "s.tar", [])
    with pytest.raises(InputError, match="no pair of an image and a caption in 0 samples of train"):
        pairs_of(tmp_path)
    write_tar(tmp_path / "train" / "s.tar", [("a.jpg", b""), ("b.jpg", b""), ("a.txt", b"a"), ("b.txt", b"b")])
    with pytest.raises(InputError, match="4 samples of train: a sample's members must follow each other"):
        pairs_of(tmp_path)
    write_tar(tmp_path / "train" / "s.tar", [("a.jpg", b""), ("a.jpg", b"")])
    with pytest.raises(InputError, match=r"train/s.tar: a.jpg comes twice in a sample"):
        pairs_of(tmp_path)


# The index.


def kept(root):
    return sorted((root / "train" / "medslip_cache" / "index").glob("*.index"))


@pytest.fixture
def made(monkeypatch):
    """The shards that are indexed, as they are."""
    found, make = [], shard_index.make

    def counted(shard, keys):
        found.append(shard.name)
        return make(shard, keys)

    monkeypatch.setattr(shard_index, "make", counted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # in this process
    return found


def test_the_index_is_kept_and_made_again_for_what_changed(eight, made):
    before = pairs_of(eight)
    assert made == ["s-000.tar", "s-001.tar", "s-002.tar"] and len(kept(eight)) == 3
    again = pairs_of(eight)
    assert len(made) == 3 and [list(x) for x in (again.ids, again.captions)] == [
        list(before.ids),
        list(before.captions),
    ]
    assert [again.path(i) for i in range(8)] == [before.path(i) for i in range(8)]
    write_tar(eight / "train" / "s-001.tar", [("new.png", png(1)), ("new.txt", b"new")])
    assert list(pairs_of(eight).ids)[2:5] == ["p1/k2", "new", "p3/k6"] and made[3:] == ["s-001.tar"]
    os.utime(eight / "train" / "s-002.tar", (1, 1))
    pairs_of(eight)
    assert made[4:] == ["s-002.tar"]
    contents = kept(eight)[0].read_bytes()
    for damage in (contents[:-1], b"", contents[:300] + b"~" + contents[301:], b"00000000{}\n"):
        kept(eight)[0].write_bytes(damage)
        del made[:]
        assert len(pairs_of(eight)) == 6 and made == ["s-000.tar"]
    pairs_of(eight, article="article")
    assert len(kept(eight)) == 3, "the same fields by another way are the same index"


def test_two_processes_make_what_one_makes(eight):
    keys = {key: key for key in shards.KEYS}
    paths = sorted((eight / "train").glob("*.tar"))
    two = shard_index.open_all(paths, keys, processes=2)
    assert [one.columns["ids"][0] for one in two] == [
        shard_index.Index(shard_index.make(path, keys)).columns["ids"][0] for path in paths
    ]
    contents = [path.read_bytes() for path in kept(eight)]
    assert contents == [shard_index.make(path, keys) for path in paths]
    (paths[1]).write_bytes(paths[1].read_bytes()[:1700])
    with pytest.raises(InputError, match=r"s-001.tar: cut short in 'p1/k3.json'"):
        shard_index.open_all(paths, keys, processes=2)


def test_an_index_in_the_users_folder_or_in_none(eight, tmp_path, made, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(
        shard_index,
        "writable",
        lambda folder: "home" in str(folder) and (folder.mkdir(parents=True, exist_ok=True) or True),
    )
    pairs_of(eight)
    assert not (eight / "train" / "medslip_cache").exists()
    assert len(list((tmp_path / "home").rglob("*.index"))) == 3
    pairs_of(eight)
    assert len(made) == 3
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setattr(shard_index, "writable", lambda folder: False)
    caplog.set_level("INFO", "medslip")
    assert len(pairs_of(eight)) == 8 and len(pairs_of(eight)) == 8 and len(made) == 9
    assert "kept in no file" in caplog.text


def test_runs_at_once_make_each_index_once(eight):
    """Three processes that start together: two wait for the first, and read what that has made."""
    context = multiprocessing.get_context("fork")
    start, found = context.Barrier(3), context.SimpleQueue()

    def run():
        make, made = shard_index.make, []
        shard_index.make = lambda *words: made.append(words) or make(*words)
        start.wait(60)
        indices = shard_index.open_all(sorted((eight / "train").glob("*.tar")), {"id": "id", "caption": "caption"}, 1)
        found.put((len(made), len(indices)))

    runs = [context.Process(target=run) for _ in range(3)]
    for one in runs:
        one.start()
    for one in runs:
        one.join()
    assert sorted(found.get() for _ in runs) == [(0, 3), (0, 3), (3, 3)]


def test_the_index_is_no_pickle_and_small(eight):
    pairs_of(eight)
    assert all(path.stat().st_size < 1500 and path.read_bytes()[8:9] == b"{" for path in kept(eight))
    head = json.loads(kept(eight)[0].read_bytes()[8:].split(b"\n")[0])
    assert head["counts"] == {"samples": 3, "placeholders": 0}


def test_the_benchmark_runs_in_small(scripts):
    words = "--samples 200 --shards 3 --files 40 --pictures 0 --repeats 1 --no-record".split()
    code, printed, errors = scripts.run("benchmarks/shards.py", *words)
    assert code == 0, errors
    for line in ("2 of the shards indexed by 2 processes", "first batch of views after", "the library, in a row"):
        assert line in printed
