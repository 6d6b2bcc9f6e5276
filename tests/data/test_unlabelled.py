"""Images that a user names: their ids, all rows of tables whatever their split, links that lead back."""

import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import picture

from data import unlabelled
from utils import InputError


def test_ids_of_a_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "a.jpg", "b.png", "sub/b.PNG", "1.2.84"):
        picture(0).save(tmp_path / name, "PNG")  # by its name 1.2.84 could be a DICOM file, by its mark it is none
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "sub" / "back").symlink_to(tmp_path)
    found = unlabelled.read_images(str(tmp_path))
    assert list(found.ids) == ["a.jpg", "a.png", "b", "sub/b"]
    assert found.path(3) == str(tmp_path / "sub" / "b.PNG") and found.captions is None
    (tmp_path / "line\nfeed.png").write_bytes(b"")
    with pytest.raises(InputError, match="is not one line of UTF-8"):
        unlabelled.read_images(str(tmp_path))


def test_all_rows_of_tables(tmp_path):
    picture(0).save(tmp_path / "a.png")
    stored = (tmp_path / "a.png").read_bytes()
    for number, split in enumerate(("train", "test")):
        table = pa.table(
            {"image": [{"bytes": stored, "path": "a.png"}] * 2, "report": ["one", ""], "split": [split] * 2}
        )
        pq.write_table(table, tmp_path / f"part-{number}.parquet")
    found = unlabelled.read_images(str(tmp_path / "part-*.parquet"), "")
    assert list(found.ids) == ["a", "a_2", "a_3", "a_4"] and list(found.captions) == ["one", "", "one", ""]
    assert found[3].width == 60
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"file": "a.png", "key": "x", "split": "val"}\n{"file": "b.png", "key": "y", "split": ""}\n')
    found = unlabelled.read_images(str(lines), image="file", id="key")
    assert list(found.ids) == ["x"] and found.path(0) == str(tmp_path / "a.png")
    assert found.missing == [f"{lines}, row 2: the image 'b.png' is not there"]


def test_a_folder_of_shards(tmp_path):
    picture(0).save(tmp_path / "a.png")
    for number in range(2):
        (tmp_path / f"set{number}").mkdir()
        with tarfile.open(tmp_path / f"set{number}" / "0.tar", "w") as archive:
            archive.add(tmp_path / "a.png", "a.png")
    assert list(unlabelled.read_images(str(tmp_path / "set0")).ids) == ["a"]
    both = f"{tmp_path}/set0/0.tar::{tmp_path}/set{{1..1}}/*.tar"
    assert list(unlabelled.read_images(both).ids) == ["set0/0/a", "set1/0/a"]
