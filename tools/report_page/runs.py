"""What a report needs of a run's folder."""

import json
from pathlib import Path

import utils
from tools.compare import arrays, read_predictions
from utils import InputError


def read_runs(folders) -> tuple[list[dict], list[dict]]:
    """The probes and the trainings among the folders, each in the order given. Raises InputError."""
    probes, trainings = [], []
    for folder in map(Path, folders):
        if (folder / "results.json").exists():
            probes.append(read_probe(folder))
        elif (folder / "config.json").exists():
            trainings.append(read_training(folder))
        else:
            raise InputError(f"{folder}: neither results.json nor config.json in it: give a run's output folder")
    return probes, trainings


def read_probe(folder: Path) -> dict:
    """results.json with `folder`, `predictions` (compare.read_predictions), `labels` (N,) or (N, K), `probabilities`
    (N, K) and, if there, `efficiency`.

    Raises InputError.
    """
    results = read_json(folder / "results.json")
    absent = {"dataset", "encoder", "macro", "per_class", "classes", "ci95", "selected", "run"} - set(results)
    if absent:
        raise InputError(f"{folder / 'results.json'}: lacks {', '.join(sorted(absent))}: run main_linear.py again")
    table = read_predictions(folder)
    columns = [f"p_{name}" for name in results["classes"]]
    if not set(columns) <= set(table.columns):
        raise InputError(f"{folder / 'predictions.csv'}: not of the classes of results.json: run main_linear.py again")
    results["labels"], results["probabilities"] = arrays(table, results["classes"])
    results["folder"], results["predictions"] = str(folder), table
    path = folder / "label_efficiency.json"
    results["efficiency"] = read_json(path)["rows"] if path.exists() else None
    return results


def read_training(folder: Path) -> dict:
    """config.json with `folder`, `log` and, if there, `retrieval`. Raises InputError."""
    run = read_json(folder / "config.json")
    run |= {"folder": str(folder), "log": [], "retrieval": None}
    if (folder / "log.txt").exists():
        for number, line in enumerate(utils.read_text(folder / "log.txt").splitlines(), start=1):
            try:
                run["log"].append(json.loads(line))
            except ValueError:
                raise InputError(f"{folder / 'log.txt'}, line {number}: damaged JSON: remove the line") from None
    if (folder / "retrieval.json").exists():
        run["retrieval"] = read_json(folder / "retrieval.json")
    return run


def read_json(path: Path) -> dict:
    try:
        contents = json.loads(utils.read_text(path))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: damaged JSON ({error}): run it again") from None
    if not isinstance(contents, dict):
        raise InputError(f"{path}: not what a run writes: run it again")
    return contents
