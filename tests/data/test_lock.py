"""Two processes that want one folder or cache: which is refused, which waits, and which takes over from a dead one."""

import contextlib
import json
import os
import signal
import socket
import threading
import time

import pytest

import distributed
import main_linear
import options
from conftest import picture, run_cli
from data import cache, lock
from scripts import HANG
from test_main import train
from utils import InputError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, "GRACE", 0.0)
    monkeypatch.setattr(lock, "POLL", 0.01)


def fork(work):
    """A process that calls `work` -> its id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    finally:
        os._exit(0)


@contextlib.contextmanager
def holder(folder):
    """A process that holds a folder's lock until the block ends -> its id."""
    taken, ended = os.pipe(), os.pipe()

    def hold():
        os.close(ended[1])
        with lock.Lock(folder, "--output-dir"):
            os.write(taken[1], b"x")
            os.read(ended[0], 1)

    child = fork(hold)
    os.close(taken[1])
    assert os.read(taken[0], 1) == b"x"
    try:
        yield child
    finally:
        os.close(ended[1])
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)
        for end in (taken[0], ended[0]):
            os.close(end)


def until(there):
    deadline = time.monotonic() + HANG
    while not there() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert there()


def elsewhere(folder):
    """Write a lock file as a process on another machine would -> its path."""
    owner = {"host": "other-node", "pid": 7, "start": "1", "boot": "another", "namespace": "pid:[1]", "token": "t"}
    (folder / "new").write_text(json.dumps(owner))
    return (folder / "new").replace(folder / lock.NAME)


def contents(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_the_second_run_is_refused_and_changes_nothing(roco, folders, tmp_path, capsys):
    out = tmp_path / "out"
    assert train(capsys, roco, out, "--epochs", 1)[0] == 0
    before = contents(out)
    assert lock.NAME not in before
    words = ("--catalog", folders, "--dataset", "imagenet", "--arch", "resnet10t", "--pretrained", "none", "--device")
    words += ("cpu", "--image-size", "32", "--workers", "0", "--output-dir", out)
    with holder(out) as child:
        mine = contents(out).pop(lock.NAME)
        for code, printed, errors in (
            train(capsys, roco, out, "--epochs", 2),
            run_cli(capsys, main_linear.main, options.linear_parser, *words),
        ):
            assert code == 2 and len(errors.strip().splitlines()) == 1
            assert f"{out}: process {child} on {socket.gethostname()} is writing to it" in errors
            assert "going on with" not in printed
        assert contents(out) == {**before, lock.NAME: mine}
        code, printed, _ = train(capsys, roco, out, "--evaluate")  # reads the newest whole checkpoint
        assert code == 0 and "going on with" in printed
    assert train(capsys, roco, out, "--epochs", 2)[0] == 0
    assert not list(out.glob(".*"))


def test_of_many_at_once_one_has_it(tmp_path):
    """Of four processes one gets the lock: of a free folder, and of one that a dead process had locked."""
    dead = fork(lambda: None)
    os.waitpid(dead, 0)
    stale = json.dumps({**lock.myself(), "pid": dead})
    for left in (None, stale) * 5:
        folder = tmp_path / "folder"
        folder.mkdir()
        if left:
            (folder / lock.NAME).write_text(left)
        begin, found, ended = os.pipe(), os.pipe(), os.pipe()

        def compete(folder=folder, begin=begin, found=found, ended=ended):
            for pipe in (begin, ended):
                os.close(pipe[1])
            os.read(begin[0], 1)
            held = lock.Lock(folder, "--output-dir")
            try:
                held.take()
                os.write(found[1], b"+")
                os.read(ended[0], 1)
                held.release()
            except InputError:
                os.write(found[1], b"-")

        children = [fork(compete) for _ in range(4)]
        os.close(found[1])  # if a child dies, reading from it ends instead of waiting for ever
        os.close(begin[1])
        assert sorted(os.read(found[0], 1) for _ in children) == [b"+", b"-", b"-", b"-"]
        os.close(ended[1])
        for child in children:
            os.waitpid(child, 0)
        for end in (begin[0], ended[0], found[0]):
            os.close(end)
        folder.rmdir()  # nothing is left in it


@pytest.mark.parametrize("reaped", [False, True])
def test_a_killed_run_does_not_stop_its_successor(tmp_path, reaped):
    """Not even while it is a zombie, because its parent has not yet waited for it."""
    with holder(tmp_path) as child:
        os.kill(child, signal.SIGKILL)
        if reaped:
            os.waitpid(child, 0)
        else:
            until(lambda: lock.process_state(child)[0] == "Z")
        with lock.Lock(tmp_path, "--output-dir"):
            assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_another_process_with_the_same_number_is_not_the_owner(tmp_path):
    (tmp_path / lock.NAME).write_text(json.dumps({**lock.myself(), "start": "1"}))
    with lock.Lock(tmp_path, "--output-dir"):
        pass


def test_a_run_killed_on_another_host(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="medslip")
    monkeypatch.setattr(lock, "WATCH", 0.1)
    path = elsewhere(tmp_path)
    os.utime(path, (time.time() - 3600,) * 2)
    with lock.Lock(tmp_path, "--output-dir"):  # touched long ago: taken over after WATCH seconds, not STALE
        pass
    path = elsewhere(tmp_path)
    claim = tmp_path / f"{lock.NAME}.claim.tmp"
    claim.touch()  # left by another process that was killed while it took over
    for one in (path, claim):
        os.utime(one, (time.time() - 3600,) * 2)
    with lock.Lock(tmp_path, "--output-dir"):
        pass
    monkeypatch.setattr(lock, "STALE", 0.3)
    path = elsewhere(tmp_path)
    os.utime(path, (time.time() + 60,) * 2)  # so that the first look, however late, is not the last
    with lock.Lock(tmp_path, "--output-dir"):  # touched lately: taken over STALE seconds later
        assert "waiting for process 7 on other-node, up to" in caplog.text
    path.touch()  # an empty one: its process was killed before it had written its name
    with lock.Lock(tmp_path, "--output-dir"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("late", [0, 3600])
def test_a_run_that_lives_on_another_host(tmp_path, late):
    """Also if that host's clock is an hour late, on a file system that takes the times of its clients."""
    path, stop = elsewhere(tmp_path), threading.Event()

    def touch():
        while not stop.wait(0.02):
            os.utime(path, (time.time() - late,) * 2)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with pytest.raises(InputError, match="process 7 on other-node is writing to it"):
            lock.Lock(tmp_path, "--output-dir").take()
    finally:
        stop.set()
        thread.join()


def test_the_owner_touches_it_and_notices_that_it_is_no_longer_the_owner(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    with lock.Lock(tmp_path, "--output-dir") as held:
        os.utime(held.path, (0, 0))
        until(lambda: held.path.stat().st_mtime > 0)
        held.path.unlink()  # by hand
        until(lambda: held.path.exists() and held.path.read_text() == held.text)
        held.check()
        elsewhere(tmp_path)
        until(lambda: held.lost is not None)
        with pytest.raises(InputError, match="process 7 on other-node has taken it over"):
            held.check()
    assert held.path.exists()  # it belongs to the other process


def test_a_run_that_was_cut_off_notices_that_another_has_come_and_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    monkeypatch.setattr(lock, "STALE", 0.0)  # every beat is late
    with lock.Lock(tmp_path, "--output-dir") as held:
        held.path.unlink()
        until(lambda: held.lost is not None)
        with pytest.raises(InputError, match="another process has taken it over"):
            held.check()


def test_a_process_that_ends_at_once_leaves_no_lock(tmp_path):
    def end():
        lock.Lock(tmp_path, "--output-dir").take()
        distributed.end_now(3)

    assert os.waitstatus_to_exitcode(os.waitpid(fork(end), 0)[1]) == 3
    assert not list(tmp_path.iterdir())


def test_a_folder_that_stays_empty_is_removed(tmp_path):
    with pytest.raises(KeyboardInterrupt), lock.output_folder(tmp_path / "new" / "out"):
        assert (tmp_path / "new" / "out" / lock.NAME).exists()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def wait_for_a_builder(tmp_path, caplog, meanwhile):
    """pictures() while another process holds the cache's lock; `meanwhile(child, cache)` -> what it returned."""
    caplog.set_level("INFO", logger="medslip")
    paths = [str(tmp_path / f"{number}.jpg") for number in range(3)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    arguments = (str(tmp_path / "cache"), str(tmp_path), "set", paths.__getitem__, len(paths), 224)
    folder = cache.pictures(*arguments).folder
    for path in folder.iterdir():
        path.unlink()
    caplog.clear()
    found = []
    with holder(folder) as child:
        thread = threading.Thread(target=lambda: found.append(cache.pictures(*arguments)))
        thread.start()
        until(lambda: f"{folder}: waiting for process {child} on {socket.gethostname()}" in caplog.text)
        meanwhile(child, cache.Cache(folder, paths.__getitem__, len(paths)))
    thread.join()
    assert found[0].open() == [] and not (folder / lock.NAME).exists()


def test_a_run_waits_for_the_cache_that_another_builds(tmp_path, caplog):
    def build(child, made):
        made.build(made.open())

    wait_for_a_builder(tmp_path, caplog, build)
    assert "pictures from the cache" in caplog.text and "building" not in caplog.text


def test_a_run_takes_over_from_a_builder_that_was_killed(tmp_path, caplog):
    wait_for_a_builder(tmp_path, caplog, lambda child, made: os.kill(child, signal.SIGKILL))
    assert "building a cache of about" in caplog.text
