"""tools/doctor.py: planted faults are found, every part has its verdict, and nothing is written."""

import itertools
import json
import re
import shutil

import numpy as np
import planted
import pytest
import torch
from conftest import make_roco, picture
from openclip_layout import publish
from PIL import Image
from pydicom.data import get_testdata_file

import models
from data.buffers import read_lines
from tools import doctor
from tools.checks import captions, duplicates, network, page, step
from tools.checks.subject import Subject, read, sort_rows
from tools.phantoms import make_phantoms

SMALL = (
    "--arch test_vit --text-model tiny --pretrained none --image-size 64 --batch-size 4 --workers 1 "
    "--ssl-mlp-dim 32 --device cpu"
).split()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Phantoms in which faults are planted -> what was planted, and the sections of the check."""
    out = tmp_path_factory.mktemp("doctor")
    make_phantoms(out / "tree", seed=0, pairs=110, validation_pairs=16, calc=(2, 2), mass=(2, 2), workers=2)
    root = out / "tree" / "roco"
    faults = planted.plant(root)
    before = planted.files(out)
    sections, found, args = planted.examine(root, *SMALL, "--output-dir", str(out / "run"))
    return faults, sections, planted.files(out) == before, (found, args)


@pytest.mark.parametrize("kind", planted.KINDS)
def test_three_planted_faults_of_each_kind_are_found(pairs, kind):
    faults, sections, _, _ = pairs
    assert planted.judge({kind: faults[kind]}, sections)[kind][0] == len(faults[kind]) == 3


def test_nothing_is_written(pairs):
    assert pairs[2]


def test_what_would_end_a_run_is_a_fault_and_the_rest_a_note(pairs):
    verdicts = {section.title: section.verdict for section in pairs[1]}
    assert verdicts.pop("Data") == verdicts.pop("Images") == "FAULT"
    assert verdicts.pop("Disk") == verdicts.pop("A step") == verdicts.pop("Tokenizer and weights") == "ok"
    assert set(verdicts.values()) == {"note"} and len(verdicts) == 4


def test_the_page_is_one_file_with_examples_and_their_views(pairs):
    _, sections, _, (found, args) = pairs
    html = page.as_html("python <b>", sections, found, args)
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert all(source.startswith("data:") for source in sources) and "<b>" not in html
    near = next(section for section in sections if section.title == "Duplicate images").examples
    assert {len(example.images) for examples in near.values() for example in examples} == {2}
    shown = html[html.index("Pairs of nearly the same image</h3>") :].split('class="card"')[1]
    assert shown.count('<img alt="train') == 2 and shown.count('<img alt="view') == 6  # of each image three


def test_the_command_line(scripts, tmp_path):
    root = make_roco(tmp_path / "roco", 16, 6)
    words = ("--root", root, *SMALL, "--output-dir", tmp_path / "run", "--html", tmp_path / "page.html")
    code, printed, errors = scripts.run("tools/doctor.py", "main.py", *words)
    assert (code, errors) == (0, "") and "0 faults" in printed
    assert "an epoch on this one device" in printed and "estimated, not measured" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "roco"]
    assert sorted(path.name for path in root.iterdir()) == ["train", "validation"]


def test_every_fault_is_named_at_once(scripts, tmp_path):
    """A run would stop at the first of them."""
    root = make_roco(tmp_path / "roco", 16, 6)
    images = root / "train" / "radiology" / "images"
    (images / "ROCO_00003.jpg").write_bytes(b"no image")
    (tmp_path / "file").write_text("")
    torch.save({"vision_model.x": torch.zeros(1)}, tmp_path / "weights.pt")
    words = ["--root", root, *SMALL, "--output-dir", tmp_path / "file" / "run", "--batch-size", "64"]
    code, printed, _ = scripts.run("tools/doctor.py", *words, "--pretrained", tmp_path / "weights.pt")
    assert code == 2
    for fault in (
        "1 images cannot be read: a run would stop",
        "does not fit --arch test_vit",
        f"{tmp_path / 'file'} is a file",
        "15 training pairs are fewer than one step takes",
    ):
        assert fault in re.sub(r"\s+", " ", printed), fault
    code, printed, _ = scripts.run("tools/doctor.py", "--root", root, *SMALL, "--skip-broken")
    assert code == 0 and "1 images cannot be read (left out by --skip-broken)" in printed


def test_a_catalog_without_the_entry_is_a_fault_and_the_rest_is_looked_at(scripts, tmp_path):
    code, printed, _ = scripts.run("tools/doctor.py", *SMALL, "--dataset", "nowhere", "--output-dir", tmp_path / "run")
    assert code == 2 and "no entry 'nowhere'" in printed and "[ok] Disk" in printed


def test_a_model_of_open_clips(scripts, tmp_path, folders):
    """Its captions are counted without their padding, and it sees images as its configuration says."""
    arch = f"open_clip:local-dir:{publish('siglip', tmp_path / 'model')}"
    args = doctor.parse(["--root", str(make_roco(tmp_path / "roco", 16, 6)), "--arch", arch])
    models.settle_defaults(args)
    found = Subject()
    read(args, found)
    section = captions.describe_lengths(found, models.own_tokenizer(arch, args.published)[0], args.context_length)
    assert 10 < float(re.search(r"median (\d+)", section.lines[1][1])[1]) < 200
    words = ("--catalog", folders, "--dataset", "imagenet", "--arch", arch, "--device", "cpu")
    code, printed, errors = scripts.run("tools/doctor.py", "main_linear.py", *words, "--html", tmp_path / "page.html")
    assert (code, errors) == (0, ""), printed


def test_an_arch_that_is_none_is_a_fault_and_the_rest_is_looked_at(scripts, tmp_path, folders):
    root = make_roco(tmp_path / "roco", 16, 6)
    for words in (("main.py", "--root", root), ("main_linear.py", "--catalog", folders, "--dataset", "imagenet")):
        more = ("--arch", "open_clip:RN5", "--output-dir", tmp_path / "run", "--html", tmp_path / "page.html")
        code, printed, errors = scripts.run("tools/doctor.py", *words, *more)
        assert (code, errors) == (2, "")
        assert "FAULT --arch open_clip:RN5: open_clip has no such model" in printed and "[ok] Disk" in printed


def test_a_probe_whose_splits_share_patients_and_an_image(scripts, tmp_path):
    for split, count in (("train", 12), ("test", 6)):
        files = [tmp_path / f"{split}_{number}.png" for number in range(count)]
        for number, file in enumerate(files):
            picture(number + 100 * (split == "test"), (80, 80)).save(file)
        np.save(tmp_path / f"{split}_images.npy", np.array([str(file) for file in files]))
        np.save(tmp_path / f"{split}_labels.npy", np.arange(count) % 2)
        np.save(tmp_path / f"{split}_patients.npy", np.array([f"{split[:2]}{number}" for number in range(count)]))
    patients = np.load(tmp_path / "test_patients.npy")
    patients[0] = "tr0"
    np.save(tmp_path / "test_patients.npy", patients)
    with Image.open(tmp_path / "train_4.png") as image:
        image.save(tmp_path / "test_5.png", compress_level=1)  # the same pixels in other bytes
    catalog = tmp_path / "catalog.json"
    catalog.write_text('{"mine": {"path": ".", "type": "filelist", "train": "train", "test": "test"}}')
    words = "--dataset mine --arch test_vit --image-size 64 --batch-size 4 --workers 1 --device cpu".split()
    words += ["--catalog", catalog, "--output-dir", tmp_path / "run"]
    code, printed, _ = scripts.run("tools/doctor.py", "main_linear.py", *words)
    printed = re.sub(r"\s+", " ", printed)
    assert code == 2 and "FAULT --dataset mine: 1 patients are in the training and in the test split" in printed
    assert "1 images are in train and test: train_4.png = test_5.png" in printed
    code, printed, _ = scripts.run("tools/doctor.py", "main_linear.py", *words, "--allow-leakage")
    assert code == 0 and "1 patients are in train and test" in printed


@pytest.mark.parametrize("kind", ["table", "webdataset"])
def test_other_types_and_dicom(scripts, tmp_path, kind):
    """The same pairs from a table, one of them a DICOM file, and from shards, whose index is not kept."""
    root = make_roco(tmp_path / "roco", 16, 6, 0)
    shutil.copyfile(get_testdata_file("CT_small.dcm"), tmp_path / "ct.dcm")
    rows = ["image,caption,split", "ct.dcm,Axial CT of the body,train"]
    for split in ("train", "validation"):
        folder = root / split / "radiology"
        for key, text in zip(*read_lines(folder / "captions.txt"), strict=True):
            rows.append(f"{folder}/images/{key}.jpg,{text},{split}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    catalog = tmp_path / "catalog.json"
    entry = {"type": "table", "path": "pairs.csv"}
    catalog.write_text(json.dumps({"mine": entry}))
    words = ["--catalog", catalog, "--dataset", "mine"]
    if kind == "webdataset":
        code, printed, errors = scripts.run("tools/pack.py", *words, "--out", tmp_path / "shards")
        assert code == 0, errors
        shards = {split: f"{split}/shard-000000.tar" for split in ("train", "validation")}
        catalog.write_text(json.dumps({"mine": {"type": kind, "path": "shards", **shards}}))
    before = planted.files(tmp_path)
    code, printed, errors = scripts.run("tools/doctor.py", *words, *SMALL, "--output-dir", tmp_path / "run")
    assert (code, errors) == (0, "") and "23 image files" in printed
    assert "DICOM, 16 bits, MONOCHROME2, gray: 1" in printed and "6 images are in train and validation" in printed
    assert planted.files(tmp_path) == before


def test_bad_rows_are_all_named_and_the_others_kept(tmp_path):
    file = tmp_path / "captions.txt"
    rows = [b"a\t one", b"../b\t two", b"c\t", b"d\t \xff", b"a\t three", b"", b"e\\f\t x", b"g\t four"]
    good, bad, empty = sort_rows(b"\n".join(rows), file)
    assert good == [("a", "one"), ("g", "four")] and empty == ["c"]
    assert [int(re.search(r"row (\d+)", one)[1]) for one in bad] == [2, 4, 5, 7]
    file.write_text("".join(f"{key}\t{text}\n" for key, text in good))
    assert list(read_lines(file)[0]) == ["a", "g"]


def test_near_captions_are_those_that_all_comparisons_find():
    rng = np.random.default_rng(0)
    texts = [[f"w{n}" for n in rng.integers(0, 40, rng.integers(3, 16))] for _ in range(150)]
    texts += [[*text, "more"] for text in texts[:30]] + [text[:-1] for text in texts[30:60]]
    for alike in (0.6, 0.9):
        expected = [
            (i, j)
            for i, j in itertools.combinations(range(len(texts)), 2)
            if len(set(texts[i]) & set(texts[j])) >= alike * len(set(texts[i]) | set(texts[j]))
        ]
        found, stopped = captions.near_pairs(texts, alike)
        assert found == expected and len(found) > 20 and not stopped


def test_alike_hashes_are_those_that_all_comparisons_find():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 3 * duplicates.BLOCK + 5, dtype=np.uint64)
    hashes[50:90] = hashes[:40] ^ np.uint64(0b1000100010001)
    hashes[-9:] = hashes[20:29] ^ np.uint64(0b1111111)  # seven bits are too many
    found = [
        (int(i), int(j), int(bits))
        for block in duplicates.alike_hashes(hashes)
        for i, j, bits in zip(*block, strict=True)
    ]
    assert sorted(found) == [(i, i + 50, 4) for i in range(40)]


@pytest.mark.parametrize(
    ("text", "nothing"),
    [("N/A", True), ("No caption available.", True), ("Fig. 3b", True), ("IN PROGRESS", True), ("CT", False)]
    + [("image of the pelvis", False), ("unknown primary tumour", False), ("No fracture", False)],
)
def test_placeholders(text, nothing):
    assert bool(captions.PLACEHOLDER.fullmatch(" ".join(captions.words(text)))) == nothing


class Card:
    """In place of a Trial on a GPU: a step of n pairs takes 1,000 + 10 n bytes, and there are 5,000."""

    tried = ()

    def peak(self, size: int) -> int | None:
        self.tried += (size,)
        return 1000 + 10 * size if 1000 + 10 * size <= 5000 else None


def test_the_largest_batch_is_one_that_was_tried():
    card = Card()
    assert step.largest_batch(card, 64, card.peak(64), 5000) == 368 and card.tried[-1] == 368
    wrong = Card()
    largest = step.largest_batch(wrong, 64, wrong.peak(64), 8000)  # more is free than a step can have
    assert wrong.peak(largest) is not None and largest > 300


def test_what_is_kept_for_the_backward_pass_grows_with_the_pairs(tmp_path):
    """Of each pair as much; and recomputing activations keeps less."""
    root = make_roco(tmp_path / "roco", 16, 6)
    kept = {}
    for more, sizes in (((), (2, 4, 6)), (("--grad-checkpointing",), (6,))):
        args = doctor.parse(["--root", str(root), *SMALL, *more])
        found = Subject()
        read(args, found)
        train = found.splits["train"].data
        _, tokenizer, model = network.build(args, tmp_path / "run", train, "cpu", False)
        trial = step.Trial(args, model, tokenizer, train, tmp_path)
        kept[more] = [trial.kept(size) for size in sizes]
    few, some, many = kept[()]
    assert abs((many - some) / (some - few) - 1) < 0.1
    assert kept[("--grad-checkpointing",)][0] < many
