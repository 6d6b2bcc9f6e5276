"""Print the probes' results as one Markdown table a data set.

python tools/table.py runs/demo/probe_*
"""

import argparse
import json
import sys
from pathlib import Path

COLUMNS = ("AUROC (95% interval)", "F1-Score", "Precision", "Recall", "Precision (Malignant)", "Recall (Malignant)")


def percent(value) -> str:
    return "N/A" if value is None else f"{100 * value:.2f}"


def row(results: dict) -> str:
    macro, malignant = results["macro"], results["per_class"].get("MALIGNANT", {})
    interval = results["ci95"].get("auroc")
    auroc = percent(macro["auroc"])
    if interval:
        auroc += f" ({percent(interval[0])} to {percent(interval[1])})"
    values = [auroc, *(percent(macro[name]) for name in ("f1", "precision", "recall"))]
    values += [percent(malignant.get(name)) for name in ("precision", "recall")]
    return " | ".join((f"| {results['encoder']['name']}", *values)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="FOLDER", help="output folders of main_linear.py")
    tables = {}
    for folder in parser.parse_args().runs:
        path = Path(folder, "results.json")
        try:
            results = json.loads(path.read_text())
            tables.setdefault(results["dataset"], []).append((results, folder))
        except (OSError, ValueError, KeyError) as error:
            print(f"table.py: error: {path}: not a result of main_linear.py ({error})", file=sys.stderr)
            sys.exit(2)
    for dataset, runs in tables.items():
        print(f"\n{dataset}: {runs[0][0]['n_train']} training, {runs[0][0]['n_test']} test cases; percent\n")
        print("| " + " | ".join(("Model", *COLUMNS)) + " |")
        print("| --- |" + " ---: |" * len(COLUMNS))
        for results, _ in runs:
            print(row(results))
        print()
        over = [results.get("macro_over") for results, _ in runs]
        if any(one != over[0] for one in over):
            sizes = ", ".join(f"{Path(folder)} {len(one or ())}" for one, (_, folder) in zip(over, runs, strict=True))
            print(f"Not the same findings are in each mean: {sizes}. tools/compare.py takes those of both.\n")
        for results, folder in runs:
            if results.get("multi_label"):
                print(f"ROC curves: {Path(folder, 'roc.png')}")
            else:
                print(f"ROC curves and confusion matrix: {Path(folder, 'roc.png')}, {Path(folder, 'confusion.png')}")


if __name__ == "__main__":
    main()
