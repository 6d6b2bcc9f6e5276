"""Embed any images with a trained model, and their captions: a parquet file with a row for each image.

python tools/embed.py --images scans/ --run runs/vit --out embeddings.parquet
python tools/embed.py --images table.csv --captions --run runs/vit --out embeddings.parquet
torchrun --nproc_per_node=8 -- tools/embed.py --images 'shards/{000..127}.tar' --run runs/vit --out embeddings.parquet

Images are a folder with all folders below it, a table (CSV, TSV, JSON lines, parquet) or tar shards; DICOM files are
read as any other. What is done is saved at intervals beside the output, on a disk that all processes see; the same
command again goes on with it, and gives the same file as a run that nothing disturbed. Without the -- torchrun takes
--run for an option of its own.
"""

import json
import os
import shutil
import sys
import zlib
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import distributed
import options
import utils
from data import images, lock
from data.sets import Unlabelled
from data.unlabelled import read_images
from evaluation import features
from evaluation.encoder import Encoder, open_encoder
from evaluation.fitted import IMAGE_PARTS
from training import signals
from training.progress import Progress
from utils import InputError, Interrupted, logger

METADATA = b"medslip"  # of the parquet file's schema: JSON, see `describe`
ROWS = 4096  # of a row group of the output
TEXTS = 1024  # captions of a rank that are embedded between two looks at the signals, and saved together


def main(args) -> None:
    out = Path(args.out).expanduser().absolute()
    if out.suffix != ".parquet" or out.is_dir():
        raise InputError(f"--out {args.out}: give a file that is called .parquet")
    device = distributed.init_distributed(args.device, args.dist_backend, args.dist_url)
    partial = out.with_name(f"{out.name}.partial")
    with lock.output_folder(partial, "--out") as held:
        encoder = open_encoder(args.run, device, args.amp, text=args.captions is not None)
        if args.captions is not None:
            encoder.tokenizer  # noqa: B018  (an error now rather than when all images are done)
        settings = settle(args, encoder)
        data = distributed.on_rank0(read, args)
        data.window, data.fit = encoder.window, encoder.fit
        about = describe(encoder, data, settings)
        if not distributed.on_rank0(is_done, out, about, args.overwrite):
            data = distributed.on_rank0(leave_out_broken, data, args.skip_broken, out, partial)
            embed(encoder, data, settings, about, out, partial, held)
        if distributed.rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)


def settle(args, encoder: Encoder) -> Namespace:
    """What features.extract takes as arguments: the encoder's, and over them those of the command line."""
    if args.fit:
        encoder.fit = args.fit
    if args.window:
        if not (max(map(abs, args.window)) < 1e6 and args.window[1] > 0):
            raise InputError("--window: two numbers, and a width of more than 0")
        encoder.window = "{:g}/{:g}".format(*args.window)
    names = ("features", "batch_size", "workers", "print_freq", "save_every")
    return Namespace(**{**vars(encoder.args), **{name: getattr(args, name) for name in names}, "cache": "none"})


def read(args) -> Unlabelled:
    """The images and captions that are asked for. Raises InputError, also for one that is not there, or with
    --skip-broken names it in the log."""
    columns = {role: getattr(args, f"{role}_column") for role in ("image", "id", "caption")}
    data = read_images(args.images, args.captions, **columns)
    logger.info(f"{args.images}: {len(data):,} images")
    if data.missing and not args.skip_broken:
        more = f" ({len(data.missing):,} such images)" if len(data.missing) > 1 else ""
        raise InputError(f"{data.missing[0]}{more}: correct the table, or pass --skip-broken")
    return data


def leave_out_broken(data: Unlabelled, skip: bool, out: Path, partial: Path) -> Unlabelled:
    """The images that can be read; with `skip` the others are named in a file beside `out`. Raises InputError as
    images.broken_files.

    What was found is kept in `partial`: with --skip-broken every image is decoded, which a run that goes on need not
    do again.
    """
    found, key = partial / "checked.json", f"{listing(data)} {skip}"
    try:
        checked, broken = json.loads(utils.read_text(found))
    except (InputError, ValueError, TypeError):
        checked = None
    if checked != key:
        broken = images.broken_files(map(data.path, range(len(data))), skip)
        utils.write_json(found, [key, broken])
    reasons = [*data.missing, *(reason.removesuffix(", or pass --skip-broken") for reason in broken.values())]
    if reasons:
        named = out.with_name(f"{out.stem}.left_out.txt")
        utils.write_text(named, "".join(f"{reason}\n" for reason in reasons))
        logger.warning(f"{len(reasons):,} images left out, named in {named}: {reasons[0]}")
    if not len(data) - len(broken):
        raise InputError(f"{reasons[0]}: no image is left")
    return data.without(set(broken)) if broken else data


def listing(data: Unlabelled) -> str:
    """A checksum of which images these are, and how they are shown."""
    crc = 0
    for i, key in enumerate(data.ids):
        crc = zlib.crc32(f"{key}\n{data.path(i)}\n".encode(), crc)
    return f"{crc:08x}"


# What is in the output


def describe(encoder: Encoder, data: Unlabelled, settings) -> dict:
    """What the output's metadata say: the model, how images are shown to it, and in `identity` all that the file
    depends on."""
    about = {
        "run": str(Path(encoder.path).absolute()),
        "weights": features.weights_crc(encoder.model, IMAGE_PARTS),
        "features": settings.features,
        "arch": settings.arch,
        "image_size": settings.image_size,
        "fit": encoder.fit,
        "window": encoder.window,
        "normalize": settings.normalize,
        "versions": utils.versions() | {"pyarrow": pa.__version__},
    }
    return about | {"identity": f"{image_key(encoder, data, settings)} {text_key(encoder, data)}".strip()}


def image_key(encoder: Encoder, data: Unlabelled, settings) -> str:
    return f"{features.identity(encoder.model, data, settings, encoder.dtype, flips=False)} {listing(data)}"


def text_key(encoder: Encoder, data: Unlabelled) -> str:
    if data.captions is None:
        return ""
    texts = zlib.crc32("\n".join(data.captions).encode())
    weights = features.weights_crc(encoder.model, ("text_",))
    return f"{texts:08x} {weights} {encoder.args.context_length} {encoder.pad_to} {encoder.dtype}"


def is_done(out: Path, about: dict, overwrite: bool) -> bool:
    """Whether the output is there already. Raises InputError if another one is, unless it may be overwritten."""
    if overwrite or not os.path.lexists(out):
        return False
    try:
        found = json.loads(pq.read_schema(out).metadata[METADATA])
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
        raise InputError(f"--out {out}: is there, and not of this program: give another name, or --overwrite") from None
    if not isinstance(found, dict) or found.get("identity") != about["identity"]:
        raise InputError(
            f"--out {out}: holds embeddings of other images, by another model or with other settings: give another "
            "name, or --overwrite"
        )
    logger.info(f"{out}: is there already, of these images by this model; --overwrite makes it anew")
    return True


# Embedding


def embed(encoder: Encoder, data: Unlabelled, settings, about: dict, out: Path, partial: Path, held) -> None:
    """Each rank saves its share of the embeddings in `partial`, and rank 0 puts them together in `out`.

    Raises Interrupted, and InputError if something cannot be written or an embedding is not finite.
    """
    model = encoder.model
    width = model.embed_dim if settings.features == "projected" else model.width
    saved = {"embedding": (partial / "images", image_key(encoder, data, settings), (width,))}
    if data.captions is not None:
        saved["caption_embedding"] = partial / "captions", text_key(encoder, data), (model.embed_dim,)
    with signals.StopRequest() as stop:
        for name, (folder, key, shape) in saved.items():
            kept = features.Shards(features.own_folder(folder), key, shape)
            if name == "embedding":
                shares = features.encode_share(model, data, data, settings, encoder.device, encoder.dtype, kept, stop)
            else:
                shares = encode_captions(encoder, data.captions, kept, stop, settings.print_freq)
            for _ in shares:  # they are on the disk
                pass
            if kept.written < len(range(distributed.rank(), len(data), distributed.world_size())):
                raise InputError(f"{kept.folder}: cannot be written: make room, and start again to go on")
        distributed.all_objects(None)
        if distributed.rank() == 0:
            parts = {
                name: [
                    features.Shards(features.own_folder(folder, rank), key, shape)
                    for rank in range(distributed.world_size())
                ]
                for name, (folder, key, shape) in saved.items()
            }
            merge(data, parts, about, partial / out.name, features.not_finite(settings))
            held.check()
            utils.sync(partial / out.name)
            os.replace(partial / out.name, out)
            logger.info(f"{out}: {len(data):,} embeddings of {width} numbers")


@torch.no_grad()
def encode_captions(encoder: Encoder, captions, kept: features.Shards, stop, print_freq: int):
    """Yield the embeddings of this rank's share of the captions, from the first that `kept` lacks, and add them to it.

    Raises Interrupted when `stop` asks to leave.
    """
    share = range(distributed.rank(), len(captions), distributed.world_size())
    starts = range(kept.written, len(share), TEXTS)
    most = max(distributed.all_objects(len(starts)))
    progress = Progress(len(starts), print_freq, f"{TEXTS:,} captions")
    unsaved = []
    for number in range(most):
        if stop.check():
            distributed.all_objects(None)
            raise Interrupted(stop.signals)
        if number < len(starts):
            some = share[starts[number] : starts[number] + TEXTS]
            rows = encoder.encode_text([captions[i] for i in some])
            unsaved = kept.add([*unsaved, rows])
            progress.step(len(rows), dict)
            yield rows
    progress.close()


def merge(data: Unlabelled, parts: dict[str, list], about: dict, path: Path, not_finite: str) -> None:
    """Write the parquet file from what all ranks saved, ROWS rows at a time. Raises InputError."""
    for name, found in parts.items():
        if sum(part.written for part in found) != len(data):
            raise InputError(f"{path.parent}: lacks parts of '{name}': it must lie on a disk that all processes see")
    strings = {"id": data.ids, "image": data.images} | ({"caption": data.captions} if data.captions else {})
    fields = {name: pa.string() for name in strings}
    fields |= {name: pa.list_(pa.float32(), *found[0].shape) for name, found in parts.items()}
    order = [name for name in ("id", "image", "embedding", "caption", "caption_embedding") if name in fields]
    schema = pa.schema([(name, fields[name]) for name in order], metadata={METADATA: json.dumps(about)})
    try:
        with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False, write_statistics=False) as file:
            for start in range(0, len(data), ROWS):
                here = range(start, min(start + ROWS, len(data)))
                columns = {name: [some[i] for i in here] for name, some in strings.items()}
                for name, found in parts.items():
                    rows = features.in_order(found, here.start, here.stop)
                    if not rows.isfinite().all():
                        raise InputError(not_finite)
                    if name == "caption_embedding":  # pyarrow cannot read a column of such lists in which one is null
                        rows[[not text for text in columns["caption"]]] = 0
                    columns[name] = pa.FixedSizeListArray.from_arrays(rows.numpy().reshape(-1), type=fields[name])
                if "caption" in columns:
                    columns["caption"] = [text or None for text in columns["caption"]]
                file.write_table(pa.table([columns[name] for name in order], schema=schema))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}): make room, and start again") from None


def make_parser() -> options.Parser:
    parser = options.Parser(description=__doc__.partition("\n\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--images", required=True, metavar="FOLDER|TABLE|SHARDS", help="shards as shard-{000..127}.tar, joined by ::")
    add("--run", required=True, metavar="RUN", help="a run's folder, a checkpoint of main.py, or an export that opens")
    add("--out", required=True, metavar="FILE.parquet")
    add("--overwrite", action="store_true", help="replace other embeddings in --out")
    captions = "embed the captions too: those of the table or the shards, or of FILE, lines of '<id> <caption>'"
    add("--captions", nargs="?", const="", metavar="FILE", help=captions)
    for role in ("image", "id", "caption"):
        add(f"--{role}-column", metavar="NAME", help="of a table (default: by its usual names)")
    add("--features", choices=("projected", "pooled"), default="projected", help="after or before the projection")
    fits = "how an image is made square (default: as in the model's validation)"
    add("--fit", choices=("center", "center256", "squash"), help=fits)
    add("--window", type=float, nargs=2, metavar=("CENTER", "WIDTH"), help="of DICOM files (default: the run's)")
    add("--skip-broken", action="store_true", help="leave out images that cannot be read, named in a file beside --out")
    add("-b", "--batch-size", type=options.positive, default=128, help="images a forward pass (default: %(default)s)")
    workers = "loader processes a device (default: cores shared out, 8 at most)"
    add("-j", "--workers", type=options.not_negative, help=workers)
    add("-p", "--print-freq", type=options.positive, default=10, metavar="BATCHES")
    save = "save after so many batches, or 90s, 15m, 2h (default: %(default)s)"
    add("--save-every", type=options.interval, default="1m", metavar="BATCHES|TIME", help=save)
    add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    add("--amp", choices=("bf16", "fp16", "off"), help="mixed precision (default: the device's best)")
    add("--dist-url", default="env://")
    add("--dist-backend", choices=("nccl", "gloo"), help="default: nccl on GPUs, gloo on CPUs")
    return parser


if __name__ == "__main__":
    distributed.run_script(main, make_parser().parse_args())
