"""One self-contained page of a set of runs: tables beside the published rows, curves, examples, and how each was made.

python tools/report.py runs/vit runs/vit/calc runs/vit/mass --out report.html
python tools/report.py runs/*/calc --baseline runs/vit/calc --out report.html

Takes output folders of main.py (after `--evaluate` with retrieval examples) and of main_linear.py; report.md and
report.csv beside the page hold the same tables. Test cases are shown with what the encoder looks at (Grad-CAM), if the
probe's weights and the images are still where they were.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import distributed
import utils
from tools.compare import RESAMPLES
from tools.report_page.cases import MOST
from tools.report_page.differences import difference_tables
from tools.report_page.page import fill_page
from tools.report_page.runs import read_json, read_probe, read_runs
from tools.report_page.tables import as_csv, as_markdown, probe_tables, retrieval_tables


def main(args) -> None:
    probes, trainings = read_runs(args.runs)
    published = read_json(Path(__file__).parent / "published_results.json")
    baselines = [read_probe(Path(folder)) for folder in args.baseline]
    tables = [
        *probe_tables(probes, published),
        *difference_tables(probes, baselines, args.resamples),
        *retrieval_tables(trainings),
    ]
    out = Path(args.out)
    page = fill_page(args.title, probes, trainings, tables, args.cam)
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
    what = "probes to compare those of the same test cases with, one a test split"
    parser.add_argument("--baseline", nargs="+", default=(), metavar="RUN", help=what)
    what = "of a comparison, over patients (default: %(default)s)"
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help=what)
    what = f"hardest and easiest test cases shown with what the encoder looks at, {MOST} at most (default: %(default)s)"
    parser.add_argument("--cam", type=int, default=6, metavar="N", help=what)
    parser.add_argument("--no-cam", dest="cam", action="store_const", const=0, help="no Grad-CAM")
    arguments = parser.parse_args()
    if arguments.resamples < 100 or not 0 <= arguments.cam <= MOST:
        parser.error(f"--resamples: 100 or more; --cam: 0 to {MOST}")
    distributed.run_script(main, arguments)
