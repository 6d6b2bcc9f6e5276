"""What the files in a run's folder say of it: how far it is, whether it lives, its figures and its last warnings.

The run itself is not asked. A file may be missing, or be written just now: what cannot be read yet is left out.
"""

import json
import math
import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import utils
from data import lock
from training.logs import read_lines
from training.record import STAMP
from utils import InputError

POINTS = 400  # of a curve over steps; longer ones are shown as means of neighbours
WARNINGS = 20
TAIL = 65536  # bytes of warnings.txt that are read
RECENT = 20  # lines of steps.txt, by which the time left is estimated
ENDS = {"INTERRUPTED": "interrupted", "FAILED": "failed"}  # what Record writes, in place of a level
NOT_CURVES = ("epoch", "step", "time", "seconds", "val_pairs")


def read_state(folder: Path) -> dict:
    """The state of a run as plain JSON, without NaN; `state` is one of waiting, starting, running, finished,
    interrupted, failed, gone."""
    config, now = read_config(folder), time.time()
    epochs, steps = (numbered(folder / name) for name in ("log.txt", "steps.txt"))
    warnings = read_warnings(folder / "warnings.txt")
    args, owner = config.get("args", {}), read_owner(folder, now)
    started = seconds_of(config.get("started"))
    total_epochs, an_epoch = args.get("epochs"), config.get("steps_per_epoch")
    if not an_epoch and epochs:  # a run of before this was written down
        an_epoch = epochs[-1]["step"] // (epochs[-1]["epoch"] + 1)
    total = total_epochs * an_epoch if total_epochs and an_epoch else None
    done = max((line["step"] for line in epochs[-1:] + steps[-1:]), default=0)
    found = {
        "folder": str(folder), "name": folder.name, "now": now,
        "what": ", ".join(str(one) for one in (args.get("arch"), args.get("objective"), config.get("device")) if one),
        "started": config.get("started"), "step": done, "steps": total, "epochs": total_epochs,
        "epoch": done / an_epoch if an_epoch else len(epochs),
        "last_line": newest(folder / "steps.txt", folder / "log.txt"), "owner": owner,
        "warnings": warnings[-WARNINGS:],
        "by_step": curves(steps, lambda line: line["step"], POINTS),
        "by_epoch": curves(epochs, lambda line: line["epoch"] + 1, None),
    }  # fmt: skip
    found["state"] = state_of(bool(config), owner, total is not None and len(epochs) >= total_epochs, warnings, started)
    if found["state"] == "running":
        rate = seconds_a_step([line for line in steps[-RECENT:] if since(line, started)])
        found["rate"] = config["global_batch"] / rate if rate and config.get("global_batch") else None
        found["left"] = rate * (total - done) if rate and total else None
    return without_nan(found)


def state_of(begun: bool, owner: dict, finished: bool, warnings: list[dict], started: float) -> str:
    if owner.get("lives"):
        return "running" if begun else "starting"
    if not begun:
        return "waiting"
    last = [line["level"] for line in warnings if line["at"] >= started and line["level"] in ENDS]
    if last:  # first: the last checkpoint of a run that has done all its epochs may have failed
        return ENDS[last[-1]]
    return "finished" if finished else "gone"


def read_config(folder: Path) -> dict:
    """config.json of a run of main.py; {} if there is none, or it is of something else."""
    try:
        found = json.loads(utils.read_text(folder / "config.json"))
        return found if isinstance(found["args"]["epochs"], int) else {}
    except (InputError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def numbered(path: Path) -> list[dict]:
    def counts(value) -> bool:
        return isinstance(value, int) and value >= 0

    try:
        return [line for line in read_lines(path) if counts(line.get("epoch")) and counts(line.get("step"))]
    except InputError:  # it cannot be read
        return []


def read_owner(folder: Path, now: float) -> dict:
    """Who holds the folder's lock, {} if nobody does: `name`, and whether it `lives`, by the kernel of this machine or
    by its last touch, `beat` seconds ago."""
    try:
        text = (folder / lock.NAME).read_text(encoding="utf-8", errors="replace")
        beat = now - (folder / lock.NAME).stat().st_mtime
    except OSError:
        return {}
    owner = lock.described(text)
    lives = lock.runs(owner)
    return {"name": lock.name(owner), "beat": beat, "lives": beat < lock.STALE if lives is None else lives}


def read_warnings(path: Path) -> list[dict]:
    """The last lines of warnings.txt, those that are whole: `at` (seconds since 1970), `level`, `text`."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    parts = [line.split(" ", 2) for line in lines]
    return [{"at": seconds_of(one[0]), "level": one[1], "text": one[2]} for one in parts if len(one) == 3]


def seconds_of(stamp: str | None) -> float:
    """A time as utils.provenance and warnings.txt write it -> seconds since 1970; 0 if it is not one."""
    try:
        return datetime.strptime(stamp, STAMP).timestamp()
    except (TypeError, ValueError):
        return 0.0


def newest(*paths: Path) -> float | None:
    """When one of the files was written to last."""
    return max((path.stat().st_mtime for path in paths if path.exists()), default=None)


def since(line: dict, started: float) -> bool:
    """Whether a line of steps.txt is of the process that was `started` then."""
    return isinstance(line.get("time"), int | float) and line["time"] >= started


def seconds_a_step(lines: list[dict]) -> float | None:
    """By the times of the last lines, evaluations included."""
    if len(lines) < 2 or lines[-1]["step"] <= lines[0]["step"]:
        return None
    return (lines[-1]["time"] - lines[0]["time"]) / (lines[-1]["step"] - lines[0]["step"])


def curves(lines: list[dict], place: Callable[[dict], int], most: int | None) -> dict[str, list]:
    """{name: [[place, value], ...]} of the numbers in the lines; of neighbours their means, if there are too many."""
    found = {}
    for line in lines:
        for name, value in line.items():
            number = isinstance(value, int | float) and abs(value) < 1e300  # neither nan nor inf
            if number and name not in NOT_CURVES:
                found.setdefault(name, []).append([place(line), value])
    return {name: thinned(points, most) if most else points for name, points in found.items()}


def thinned(points: list, most: int) -> list:
    size = math.ceil(len(points) / most)
    groups = [points[start : start + size] for start in range(0, len(points), size)] if size > 1 else []
    return [[group[-1][0], sum(value for _, value in group) / len(group)] for group in groups] or points


def without_nan(value):
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
