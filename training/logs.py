"""Files of a run that grow by one JSON object a line: log.txt by epochs, steps.txt by steps."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import utils
from utils import InputError, logger


class Log:
    """Appends records to `path`. Lines that the disk refuses are kept and tried again; a half-written one is
    removed."""

    def __init__(self, path: Path):
        self.path, self.waiting = path, []
        self.end = self.path.stat().st_size if self.path.exists() else 0  # of its whole lines, in bytes
        self.failure = None

    def write(self, record: dict) -> None:
        self.waiting.append(json.dumps(record) + "\n")
        self.flush()

    def flush(self) -> None:
        """Append the lines that wait, all or none of them."""
        if not self.waiting:
            return
        lines = "".join(self.waiting)
        try:
            with open(self.path, "ab") as file:
                self.end = min(self.end, file.tell())
                file.truncate(self.end)  # where the truncation below failed, too
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())
            self.end, self.waiting, self.failure = self.end + len(lines.encode()), [], None
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.path, self.end)
            if self.failure is None:
                self.failure = f"{self.path}: cannot be written ({error.strerror})"
                logger.warning(f"{self.failure}; its lines wait for the next try")

    def close(self) -> None:
        """Try once more. Raises InputError if lines remain that the disk refuses, after printing them."""
        self.flush()
        if self.waiting:
            logger.info("".join(self.waiting).rstrip())
            raise InputError(
                f"{self.failure}: {len(self.waiting)} lines are missing at its end: make room, and copy them there "
                "from the lines printed above"
            )


def read_lines(path: Path) -> list[dict]:
    """The records of a Log's file; damaged lines are left out, and a file that is not there is empty."""
    found = []
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return found
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):  # also for what is no UTF-8
            record = json.loads(line)
            if isinstance(record, dict):
                found.append(record)
    return found


def drop_lines(path: Path, keep: Callable[[dict], bool]) -> None:
    """Drop the lines of what a resumed run will do again, for which `keep` is false, and damaged ones."""
    if path.exists():
        lines = []
        for record in read_lines(path):
            with contextlib.suppress(KeyError, TypeError):
                if keep(record):
                    lines.append(json.dumps(record) + "\n")
        utils.write_text(path, "".join(lines))
