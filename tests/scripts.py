"""The repository's scripts as processes of their own, forked from one that has imported torch: each saves its start.

A forked script is what `python SCRIPT WORDS` is: its own arguments, environment, folder, session and output. It can be
killed as any process can. At its end it does what Python does, and leaves out the last step, in which every module is
taken apart: after a fork that costs 0.7 s, most of what a short script takes. Processes of several do that too, since
threads of a process group can abort it there.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
HANG = 1200  # seconds: what takes so long will never come. It ends a test that hangs, and no test waits for it.


def until(condition, run=None):
    """Wait for `condition()` to be true -> its value. An error as soon as the `run` has ended without it."""
    deadline = time.monotonic() + HANG
    while True:
        ended = run is not None and run.poll() is not None
        found = condition()
        if found:
            return found
        assert not ended, f"the run ended with {run.poll()}\n{run.output()}"
        assert time.monotonic() < deadline, f"hangs\n{run.output() if run is not None else ''}"
        time.sleep(0.01)


class Run:
    """A script that was started. It is the leader of a session and of a process group."""

    def __init__(self, ask, pid: int, out: Path, err: Path):
        self.ask, self.pid, self.out, self.err, self.returncode = ask, pid, out, err, None

    def poll(self) -> int | None:
        """Its exit code, minus the signal's number for one that was killed; None while it runs."""
        if self.returncode is None:
            self.returncode = self.ask(pid=self.pid)
        return self.returncode

    def wait(self) -> int:
        until(lambda: self.poll() is not None)
        return self.returncode

    def end(self) -> None:
        """Kill what is left of it, its children too."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def output(self) -> str:
        return self.out.read_text() + self.err.read_text()


class Scripts:
    """Starts scripts. A context manager: nothing that it started lives longer."""

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        self.runs = []
        return self

    def __exit__(self, *error):
        for run in self.runs:
            run.end()
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()
        self.folder.cleanup()

    def ask(self, **request):
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(self, script, *words, cwd=REPOSITORY, largest_file=None, **environment) -> Run:
        """Start a script of the repository. `largest_file` bytes is what the kernel lets it write (RLIMIT_FSIZE)."""
        out, err = (Path(self.folder.name) / f"{len(self.runs)}.{name}" for name in ("out", "err"))
        words = [str(word) for word in (REPOSITORY / script, *words)]
        environment = {**os.environ, **{name: str(value) for name, value in environment.items()}}
        pid = self.ask(
            words=words, cwd=str(cwd), out=str(out), err=str(err), environment=environment, largest_file=largest_file
        )
        self.runs.append(Run(self.ask, pid, out, err))
        return self.runs[-1]

    def run(self, script, *words, **how) -> tuple[int, str, str]:
        """Run a script to its end -> exit code, stdout, stderr."""
        run = self.start(script, *words, **how)
        return run.wait(), run.out.read_text(), run.err.read_text()


def import_before(script: Path) -> None:
    """Import a script of tools/ as a module, with all that it imports: once, for all the times that it is run."""
    if script.parent == REPOSITORY / "tools" and f"tools.{script.stem}" not in sys.modules:
        importlib.import_module(f"tools.{script.stem}")
        gc.freeze()


def serve() -> dict | None:
    """Answer requests until there are no more; in a process forked for a script, return its request."""
    for line in sys.stdin:
        request = json.loads(line)
        if "pid" in request:
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            for name in ("out", "err"):
                Path(request[name]).touch()
            import_before(Path(request["words"][0]))
            answer = os.fork()
            if answer == 0:
                return request
        print(json.dumps(answer), flush=True)
    return None


def become(request: dict) -> None:
    """Run the script that was asked for, in this process."""
    os.setsid()
    weakref.finalize._registry.clear()  # this process must not remove the server's temporary folders
    for number, path in enumerate((os.devnull, request["out"], request["err"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    if request["largest_file"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"],) * 2)
    sys.argv = request["words"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        if not isinstance(stop.code, int | None):
            raise
        code = stop.code or 0
    if "WORLD_SIZE" in os.environ:
        sys.exit(code)
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.path.insert(1, str(REPOSITORY))
    import options  # noqa: F401  (before torch)
    import main  # noqa: F401
    import main_linear  # noqa: F401

    # What the scripts import when they come to need it.
    import data.dicom
    import data.shards
    import data.tables  # noqa: F401
    import tools.plots  # noqa: F401
    import towers.swin
    import towers.text
    import towers.timm_encoders  # noqa: F401

    with contextlib.suppress(ImportError):
        import run_with_submitit  # noqa: F401
    with contextlib.suppress(ImportError):
        from wandb.sdk.data_types._private import MEDIA_TMP  # transformers imports wandb, which makes this folder

        atexit.unregister(MEDIA_TMP.cleanup)  # the first script that ended would remove it for all later ones

    gc.freeze()
    request = serve()
    if request is not None:
        become(request)
