"""A really full disk: a small tmpfs, for what a training and a probe write. Needs the right to mount one."""

import contextlib
import json
import os
import shutil
import subprocess

import pytest

import main_linear
from conftest import picture
from data import cache
from test_linear import probe
from test_main import log_lines, read_checkpoint, train
from training import logs
from utils import InputError

ROOM = 48  # MB; a checkpoint of these runs takes 6
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def disk(tmp_path):
    """A disk of ROOM MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk, leave=0):
    """Take the disk's room but for so many bytes, in a file that `make_room` removes."""
    with contextlib.suppress(OSError), open(disk / "filler", "ab", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    if leave:
        os.truncate(disk / "filler", os.path.getsize(disk / "filler") - leave)


def make_room(disk):
    (disk / "filler").unlink()


def one_line(errors, *words):
    assert len(errors.strip().splitlines()) == 1, errors
    for word in words:
        assert str(word) in errors
    return True


def halves(folder):
    return [path for path in folder.rglob(".*") if path.is_file()]


SMALL = ("--arch", "test_efficientnet", "--objective", "simclr")


def test_checkpoints(roco, disk, capsys):
    """There is room for a line of the log, and none for a checkpoint."""
    out = disk / "out"
    assert train(capsys, roco, out, *SMALL, "--epochs", 1)[0] == 0
    before = (out / "checkpoint.pt").read_bytes()
    fill(disk, leave=len(before) // 2)
    code, printed, errors = train(capsys, roco, out, *SMALL, "--epochs", 3)
    assert code == 2 and one_line(errors, "could not be written (No space left on device)", "is whole", "make room")
    assert printed.count("training goes on, and the next save tries again") == 2
    assert (out / "checkpoint.pt").read_bytes() == before and not halves(out)
    assert [line["epoch"] for line in log_lines(out)] == [0, 1, 2]
    make_room(disk)
    code, printed, errors = train(capsys, roco, out, *SMALL, "--epochs", 3)
    assert code == 0 and "1 epochs done" in printed, errors
    state = read_checkpoint(out / "checkpoint.pt")
    assert state["epoch"] == 3 and state["best"] == max(line["val_score"] for line in log_lines(out))


def test_a_run_on_a_disk_that_is_full_at_its_start(roco, disk, capsys):
    fill(disk)
    code, _, errors = train(capsys, roco, disk / "out", *SMALL, "--epochs", 1)
    assert code == 2 and one_line(errors, disk / "out", "No space left on device", "make room")
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_the_log(roco, disk, tmp_path, capsys):
    """A half line first: what remains of the last page takes that much."""
    path = disk / "log.txt"
    record = {"epoch": 0, "text": "x" * 4000}
    log = logs.Log(disk / "log.txt")
    log.write(record)
    fill(disk)
    log.write(record)
    assert path.read_text() == json.dumps(record) + "\n" and log.waiting
    make_room(disk)
    log.close()
    assert path.read_text() == 2 * (json.dumps(record) + "\n")
    # Then a run whose log alone is on the disk.
    path.unlink()
    out = tmp_path / "out"
    out.mkdir()
    (out / "log.txt").symlink_to(path)
    fill(disk)
    code, printed, errors = train(capsys, roco, out, *SMALL, "--epochs", 2)
    assert code == 2 and one_line(errors, "log.txt: cannot be written (No space left on device): 2 lines are missing")
    assert printed.count('{"epoch": ') == 2 and read_checkpoint(out / "checkpoint.pt")["epoch"] == 2
    assert path.read_text() == ""


def test_a_cache(disk, tmp_path):
    paths = [str(tmp_path / f"{number}.jpg") for number in range(20)]
    for number, path in enumerate(paths):
        picture(number, (512, 512)).save(path)
    arguments = (str(disk / "cache"), str(tmp_path), "set", paths.__getitem__, len(paths), 224)
    fill(disk, leave=1 << 20)
    with pytest.raises(InputError, match=r"the cache cannot be written \(No space left on device\): make room"):
        cache.pictures(*arguments)
    assert not [path for path in (disk / "cache").rglob("*") if path.is_file()]
    make_room(disk)
    assert cache.pictures(*arguments)[19].width == 512


# By a probe, in that order.
WRITTEN = ("predictions.csv", "features.pt", "probe.safetensors", "roc.png", "confusion.png", "results.json")


def test_a_probe(folders, disk, capsys, monkeypatch):
    """With more room each time, a later file is the first that does not fit; each takes pages of its own."""

    def run(out):
        return probe(capsys, out, "--catalog", folders, "--dataset", "imagenet")

    def pages(path):
        return -(-path.stat().st_size // PAGE)

    whole, out = disk / "whole", disk / "out"
    with monkeypatch.context() as patch:
        patch.setattr(main_linear.shutil, "rmtree", lambda *_, **__: None)  # keeps the features' shards
        assert run(whole)[0] == 0
    shards = sum(map(pages, whole.rglob("0*.pt")))
    fill(disk, leave=2 * PAGE)  # the lock's, and one more
    code, printed, errors = run(out)
    assert printed.count("00000.pt: cannot be written (No space left on device)") >= 2 and "goes on" in printed
    assert code == 2 and one_line(errors, out / "features.pt", "No space left on device")
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["predictions.csv"]
    make_room(disk)
    for number in (0, 2, 5):
        name = WRITTEN[number]
        shutil.rmtree(out, ignore_errors=True)
        fits = sum(pages(whole / one) for one in WRITTEN[:number])
        fill(disk, leave=(1 + shards + fits + pages(whole / name) - 1) * PAGE)
        code, _, errors = run(out)
        assert code == 2 and one_line(errors, f"{out / name}: cannot be written", "No space left on device")
        make_room(disk)
        assert sorted(path.name for path in out.iterdir() if path.is_file()) == sorted(WRITTEN[:number])
        assert (out / "predictions.csv").exists() == (number > 0)
    code, printed, errors = run(out)
    assert code == 0 and "going on with 1 of 1 batches of features" in printed, errors
    assert (out / "predictions.csv").read_text() == (whole / "predictions.csv").read_text()
