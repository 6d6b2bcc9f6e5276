"""One process at a time writes to a folder: a lock file in it names that process.

The file is made with O_EXCL, which all file systems have, network disks included, where flock is often missing. The
process that made it, its owner, touches it every few seconds. Another process that finds the file must know whether the
owner still runs: on the same machine it asks the kernel, and on another one it goes by the touches, timed by the file
system's own clock.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path

import distributed
import utils
from utils import InputError, logger

NAME = ".lock"
BEAT = 10.0  # seconds between two touches
WATCH = 15.0  # the least seconds for which one waits for a touch of an owner on another machine
STALE = 60.0  # seconds without a touch after which an owner on another machine is taken to be gone
GRACE = 3.0  # seconds that a running owner is given to end: a requeued job may meet its own process of before
POLL = 0.5  # seconds between two looks at the file


def process_state(pid: int) -> tuple[str, str]:
    """-> a process's state (R, S, Z, ...) and when it started, in ticks since the machine did. Raises OSError."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], fields[19]


def myself() -> dict:
    """What tells this process from any other on any machine; what the system does not say is None."""
    found = {"host": socket.gethostname(), "pid": os.getpid(), "start": None, "boot": None, "namespace": None}
    with contextlib.suppress(OSError):
        found["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        found["namespace"] = os.readlink("/proc/self/ns/pid")
        found["start"] = process_state(os.getpid())[1]
    return found


def runs(owner: dict) -> bool | None:
    """Whether the process that `myself` described as `owner` still runs; None if that cannot be known from here."""
    me = myself()
    if owner.get("start") is None or any(owner.get(key) != me[key] for key in ("host", "boot", "namespace")):
        return None
    try:
        state, start = process_state(owner["pid"])
        return start == owner["start"] and state not in "ZX"  # a zombie has ended, and waits for its parent
    except OSError:
        try:
            os.kill(owner["pid"], 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass
        return None  # /proc hides the processes of other users


class Lock:
    """A context manager: the lock of a folder that exists; `flag` is the command line's argument for the folder.

    If another process holds the lock, `wait` waits for its end; otherwise InputError is raised. The lock of a process
    that was killed is taken over: at once if it ran on this machine, else when it has not been touched for STALE
    seconds, the last WATCH or more of them watched from here. Raises InputError if the folder cannot be written.
    """

    def __init__(self, folder: Path, flag: str, wait: bool = False):
        self.folder, self.path, self.flag, self.wait = folder, folder / NAME, flag, wait
        self.text = json.dumps({**myself(), "token": secrets.token_hex(8)})
        self.claim = folder / f"{NAME}.claim.tmp"
        self.clock_file = folder / f"{NAME}.{secrets.token_hex(8)}.tmp"
        self.touched = 0.0  # by this machine's clock, which goes on while the process is suspended
        self.lost, self.stop, self.thread = None, threading.Event(), None

    def __enter__(self):
        self.take()
        return self

    def __exit__(self, *_):
        self.release()

    def take(self) -> None:
        try:
            self.wait_for_it()
        except OSError as error:
            raise InputError(
                f"{self.flag} {self.folder}: cannot be written ({error.strerror or error}): make room, or give another"
            ) from None
        self.touched = time.time()
        self.thread = threading.Thread(target=self.beat, daemon=True)
        self.thread.start()
        utils.before_end.append(self.release)

    def wait_for_it(self) -> None:
        begun, seen, since, moved, said = time.monotonic(), None, 0.0, False, False
        while not self.create():
            found = self.look()
            if found is None:
                continue  # it has just been released
            now, owner = time.monotonic(), described(found[0])
            running = runs(owner)
            if running is None:  # go by the touches: `moved` says whether one was seen
                if found != seen:
                    moved = seen is not None and found[0] == seen[0]
                    seen, since = found, now - min(max(0.0, self.age(found[1])), STALE - WATCH)
                running = False if now - since >= STALE else moved or None
            if running is False:
                self.remove_stale(found[0])
                continue
            if running and not self.wait and now - begun >= GRACE:
                raise InputError(
                    f"{self.flag} {self.folder}: {name(owner)} is writing to it: wait for its end, stop it, or give "
                    f"another {self.flag}"
                )
            if owner and not said and (self.wait or not running):
                what = "which is writing to it" if self.wait else f"up to {STALE:.0f} s, in case it has ended"
                logger.info(f"{self.folder}: waiting for {name(owner)}, {what}")
                said = True
            time.sleep(POLL)

    def create(self) -> bool:
        """Make the lock file, in the name of this process -> False if there is one already."""
        try:
            file = open(self.path, "x", encoding="utf-8")  # noqa: SIM115
        except FileExistsError:
            return False
        try:
            with file:
                file.write(self.text)
        except OSError:
            self.path.unlink(missing_ok=True)
            raise
        return True

    def look(self) -> tuple[str, int] | None:
        """-> the text of the lock file and the time of its last touch, in ns; None if there is no file."""
        try:
            # Opened each time, because a network disk may answer from its cache otherwise.
            with open(self.path, encoding="utf-8", errors="replace") as file:
                return file.read(), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None

    def age(self, touched: int) -> float:
        """The seconds since `touched` (ns) by the file system's clock, read off a new file; 0 if that fails."""
        try:
            self.clock_file.touch()
            return (self.clock_file.stat().st_mtime_ns - touched) / 1e9
        except OSError:
            return 0.0
        finally:
            with contextlib.suppress(OSError):
                self.clock_file.unlink()

    def remove_stale(self, text: str) -> None:
        """Remove the lock file if its text is still `text`.

        Other processes may be about to do the same, and the first of them may already have made its own lock file. So
        each looks and removes while it holds a second file, the claim, which it has for a moment only.
        """
        try:
            os.close(os.open(self.claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            time.sleep(POLL)
            with contextlib.suppress(FileNotFoundError):
                if self.age(self.claim.stat().st_mtime_ns) >= STALE:  # a process was killed while it held the claim
                    self.claim.unlink()
            return
        try:
            found = self.look()
            if found is not None and found[0] == text:
                self.path.unlink()
        finally:
            self.claim.unlink(missing_ok=True)

    def beat(self) -> None:
        """Touch the file again and again, in a thread of its own."""
        while self.lost is None and not self.stop.wait(BEAT):
            self.touch()

    def touch(self) -> None:
        """Touch the file, and so show that this process runs; or note in `lost` that it is no longer the owner."""
        with contextlib.suppress(OSError):  # if the disk is gone for good, the run ends when it saves
            found = self.look()
            if found is None and time.time() - self.touched >= STALE:  # taken over by a process that has since ended
                self.lost = {}
            elif found is not None and found[0] != self.text:
                self.lost = described(found[0])
            elif found is not None:
                os.utime(self.path)
                self.touched = time.time()
            elif self.create():
                self.touched = time.time()

    def check(self) -> None:
        """Raises InputError if another process has taken the folder over, as it may while this one is suspended."""
        if self.thread is not None and time.time() - self.touched >= STALE / 2:  # `beat` may not have run since then
            self.touch()
        if self.lost is not None:
            raise InputError(
                f"{self.folder}: {name(self.lost)} has taken it over, since this process gave no sign of life for "
                f"{STALE:.0f} s: it ends without saving"
            )

    def release(self) -> None:
        if self.thread is None:
            return
        utils.before_end.remove(self.release)
        self.stop.set()
        self.thread.join(BEAT)
        self.thread = None
        with contextlib.suppress(OSError):
            found = self.look()
            if found is not None and found[0] == self.text:
                self.path.unlink()


def in_use(folder: Path) -> bool:
    """Whether a process that may still run holds the folder's lock."""
    try:
        text = (folder / NAME).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return runs(described(text)) is not False


def described(text: str) -> dict:
    """The owner that a lock file's text describes, as `myself`; empty if the text is not whole (yet)."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("pid"), int) else {}


def name(owner: dict) -> str:
    return f"process {owner['pid']} on {owner.get('host', '?')}" if owner else "another process"


@contextlib.contextmanager
def output_folder(out: Path, flag: str = "--output-dir"):
    """Make a run's output folder and hold its Lock: rank 0 does, for all ranks. An empty folder is removed at the end.

    Raises InputError, which says `flag`, on all ranks, if another run holds the lock.
    """
    held, made = Lock(out, flag), []

    def take() -> None:
        made.extend(folder for folder in (out, *out.parents) if not os.path.exists(folder))
        utils.make_folder(out, flag)
        held.take()

    try:
        distributed.on_rank0(take)
        yield held
    finally:
        held.release()
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
