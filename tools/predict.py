"""Apply a fitted probe to new images: a CSV file with a probability for each class, or each finding, of every image.

python tools/predict.py runs/vit/calc scans/ --out predictions.csv
python tools/predict.py runs/vit/calc a.png b.dcm --uncalibrated --out predictions.csv

PROBE_RUN is an output folder of main_linear.py. IMAGES are files, folders with all folders below them, tables (CSV,
TSV, JSON lines, parquet) or tar shards; they are shown to the encoder as the probe's own images were. For research:
this is no medical device.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import options

if __name__ == "__main__":
    parser = options.Parser(
        description=__doc__.partition("\n\n")[0], epilog=__doc__.partition("\n\n")[2], allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("run", metavar="PROBE_RUN", help="an output folder of main_linear.py")
    add("images", nargs="+", metavar="IMAGES", help="files, folders, tables or tar shards")
    add("--out", required=True, metavar="FILE.csv", help="a new file")
    add("--uncalibrated", action="store_true", help="the probabilities of the probe as it was fitted")
    add("--weights", metavar="RUN", help="where the probed checkpoint, or the folder of its run, is now (if it moved)")
    add("--image-column", metavar="NAME", help="of a table (default: by its usual names)")
    skip = "leave the probabilities of an image that cannot be read empty, and say why (default: an error)"
    add("--skip-broken", action="store_true", help=skip)
    add("-b", "--batch-size", type=options.positive, help="images a forward pass (default: the probe's)")
    add("-j", "--workers", type=options.not_negative, help="loader processes (default: the cores, 8 at most)")
    add("-p", "--print-freq", type=options.positive, default=10, metavar="BATCHES")
    add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    add("--amp", choices=("bf16", "fp16", "off"), help="mixed precision (default: the probe's)")
    ARGS = parser.parse_args()

import numpy as np
import pandas as pd
import torch

import distributed
import utils
from data import images, locations, views
from data.batches import open_loader, rank_batches
from data.buffers import Strings
from data.sets import Unlabelled
from data.unlabelled import is_image, is_table, read_images
from evaluation import features
from evaluation.encoder import Encoder, open_probed
from evaluation.fitted import Fitted, open_fitted
from training.progress import Progress
from utils import InputError, logger


def main(args) -> None:
    device = distributed.init_distributed(args.device, None, "env://")
    out = Path(args.out).expanduser().absolute()
    if out.exists() or not out.parent.is_dir():
        raise InputError(f"--out {args.out}: {'is there already' if out.exists() else 'has no folder'}: give another")
    fitted = open_fitted(args.run)
    encoder = open_probed(args.run, device, args.amp or fitted.about["args"]["amp"], args.weights)
    data = gather(args.images, args.image_column)
    data.window, data.fit = encoder.window, encoder.fit
    broken = images.broken_files(map(data.path, range(len(data))), args.skip_broken)
    read = data.without(set(broken)) if broken else data
    if not len(read):
        raise InputError(f"{next(iter(broken.values()))}: no image is left")
    rows = extract(encoder, fitted, read, args)
    if fitted.temperature is None and not args.uncalibrated:
        logger.warning(f"{args.run}: this probe is not calibrated: the probabilities are those that it was fitted with")
    probabilities = fitted(rows) if args.uncalibrated else fitted.calibrated(rows)
    table = tabulate(data, broken, fitted, probabilities, args.skip_broken)
    utils.write_text(out, table.to_csv(index=False, lineterminator="\n", float_format="%.17g"))
    logger.info(f"{out}: {len(read):,} images" + (f", and {len(broken):,} that cannot be read" if broken else ""))
    print("For research: this is no medical device, and no basis for a diagnosis.", file=sys.stderr)


def gather(sources: list[str], column: str | None) -> Unlabelled:
    """The images of all sources in their order, of tables those of the named column, or of a usual one.

    Raises InputError, also for an image that a table names in vain.
    """
    found, tables = Unlabelled(Strings(), Strings()), list(filter(is_table, sources))
    if column and not tables:
        raise InputError(f"--image-column {column}: is for a table, and none is given: leave it out")
    for source in sources:
        path = os.path.abspath(os.path.expanduser(source))
        if os.path.isfile(path) and is_image(path, os.path.splitext(path)[1].lower()):
            some = Unlabelled(Strings([source]), Strings([path]))
        else:
            some = read_images(source, image=column if source in tables else None)
        if some.missing:
            more = f" ({len(some.missing):,} such images)" if len(some.missing) > 1 else ""
            raise InputError(f"{some.missing[0]}{more}: correct the table")
        found.ids.add(list(some.ids))
        found.images.add(list(some.images))
    return found


def extract(encoder: Encoder, fitted: Fitted, data: Unlabelled, args) -> np.ndarray:
    """The features (N, D) float32 that the probe takes, batch by batch as main_linear.py extracts them."""
    dataset = views.WholeImages(data, None, encoder.args.image_size, data.fit)
    batches = rank_batches(len(data), args.batch_size or encoder.args.batch_size, 0, 1)
    projected = fitted.features == "projected"
    progress, rows = Progress(len(batches), args.print_freq, "features"), []
    with open_loader(dataset, batches, args.workers, encoder.device) as loader, torch.no_grad():
        for batch in loader:
            rows.append(
                features.encode(
                    encoder.model, batch, encoder.mean_std, encoder.device, encoder.dtype, projected, flips=False
                ).cpu()
            )
            progress.step(len(rows[-1]), dict)
    progress.close()
    found = torch.cat(rows)
    if not found.isfinite().all():
        raise InputError(features.not_finite(encoder.args))
    return found.numpy()


def tabulate(data: Unlabelled, broken: dict, fitted: Fitted, probabilities: np.ndarray, skip: bool) -> pd.DataFrame:
    """A row for each image: where it is, of one label an image the most probable class, and all probabilities.

    With `skip` also why an image could not be read; its other cells are empty.
    """
    why = [broken.get(data.path(i), "").removesuffix(", or pass --skip-broken") for i in range(len(data))]
    read = np.array([not one for one in why])
    values = np.full((len(data), len(fitted.classes)), np.nan)
    values[read] = probabilities
    table = pd.DataFrame({"image": [locations.show(image) for image in data.images]})
    if not fitted.multi:
        table["predicted"] = ""
        table.loc[read, "predicted"] = [fitted.classes[k] for k in probabilities.argmax(axis=1)]
    for k, name in enumerate(fitted.classes):
        table[f"p_{name}"] = values[:, k]
    return table.assign(error=why) if skip else table


if __name__ == "__main__":
    distributed.run_script(main, ARGS)
