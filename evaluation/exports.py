"""An export of tools/export.py as the checkpoint that it was made of, if it is of a format that holds the weights."""

import json
from pathlib import Path

import checkpoints
import utils
from utils import InputError

EXPORT = "medslip.json"  # beside every export: what it is of, and under "open" how `read_export` reads it


def read_export(folder: Path) -> tuple[dict, Path, dict]:
    """-> the arguments of the run that an export is of, the path of its weights, and a checkpoint's contents of both.

    Raises InputError if it is of a format that this code does not open.
    """
    try:
        known = json.loads(utils.read_text(folder / EXPORT))
        opened = known["open"]
        if opened is None:
            raise InputError(
                f"{folder}: an export to {known['format']}, which other programs open: give the run, or another export"
            )
        saved = {**known["args"], **opened}
        saved |= {name: str(folder / opened[name]) for name in ("tokenizer", "text_model") if name in opened}
        if saved["arch"].endswith("local-dir:"):  # the export's own folder
            saved["arch"] += str(folder)
        weights, names = folder / opened["weights"], saved.pop("names", None)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder / EXPORT}: damaged ({error}): export the run again") from None
    contents = checkpoints.read(weights)
    # As a checkpoint of the run: its arguments say for which size of images the weights are.
    return saved, weights, {"model": contents if names is None else renamed(contents, names), "args": saved}


def renamed(contents: dict, names: dict[str, str | None]) -> dict:
    """Weights by the model's names: of `names` the first with which a key starts is replaced; None leaves it out."""
    found = {}
    for key, value in contents.items():
        start = next((one for one in names if key.startswith(one)), None)
        if start is None:
            found[key] = value
        elif names[start] is not None:
            found[names[start] + key.removeprefix(start)] = value
    return found
