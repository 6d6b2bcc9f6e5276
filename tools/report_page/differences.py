"""Probes side by side: what each differs by from a chosen baseline on the same test cases, as a table of the report."""

import utils
from tools.compare import compare
from tools.report_page.tables import FURTHER, PUBLISHED, protocol

SHOWN = {metric: title for title, metric in (*PUBLISHED, *FURTHER)}


def difference_tables(probes: list[dict], baselines: list[dict], resamples: int, seed: int = 0) -> list[dict]:
    """A table for each baseline (as runs.read_probe gives it): the paired differences of all probes of its test cases.

    A probe that can be compared with none of the baselines is named, with the reason, in the note of the first table.
    """
    tables, reasons, compared = [], {}, {one["folder"] for one in baselines}
    for baseline in baselines:
        found = {}
        for one in probes:
            if one["folder"] == baseline["folder"]:
                continue
            folders = one["folder"], baseline["folder"]
            try:
                found[one["folder"]] = compare(one["predictions"], baseline["predictions"], folders, resamples, seed)
            except utils.InputError as error:
                reasons.setdefault(one["folder"], str(error))
        compared |= set(found)
        tables.append(difference_table(probes, baseline, found, resamples))
    for folder, reason in reasons.items():
        if folder not in compared:
            tables[0]["note"] += f" Not compared: {folder}: {reason}."
    return tables


def difference_table(probes: list[dict], baseline: dict, found: dict[str, dict], resamples: int) -> dict:
    rows = []
    for metric, title in SHOWN.items():
        values = [one["metrics"].get(metric) for one in found.values()]
        if any(values):
            rows.append(("ours", [title, *map(difference_cell, values)]))
    ours = [one for one in probes if one["folder"] in found]
    name = f"{baseline['encoder']['name']}, {protocol(baseline)} ({baseline['folder']})"
    note = f"Percentage points, each column's probe minus {name}."
    if found:
        first = next(iter(found.values()))
        note += (
            f" 95% intervals and two-sided p over {resamples:,} paired resamples of the {first['cases']} test cases' "
            f"{first['unit']}; p is not corrected for the number of metrics and probes."
        )
        unscored = {finding for one in found.values() for finding in one["left_out"]}
        if unscored:
            note += f" Left out, without a probe in one of the two: {', '.join(sorted(unscored))}."
    else:
        note += " No other probe is of the same test cases."
    return {
        "title": f"{baseline['dataset']}: differences from the baseline",
        "note": note,
        "columns": ("Metric", *(f"{one['encoder']['name']}, {protocol(one)}" for one in ours)),
        "rows": rows,
    }


def difference_cell(found: dict | None):
    """(difference, low, high, p) in percentage points; N/A where the metric is not defined for both."""
    if found is None:
        return "N/A"
    low, high = found["ci95"] or (None, None)
    return *(None if one is None else 100 * one for one in (found["difference"], low, high)), found["p"]
