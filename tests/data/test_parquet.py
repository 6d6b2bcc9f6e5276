"""Images that parquet files store: which rows hold one, and how often their row groups are read."""

import io
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import datasets
from conftest import picture
from data import cache, images, locations, parquet
from utils import InputError


def encoded(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, "png")
    return file.getvalue()


@pytest.fixture
def table(tmp_path):
    """12 pictures in 3 row groups; rows 5 and 9 hold none, and of row 9 the file lies beside."""
    cells = [{"bytes": encoded(i), "path": f"folder/{i}.png"} for i in range(12)]
    cells[2]["path"] = "/root/cache/../2.png"  # it is no path here, only a name
    cells[5] = None
    cells[9]["bytes"] = None
    (tmp_path / "folder").mkdir()
    picture(9).save(tmp_path / "folder" / "9.png")
    columns = {"image": cells, "text": [f"caption {i}" for i in range(12)], "raw": [encoded(i) for i in range(12)]}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet", row_group_size=4)
    return tmp_path / "train.parquet"


def entry(path, **keys) -> dict:
    return {"type": "table", "name": "mine", "path": str(path), "window": "", "share": "0", **keys}


@pytest.fixture
def readings(monkeypatch):
    """The row groups that were read."""
    found, read_cells = [], parquet.read_cells
    monkeypatch.setattr(parquet, "read_cells", lambda *words: found.append(words[1]) or read_cells(*words))
    parquet.groups.clear()
    return found


def test_pairs_with_stored_images(table):
    pairs = datasets.paired_set(entry(table), "train")
    names = [f"folder/{i}" for i in range(12) if i != 5]
    assert list(pairs.ids) == [*names[:2], "/root/cache/../2", *names[3:]] and pairs.missing == ["train.parquet_6"]
    assert pairs.files[0] == "train.parquet\0row=image:0\0name=0.png" and pairs.files[8] == "folder/9.png"
    for i, number in enumerate(n for n in range(12) if n != 5):
        assert np.array_equal(np.asarray(images.read_image(pairs.path(i))), np.asarray(picture(number)))
    assert locations.show(pairs.path(4)) == f"{table}, row 5 (4.png)"
    raw = datasets.paired_set(entry(table, image="raw"), "train")
    assert len(raw) == 12 and raw.ids[5] == "train.parquet_6" and images.read_image(raw.path(5)).size == (60, 48)


def test_row_groups_are_read_once_when_images_are_read_in_order(table, readings, tmp_path):
    pairs = datasets.paired_set(entry(table, image="raw"), "train")
    assert readings == []  # the file's own statistics say that every row holds an image
    assert images.unreadable(pairs.paths()) == {}
    assert sorted(readings) == [0, 1, 2]
    readings.clear()
    made = cache.Cache(tmp_path / "cache", pairs.path, len(pairs))
    made.folder.mkdir()
    made.build(made.open())
    assert sorted(readings) == [0, 1, 2] and made.open() == []
    assert all(np.array_equal(made[i].levels[0], np.asarray(picture(i))) for i in range(12))


def test_threads_that_read_different_groups_keep_theirs(table, readings):
    with ThreadPoolExecutor(3) as pool:
        for step in range(4):
            found = pool.map(lambda group, step=step: parquet.read(str(table), "raw", 4 * group + step), range(3))
            assert list(found) == [encoded(4 * group + step) for group in range(3)]
    assert len(readings) <= 9  # not one for each of 12 images, whichever thread took which


def test_a_forked_process_reads_too(table):
    assert parquet.read(str(table), "raw", 0) == encoded(0)
    child = os.fork()
    if not child:
        os._exit(0 if [parquet.read(str(table), "raw", row) for row in (1, 11)] == [encoded(1), encoded(11)] else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_file_that_has_changed_is_read_again(table):
    assert parquet.read(str(table), "raw", 3) == encoded(3)
    pq.write_table(pa.table({"raw": [b"other"] * 5}), table)
    assert parquet.read(str(table), "raw", 3) == b"other"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("row=image:5", "row 6: the image cannot be read .the cell is empty"),
        ("row=raw:12", "the file has 12 rows"),
        ("row=text:0", "the column 'text' holds no images"),
        ("row=other:0", "row 1: the image cannot be read"),
    ],
)
def test_cells_that_are_no_image(table, place, message):
    with pytest.raises(InputError, match=message):
        images.read_image(f"{table}\0{place}")
    assert len(images.unreadable([f"{table}\0{place}"])) == 1


def test_damage_is_named(table):
    cells = [encoded(0), b"no image", encoded(2)[:-40]]
    pq.write_table(pa.table({"image": cells, "text": ["a", "b", "c"]}), table)
    pairs = datasets.paired_set(entry(table), "train")
    first, second = images.unreadable(pairs.paths()).values()
    assert first.startswith(f"{table}, row 2: the image cannot be read (not an image)")
    assert second.startswith(f"{table}, row 3: the image cannot be read")
    contents = table.read_bytes()
    for damaged, message in (
        (contents[:-30], "not a parquet file"),
        (contents[:4] + bytes(200) + contents[204:], "cannot be read"),
    ):
        table.write_bytes(damaged)
        with pytest.raises(InputError, match=message):
            images.read_image(datasets.paired_set(entry(table), "train").path(0))
    table.unlink()
    with pytest.raises(InputError, match="the image is not there any more"):
        images.read_image(pairs.path(0))
    pq.write_table(pa.table({"image": [[{"bytes": b"x", "path": "x"}]], "text": ["a"]}), table)
    with pytest.raises(InputError, match="'image' holds lists of stored images: write a row for each image"):
        datasets.paired_set(entry(table), "train")
    pq.write_table(pa.table({"image": ["/etc/a.png"], "text": ["a"]}), table)
    with pytest.raises(InputError, match=r"row 1: '/etc/a\.png' leaves the data folder"):
        datasets.paired_set(entry(table), "train")


def test_a_column_is_read_piece_by_piece(tmp_path):
    """Not all at once, as pyarrow does by default."""
    stored = pa.table({"image": [os.urandom(1 << 20)] * 24})
    pq.write_table(stored, tmp_path / "a.parquet", row_group_size=2, compression="none", use_dictionary=False)
    before, most = pa.total_allocated_bytes(), 0
    with parquet.open_file(str(tmp_path / "a.parquet")) as file:
        for batch in file.iter_batches(1):
            assert len(batch) == 1
            most = max(most, pa.total_allocated_bytes() - before)
    assert 0 < most < 12 << 20  # of 24
