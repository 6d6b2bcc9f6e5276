"""The whole tree: both layouts are planned, every picture is drawn, and the folder is there at once or not at all.

OUT/roco/{train,validation,test}/radiology/{captions.txt,keywords.txt,licences.txt,images/ROCO_00001.jpg}
OUT/cbis/csv/{calc,mass}_case_description_{train,test}_set.csv, OUT/cbis/csv/dicom_info.csv
OUT/cbis/jpeg/<SeriesInstanceUID>/{1,2}-NNN.jpg     crops, ROI masks and full mammograms
"""

import json
import multiprocessing
import shutil
import tempfile
from pathlib import Path

from tools.phantoms import streams
from tools.phantoms.cbis_layout import plan_cbis, write_dicom_info
from tools.phantoms.roco_layout import plan_roco

VERSION = 1  # part of the settings: raise it when the drawing changes, so that an old folder is not taken for a new one
MARKER = "phantoms.json"  # in the folder: the settings
README = """These are phantoms: pictures drawn by tools/make_phantoms.py, not radiographs of patients.

The folders are laid out as ROCO (roco/) and CBIS-DDSM on Kaggle (cbis/), so that the pipeline can run without medical
data. The names, UIDs, captions and diagnoses are made up. Figures measured here say nothing about real images.
Settings are in phantoms.json; the same settings give the same bytes.
"""


def make_phantoms(out, seed=0, pairs=1600, validation_pairs=200, calc=(360, 240), mass=(360, 240), workers=1):
    """Write the phantoms to `out`, all at once or not at all; False if they are there already.

    pairs, validation_pairs: captions of ROCO train and validation (test has half as many as validation).
    calc, mass: (train, test) rows of the CBIS case CSVs, one lesion in one view each.
    Raises FileExistsError if `out` exists with other settings. The bytes do not depend on `workers`.
    """
    out = Path(out)
    settings = {"version": VERSION, "seed": seed, "pairs": pairs, "validation_pairs": validation_pairs}
    settings |= {"calc": list(calc), "mass": list(mass)}
    if out.exists():
        marker = out / MARKER
        if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == settings:
            return False
        raise FileExistsError(f"{out} exists and was not made with these settings")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        sizes = {"train": pairs, "validation": validation_pairs, "test": validation_pairs // 2}
        counts = {
            (t, s): n for t, ns in (("calc", calc), ("mass", mass)) for s, n in zip(("train", "test"), ns, strict=True)
        }
        jobs, headers = plan_cbis(temporary / "cbis", counts, seed)
        jobs += plan_roco(temporary / "roco", sizes, seed)
        if workers > 1:
            with multiprocessing.get_context("spawn").Pool(workers) as pool:
                done = pool.map(draw_job, jobs, chunksize=8)
        else:
            done = [draw_job(job) for job in jobs]
        write_dicom_info(temporary / "cbis", headers, [row for rows in done if rows for row in rows], seed)
        (temporary / "README.txt").write_text(README, encoding="utf-8")
        (temporary / MARKER).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        temporary.chmod(0o755)  # mkdtemp's folders are private
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return True


def are_phantoms(root: str | None) -> bool:
    """Whether a data set's folder is one of `make_phantoms`, or by its name was one; False for None."""
    path = Path(root or "")
    return root is not None and ("phantom" in root or any((one / MARKER).is_file() for one in (path, path.parent)))


def draw_job(job):
    """Draw one job of a plan, (function, where to write, what to draw, stream), in whichever process."""
    draw, target, what, stream = job
    return draw(target, what, streams.generator(*stream))
