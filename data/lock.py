"""One process at a time writes to a folder: a file in it says which, and that it still runs.

The file is made with O_EXCL, which every file system has, network disks too, where flock often is missing. Its owner
touches it while it runs. Whether the owner of another's file still runs is asked of the kernel, on the same machine;
elsewhere the touches tell, by the file system's own clock.
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
WATCH = 15.0  # seconds for which the touches of a process elsewhere are looked out for, however old the last one is
STALE = 60.0  # seconds without one after which a process elsewhere is taken to be gone
GRACE = 3.0  # seconds that a process on this machine is given to end: a requeued job may meet its former self
POLL = 0.5  # seconds


def process(pid: int) -> tuple[str, str]:
    """-> a process's state (R, S, Z, ...) and its start, in ticks since the machine's. Raises OSError."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], fields[19]


def myself() -> dict:
    """What tells this process from any other on any machine; parts that the system does not say are None."""
    found = {"host": socket.gethostname(), "pid": os.getpid(), "start": None, "boot": None, "namespace": None}
    with contextlib.suppress(OSError):
        found["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        found["namespace"] = os.readlink("/proc/self/ns/pid")
        found["start"] = process(os.getpid())[1]
    return found


def runs(owner: dict) -> bool | None:
    """Whether the process that `myself` described there still runs; None if that cannot be known from here."""
    me = myself()
    if owner.get("start") is None or any(owner.get(key) != me[key] for key in ("host", "boot", "namespace")):
        return None
    try:
        state, start = process(owner["pid"])
        return start == owner["start"] and state not in "ZX"  # a zombie is dead, and waits for its parent
    except OSError:
        try:
            os.kill(owner["pid"], 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass
        return None  # /proc hides the processes of other users


class Lock:
    """The lock of the folder that `flag` names, and that is there; a context manager.

    `wait` waits for another process to end; without it InputError is raised if there is one. What a process that was
    killed has left is taken over: at once if that was on this machine, else when it has given no sign for STALE
    seconds, of which WATCH are looked on. Raises InputError if the folder cannot be written.
    """

    def __init__(self, folder: Path, flag: str, wait: bool = False):
        self.folder, self.path, self.flag, self.wait = folder, folder / NAME, flag, wait
        self.text = json.dumps({**myself(), "token": secrets.token_hex(8)})
        self.claim = folder / f"{NAME}.claim.tmp"
        self.probe = folder / f"{NAME}.{secrets.token_hex(8)}.tmp"
        self.touched = 0.0  # by our clock, which goes on while the process is suspended
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
                continue  # released meanwhile
            now, owner = time.monotonic(), described(found[0])
            running = runs(owner)
            if running is None:  # its touches tell: `moved` once one was seen to come
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
        """Make the file with our name -> False if there is one."""
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
        """-> whose the file is, and when it was touched last, in ns; None without a file."""
        try:
            with open(self.path, encoding="utf-8", errors="replace") as file:  # opening asks a network disk anew
                return file.read(), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None

    def age(self, touched: int) -> float:
        """Seconds since then by the file system's clock, which need not be ours; 0 if it does not tell."""
        try:
            self.probe.touch()
            return (self.probe.stat().st_mtime_ns - touched) / 1e9
        except OSError:
            return 0.0
        finally:
            with contextlib.suppress(OSError):
                self.probe.unlink()

    def remove_stale(self, text: str) -> None:
        """Remove the file if it still is `text`. Others may want that too, and the first may have made its own since:
        each does so while it holds a second file, for a moment."""
        try:
            os.close(os.open(self.claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            time.sleep(POLL)
            with contextlib.suppress(FileNotFoundError):
                if self.age(self.claim.stat().st_mtime_ns) >= STALE:  # a process was killed in that moment
                    self.claim.unlink()
            return
        try:
            found = self.look()
            if found is not None and found[0] == text:
                self.path.unlink()
        finally:
            self.claim.unlink(missing_ok=True)

    def beat(self) -> None:
        """In a thread of its own."""
        while self.lost is None and not self.stop.wait(BEAT):
            self.touch()

    def touch(self) -> None:
        """Show that this process runs, or find that it is no longer the owner."""
        with contextlib.suppress(OSError):  # a disk that is away comes back, or the run ends of it
            found = self.look()
            if found is None and time.time() - self.touched >= STALE:  # taken over, by one that has ended since
                self.lost = {}
            elif found is not None and found[0] != self.text:
                self.lost = described(found[0])
            elif found is not None:
                os.utime(self.path)
                self.touched = time.time()
            elif self.create():
                self.touched = time.time()

    def check(self) -> None:
        """Raises InputError if another process has taken the folder over: this one was suspended, or cut off."""
        if self.thread is not None and time.time() - self.touched >= STALE / 2:  # the thread may not have run again yet
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
    """What `myself` gave, from a lock's text; empty for one that is being written, or was cut short."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("pid"), int) else {}


def name(owner: dict) -> str:
    return f"process {owner['pid']} on {owner.get('host', '?')}" if owner else "another process"


@contextlib.contextmanager
def output_folder(out: Path):
    """Make a run's folder and hold its Lock, by rank 0 for all ranks; a folder that stays empty is removed again.

    Raises InputError, on all ranks, if another run has it.
    """
    held, made = Lock(out, "--output-dir"), []

    def take() -> None:
        made.extend(folder for folder in (out, *out.parents) if not os.path.exists(folder))
        utils.make_folder(out)
        held.take()

    try:
        distributed.on_rank0(take)
        yield held
    finally:
        held.release()
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
