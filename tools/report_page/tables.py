"""The report's tables, and the same tables as Markdown and as CSV.

A table is {title, note, columns, rows: [(kind, [cells])]}; the kind of a row is "published" or "ours", and a cell is a
text, or (value, low, high), low and high None where there is no interval. A difference is (value, low, high, p).
"""

import csv
import io

from tools.phantoms import are_phantoms

# The columns of the published tables and the further ones, each with the metric that it shows.
PUBLISHED = (
    ("AUROC", "auroc"),
    ("F1-Score", "f1"),
    ("Precision", "precision"),
    ("Recall", "recall"),
    ("Precision (Malignant)", "MALIGNANT.precision"),
    ("Recall (Malignant)", "MALIGNANT.recall"),
)
FURTHER = (
    ("Average precision", "average_precision"),
    ("AUROC (Malignant)", "MALIGNANT.auroc"),
    ("AUROC (Benign)", "BENIGN.auroc"),
    ("AUROC (Benign without callback)", "BENIGN_WITHOUT_CALLBACK.auroc"),
    ("Sensitivity at 80% specificity (Malignant)", "MALIGNANT.sensitivity_at_80_specificity"),
    ("Sensitivity at 90% specificity (Malignant)", "MALIGNANT.sensitivity_at_90_specificity"),
    ("Calibration error", "ece"),
    ("Brier score", "brier"),
)


def probe_tables(probes: list[dict], published: dict) -> list[dict]:
    """Of each data set a table beside the published rows, and one of further metrics."""
    tables = []
    for dataset in dict.fromkeys(one["dataset"] for one in probes):
        ours = [one for one in probes if one["dataset"] == dataset]
        theirs = published["tables"].get(dataset, ())
        table = probe_table(dataset, note_on_rows(ours, theirs), PUBLISHED, ours)
        table["rows"] = [*map(published_row, theirs), *table["rows"]]
        tables.append(table)
        further = [(title, name) for title, name in FURTHER if any(value_of(one, name) is not None for one in ours)]
        if further:
            note = "Percent; the calibration error is over 15 bins, the Brier score the sum over classes (0 to 200)."
            tables.append(probe_table(f"{dataset}: further metrics", note, further, ours))
        if any(one.get("multi_label") for one in ours):
            tables.append(finding_table(dataset, [one for one in ours if one.get("multi_label")]))
    return tables


def finding_table(dataset: str, probes: list[dict]) -> dict:
    """The AUROC of each finding of a multi-label set: a row a finding, a column a probe."""
    findings = list(dict.fromkeys(name for one in probes for name in one["classes"]))
    rows = []
    for name in findings:
        counts = next(one["per_class"][name] for one in probes if name in one["per_class"])
        text = f"{name} ({counts['n']} of {counts['n_known']})"
        rows.append(("ours", [text, *(percent_cell(one, f"{name}.auroc") for one in probes)]))
    return {
        "title": f"{dataset}: AUROC of each finding",
        "note": "Percent; in brackets, the positive cases of those where the finding is known. A macro metric is the "
        "mean over the findings that are not N/A; F1, precision and recall are at a probability of "
        f"{probes[0]['threshold']}.",
        "columns": ("Finding", *(f"{one['encoder']['name']}, {protocol(one)}" for one in probes)),
        "rows": rows,
    }


def probe_table(title: str, note: str, columns, probes: list[dict]) -> dict:
    rows = [
        ("ours", [one["encoder"]["name"], protocol(one), *(percent_cell(one, name) for _, name in columns)])
        for one in probes
    ]
    return {
        "title": title,
        "note": note,
        "columns": ("Model", "Protocol", *(text for text, _ in columns)),
        "rows": rows,
    }


def published_row(row: dict) -> tuple[str, list]:
    cells = ("N/A" if value is None else (value, None, None) for value in row["values"])
    return "published", [row["model"], "published", *cells]


def note_on_rows(ours: list[dict], theirs) -> str:
    made_up = any(are_phantoms(one["run"]["args"].get("root")) for one in ours)
    note = f"Percent, with 95% intervals over the test split's patients ({ours[0]['n_test']} test cases)."
    if made_up:
        note += " Ours are of phantoms: drawn by a program, they say nothing about patients."
    if any(one.get("macro_over") != ours[0].get("macro_over") for one in ours):
        note += " The rows are means over different findings: see the AUROC of each below."
    if theirs:
        note += " Rows marked published were not reproduced here"
        note += " and are of patients: no comparison." if made_up else "."
    return note


def value_of(results: dict, name: str):
    owner, _, metric = name.rpartition(".")
    return (results["per_class"].get(owner, {}) if owner else results["macro"]).get(metric)


def percent_cell(results: dict, name: str):
    value = value_of(results, name)
    if value is None:
        return "N/A"
    low, high = results["ci95"].get(name) or (None, None)
    return tuple(None if one is None else 100 * one for one in (value, low, high))


def protocol(results: dict) -> str:
    return str(results["selected"].get("label") or results["selected"].get("probe", ""))


def retrieval_tables(trainings: list[dict]) -> list[dict]:
    """One table with a column for each training whose retrieval was evaluated; none where there is no such training."""
    evaluated = [one for one in trainings if one["retrieval"]]
    if not evaluated:
        return []
    rows = []
    for name in dict.fromkeys(name for one in evaluated for name in one["retrieval"]["metrics"]):
        cells = []
        for one in evaluated:
            value = one["retrieval"]["metrics"].get(name)
            low, high = one["retrieval"]["ci95"].get(name) or (None, None)
            cells.append("N/A" if value is None else (value, low, high))
        rows.append(("ours", [name.replace("_", " "), *cells]))
    pairs = ", ".join(f"{one['retrieval']['pairs']} pairs" for one in evaluated)
    note = f"Recalls in percent, on the validation split ({pairs}), with 95% intervals; ranks begin at 1."
    columns = ("Metric", *(one["folder"] for one in evaluated))
    return [{"title": "Image-text retrieval", "note": note, "columns": columns, "rows": rows}]


def cell_words(cell) -> list[str]:
    """A cell as words: its value, and what there is of its interval and its p."""
    if isinstance(cell, str):
        return [cell]
    value, low, high, *p = cell
    sign = "+" if p else ""  # of a difference
    words = [f"{value:{sign}.2f}"] + ([] if low is None else [f"{low:{sign}.2f} to {high:{sign}.2f}"])
    return words + [f"p = {one:.4f}" for one in p]


def as_markdown(title: str, tables: list[dict]) -> str:
    parts = [f"# {title}\n"]
    for table in tables:
        lines = ["| " + " | ".join(table["columns"]) + " |", "| --- |" + " ---: |" * (len(table["columns"]) - 1)]
        for _, cells in table["rows"]:
            words = map(cell_words, cells)
            texts = [f"{value} ({', '.join(more)})" if more else value for value, *more in words]
            lines.append("| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in texts) + " |")
        parts.append(f"## {table['title']}\n\n{table['note']}\n")
        parts += ["\n".join(lines) + "\n"] if table["rows"] else []
    return "\n".join(parts)


def as_csv(tables: list[dict]) -> str:
    """One line a figure: table, row, column, value, low, high, and of a difference p."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("table", "kind", "row", "column", "value", "low", "high", "p"))
    for table in tables:
        for kind, cells in table["rows"]:
            for column, cell in zip(table["columns"][1:], cells[1:], strict=True):
                values = [cell] if isinstance(cell, str) else ["" if v is None else f"{v:.6g}" for v in cell]
                writer.writerow((table["title"], kind, cells[0], column, *values, *[""] * (4 - len(values))))
    return text.getvalue()
