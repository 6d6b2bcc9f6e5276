"""ROCO's tree: images by id or by PMC name, missing ones counted and named, and malformed rows refused."""

import numpy as np
import pytest

from conftest import make_roco, picture
from data import buffers
from data import roco as reader
from utils import InputError


def test_pairs_and_missing(roco):
    pairs = reader.read_pairs(roco)
    assert len(pairs) == 24 and pairs.missing == ["ROCO_00024", "ROCO_00025"]
    assert pairs.counts == {"captions": 26, "pairs": 24, "without image": 2}
    assert pairs.captions[3] == "Mammogram showing a effusion number 3."
    table = reader.roco_table(roco, "validation")
    assert list(table.columns) == ["id", "path", "caption"] and len(table) == 8
    assert table.path[0].endswith("validation/radiology/images/ROCO_50000.jpg")


def test_images_by_pmc_name_and_any_suffix(tmp_path):
    root = make_roco(tmp_path / "roco", train=3, absent=0)
    folder = root / "train" / "radiology"
    rows = ["ROCO_ID,PMC_ID,CC"]
    for number, name in enumerate(("PMC1_a.001.jpg", "PMC2_b.jpg", "PMC3_c.jpg")):
        (folder / "images" / f"ROCO_{number:05d}.jpg").unlink()
        rows.append(f"ROCO_{number:05d},{name},CC BY")
    picture(0).save(folder / "images" / "PMC1_a.001.jpg")
    picture(1).save(folder / "images" / "PMC2_b.PNG")
    (folder / "images" / "PMC3_c.txt").write_text("no image")
    (folder / "licences.txt").write_text("\n".join(rows) + "\n")
    pairs = reader.read_pairs(root)
    assert list(pairs.files) == [f"train/radiology/images/{name}" for name in ("PMC1_a.001.jpg", "PMC2_b.PNG")]
    assert pairs.missing == ["ROCO_00002"]


def test_metadata_takes_ids_of_any_split(roco, tmp_path):
    (tmp_path / "mine.txt").write_text("ROCO_00001 a caption\nROCO_50001\tanother  one\nROCO_99999 lost\n")
    pairs = reader.read_pairs(roco, metadata=tmp_path / "mine.txt")
    assert list(pairs.ids) == ["ROCO_00001", "ROCO_50001"] and pairs.captions[1] == "another one"
    assert pairs.missing == ["ROCO_99999"]


def test_folder_above_the_splits_and_links(roco, tmp_path):
    (tmp_path / "above").mkdir()
    (tmp_path / "above" / "all_data").symlink_to(roco)
    assert len(reader.read_pairs(tmp_path / "above")) == 24


@pytest.mark.parametrize(
    ("text", "mammo", "both"),
    [
        ("Mammogram of the left breast", True, True),
        ("Right MLO view of a circumscribed mass", True, True),
        ("Craniocaudal view shows a retroareolar abscess", True, True),
        ("Ultrasound after a negative mammogram", False, False),
        ("collection of 5.6 cm in craniocaudal length", False, False),
        ("Chest X-ray with effusion", False, True),
        ("Plain radiograph of the knee", False, True),
        ("Axial CT, compare the radiograph", False, False),
        ("Magnetic resonance mammography", False, False),
        ("Axial T2 of the brain", False, False),
    ],
)
def test_subset_patterns(text, mammo, both):
    assert reader.in_subset("mammo")(text) == mammo
    assert reader.in_subset("mammo+xray")(text) == both


def test_subset_of_a_tree(roco):
    assert reader.read_pairs(roco, subset="mammo").counts == {
        "captions": 26,
        "mammo": 9,
        "pairs": 8,
        "without image": 1,
    }
    assert len(reader.read_pairs(roco, subset="mammo+xray")) == 16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"captions\.txt: holds no captions"),
        (b"\n \n", r"captions\.txt: holds no captions"),
        (
            b"ROCO_00001\t fine\n../../etc/passwd\t caption\n",
            r"captions\.txt, row 2: '\.\./\.\./etc/passwd' is not an id",
        ),
        (b"/etc/passwd caption\n", r"captions\.txt, row 1: '/etc/passwd' is not an id"),
        (b"ROCO_00001 a\nROCO_00001 b\n", r"row 2: the id 'ROCO_00001' comes twice"),
        (b"ROCO_00001 a\nROCO_00002 \xff\xfe\n", "row 2: not UTF-8"),
        (b"ROCO_77777 a\n", "no image for any of the 1 captions"),
    ],
)
def test_bad_captions(roco, content, message):
    (roco / "train" / "radiology" / "captions.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        reader.read_pairs(roco)


def test_missing_folders(roco, tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        reader.read_pairs(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no train/radiology in it"):
        reader.read_pairs(tmp_path / "empty")
    assert reader.read_pairs(roco, "test", optional=True) is None
    with pytest.raises(InputError, match=r"test/radiology/captions\.txt: cannot be read"):
        reader.read_pairs(roco, "test")


def test_lines_become_buffers(tmp_path, monkeypatch):
    """Blank lines, white space of every kind, rows without text, a byte order mark, no end of line at the end."""
    path = tmp_path / "lines.txt"
    path.write_bytes("\ufeffb\t one\x1f\xa0two \r\n\n \nempty\t \ná\u2003 é  ü\nlast x".encode())
    for size in (1, 12, 1 << 20):  # bytes of a block: every line its own, some, all
        monkeypatch.setattr(buffers, "BLOCK", size)
        ids, texts = buffers.read_lines(path)
        assert list(ids) == ["b", "á", "last"] and list(texts) == ["one two", "é ü", "x"]
        assert bytes(ids.buffer) == "bálast".encode() and list(ids.offsets) == [0, 1, 3, 7]
        assert texts[2] == "x" and len(texts) == 3
        with pytest.raises(IndexError):
            texts[3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a 1\n" + b"\n" * 40 + b"b 2\na 3\nb 4\n", "row 43: the id 'a' comes twice"),
        (
            b"a\na 1\nb 2\na\n",
            "row 4: the id 'a' comes twice",
        ),  # a row without text claims no id, but may not repeat one
        (b"a 1\na 2\n/b 3\n", "row 2: the id 'a' comes twice"),  # the first bad row is named
        (b"a 1\n.b 3\na 2\n\xff\n", "row 2: '.b' is not an id"),
        (b"a 1\n\n\xff /x\n/b 3\n", "row 3: not UTF-8"),
    ],
)
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_the_first_bad_row_is_named(tmp_path, monkeypatch, content, message, size):
    monkeypatch.setattr(buffers, "BLOCK", size)
    (tmp_path / "lines.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        buffers.read_lines(tmp_path / "lines.txt")


def test_equal_hashes_of_other_ids_are_no_doubles(tmp_path, monkeypatch):
    monkeypatch.setattr(buffers, "hash", lambda key: 7, raising=False)
    (tmp_path / "lines.txt").write_text("a 1\nb 2\nc 3\n")
    assert list(buffers.read_lines(tmp_path / "lines.txt")[0]) == ["a", "b", "c"]
    (tmp_path / "lines.txt").write_text("a 1\nb 2\nc 3\nb 4\n")
    with pytest.raises(InputError, match="row 4: the id 'b' comes twice"):
        buffers.read_lines(tmp_path / "lines.txt")


def test_strings_are_taken_in_order():
    words = ["", "ab", "é", "", "c"]
    for keep in ([1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 1], [1, 0, 1, 1, 0]):
        strings, keep = buffers.Strings(words), np.array(keep, bool)
        expected = [word for word, kept in zip(words, keep, strict=True) if kept]
        assert list(strings.take(keep)) == expected and list(strings) == words
        taken = strings.take(keep, reuse=True)
        assert list(taken) == expected and bytes(taken.buffer) == "".join(expected).encode()


def test_pairs_without_some_files(roco):
    pairs = reader.read_pairs(roco)
    assert list(pairs.paths()) == sorted(pairs.path(i) for i in range(24))
    broken = {pairs.path(0), pairs.path(23)}
    left = pairs.without(broken)
    assert list(left.ids) == list(pairs.ids)[1:23] and list(left.captions) == list(pairs.captions)[1:23]
    assert [left.path(i) for i in range(22)] == [pairs.path(i) for i in range(1, 23)]
    assert left.unreadable == sorted(broken) and len(pairs) == 24
