"""One self-contained page of a set of runs: tables beside the published rows, curves, examples, and how each was made.

python tools/report.py runs/vit runs/vit/calc runs/vit/mass --out report.html

Takes output folders of main.py (after `--evaluate` with retrieval examples) and of main_linear.py; report.md and
report.csv beside the page hold the same tables.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import distributed
import utils
from tools.report_page.page import fill_page
from tools.report_page.runs import read_json, read_runs
from tools.report_page.tables import as_csv, as_markdown, probe_tables, retrieval_tables


def main(args) -> None:
    probes, trainings = read_runs(args.runs)
    published = read_json(Path(__file__).parent / "published_results.json")
    tables = probe_tables(probes, published) + retrieval_tables(trainings)
    out = Path(args.out)
    page = fill_page(args.title, probes, trainings, tables)
    utils.make_folder(out.parent)
    utils.write_text(out, page)
    utils.write_text(out.with_suffix(".md"), as_markdown(args.title, tables))
    utils.write_text(out.with_suffix(".csv"), as_csv(tables))
    print(f"report: {out} ({len(page.encode()) / 1e6:.1f} MB), {out.with_suffix('.md')}, {out.with_suffix('.csv')}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folders of main.py and main_linear.py")
    parser.add_argument("--out", default="report.html", metavar="FILE", help="(default: %(default)s)")
    parser.add_argument("--title", default="MedSLIP report")
    distributed.run_script(main, parser.parse_args())
