"""Draw phantoms: computer-made radiographs in the on-disk layouts of ROCO and of CBIS-DDSM (Kaggle JPEG edition).

python tools/make_phantoms.py --out phantoms

The whole pipeline can then run with no medical data. Nothing here comes from a patient, and a figure measured on
phantoms says that the code works, never that a method does. tools/phantoms/ draws them.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.phantoms import make_phantoms


def main(argv=None):
    parser = argparse.ArgumentParser(description="Draw phantom radiographs in the layouts of ROCO and CBIS-DDSM.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; it must not exist yet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=1600, help="image-caption pairs of ROCO train (1600)")
    parser.add_argument(
        "--validation-pairs", type=int, default=200, help="of ROCO validation (200); test has half as many"
    )
    parser.add_argument("--calc", type=int, nargs=2, default=(360, 240), metavar=("TRAIN", "TEST"), help="CSV rows")
    parser.add_argument("--mass", type=int, nargs=2, default=(360, 240), metavar=("TRAIN", "TEST"), help="CSV rows")
    parser.add_argument("--workers", type=int, default=2, help="processes (2); the files do not depend on it")
    args = vars(parser.parse_args(argv))
    try:
        made = make_phantoms(**args)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args['out']}: {'phantoms written' if made else 'these phantoms are here already, nothing to do'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
