"""Compare two probes of the same test cases: difference, 95% interval and p-value of each metric, paired by case.

python tools/compare.py runs/a/calc runs/b/calc

Of a multi-label set, the findings are compared that both have a probe for.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import distributed
import utils
from evaluation import metrics
from utils import InputError

RESAMPLES = 10_000


def main(args) -> None:
    tables = [read_predictions(Path(folder)) for folder in args.runs]
    compared = compare(*tables, args.runs, args.resamples, args.seed)
    for name in compared["left_out"]:
        print(f"{name}: not compared: it has no probe in one of the runs")
    unit = f"{args.resamples} paired resamples of {compared['unit']}"
    print(f"{args.runs[0]} minus {args.runs[1]}: {compared['cases']} cases, {unit}\n")
    print("| metric | difference | 95% interval | p |\n| --- | ---: | ---: | ---: |")
    for name, one in compared["metrics"].items():
        low, high = one["ci95"] or (float("nan"),) * 2
        print(f"| {name} | {one['difference']:+.4f} | {low:+.4f} to {high:+.4f} | {one['p']:.4f} |")
    if args.out:
        contents = {"runs": args.runs, "resamples": args.resamples, "metrics": compared["metrics"]}
        utils.write_json(Path(args.out), contents)


def compare(first: pd.DataFrame, second: pd.DataFrame, runs, resamples: int = RESAMPLES, seed: int = 0) -> dict:
    """Two tables of `read_predictions`, called `runs` -> `metrics`, each of the first minus the second as
    metrics.paired_difference has them; the number of `cases`; the `unit` of a resample in words; and the findings
    `left_out`, without a probe in one of them. Raises InputError as `check_same` does."""
    check_same(first, second, runs)
    classes = [name.removeprefix("p_") for name in first.columns if name.startswith("p_")]
    labels, ours = arrays(first, classes)
    theirs = arrays(second, classes)[1]
    patients = None if (first["patient"] == "").any() else list(first["patient"])
    both = np.isfinite(ours) & np.isfinite(theirs)
    tables = [np.where(both, table, np.nan) for table in (ours, theirs)]  # a macro metric is over the same findings
    return {
        "metrics": metrics.paired_difference(labels, *tables, classes, patients, resamples, seed),
        "cases": len(labels),
        "unit": f"{len(set(patients))} patients" if patients else f"{len(labels)} cases (no patients are known)",
        "left_out": list(np.array(classes)[~both.all(axis=0)]),
    }


def read_predictions(folder: Path) -> pd.DataFrame:
    """predictions.csv of a probe, its cases in the order of their ids. Raises InputError."""
    path = folder / "predictions.csv"
    try:
        table = pd.read_csv(path, dtype={"id": str, "patient": str, "label": str}, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({str(error)[:100]}): give a folder of main_linear.py") from None
    columns = [name for name in table.columns if name.startswith("p_")]
    multi = len(columns) > 0 and all(f"label_{name.removeprefix('p_')}" in table.columns for name in columns)
    absent = {"id", "patient", *(() if multi else ("label",))} - set(table.columns)
    if absent or len(columns) < (1 if multi else 2) or not len(table):
        raise InputError(f"{path}: not the predictions of a probe: give a folder of main_linear.py")

    def numbers(column: str, wrong) -> pd.Series:
        values = pd.to_numeric(table[column], errors="coerce")
        bad = np.flatnonzero(wrong(values, table[column] == ""))
        if len(bad):
            raise InputError(f"{path}, row {bad[0] + 2}: {column} is '{table[column][bad[0]]}': run the probe again")
        return values

    for column in columns:
        if multi:
            name = f"label_{column.removeprefix('p_')}"
            table[name] = numbers(name, lambda values, blank: ~values.isin((0, 1)) & ~blank)
        table[column] = numbers(column, lambda values, blank: ~np.isfinite(values) & ~(multi and blank.all()))
    if not multi:
        unknown = np.flatnonzero(~("p_" + table["label"]).isin(columns))
        if len(unknown):
            raise InputError(f"{path}, row {unknown[0] + 2}: no column for the label {table['label'][unknown[0]]!r}")
    if table["id"].duplicated().any():
        raise InputError(f"{path}: {table['id'][table['id'].duplicated()].iloc[0]} is there twice: run the probe again")
    return table.sort_values("id", ignore_index=True)


def arrays(table: pd.DataFrame, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The labels and the probabilities (N, K) of a table of `read_predictions`, as evaluation.metrics takes them.

    Labels are numbers of classes (N,), or of a multi-label set (N, K) of 0, 1 and nan for unknown.
    """
    probabilities = table[[f"p_{name}" for name in classes]].to_numpy(np.float64)
    if "label" in table:
        return np.array([classes.index(name) for name in table["label"]]), probabilities
    return table[[f"label_{name}" for name in classes]].to_numpy(np.float64), probabilities


def check_same(first: pd.DataFrame, second: pd.DataFrame, runs) -> None:
    """Both have the same cases, of the same patients, with the same labels and classes. Raises InputError."""
    ours, theirs = set(first["id"]), set(second["id"])
    if ours != theirs:
        only = [f"{len(a - b)} only in {run} (first {min(a - b)})" for a, b, run in
                ((ours, theirs, runs[0]), (theirs, ours, runs[1])) if a - b]  # fmt: skip
        raise InputError(f"the test cases differ: {', '.join(only)}: compare probes of one test split")
    columns = [[name for name in table.columns if name.startswith("p_")] for table in (first, second)]
    if sorted(columns[0]) != sorted(columns[1]):
        raise InputError(f"the classes differ: {', '.join(columns[0])} and {', '.join(columns[1])}")
    labels = [name for name in first.columns if name == "label" or name.startswith("label_")]
    if not set(labels) <= set(second.columns):
        raise InputError("one probe is of a multi-label set, the other is not: compare probes of one test split")
    for what in (*labels, "patient"):
        differ = (first[what] != second[what]) & ~(first[what].isna() & second[what].isna())
        rows = np.flatnonzero(differ)
        if len(rows):
            row = rows[0]
            values = f"{first[what][row]} and {second[what][row]}"
            raise InputError(f"{len(rows)} test cases differ in their {what}, first {first['id'][row]}: {values}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs=2, metavar="RUN", help="output folders of main_linear.py")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", metavar="FILE", help="write the same as JSON")
    arguments = parser.parse_args()
    if arguments.resamples < 100 or arguments.seed < 0:
        parser.error("--resamples: 100 or more; --seed: 0 or more")
    distributed.run_script(main, arguments)
