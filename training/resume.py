"""Going on with a run: from which checkpoint, whether it is the same run, and with which accumulation."""

import zipfile
import zlib
from pathlib import Path

import checkpoints
import distributed
from options import plain
from training.saver import LATEST, PREVIOUS
from utils import InputError, logger

TAKEN = "arch normalize image_size text_model context_length".split()
SAME = "arch objective text_model text_pooling normalize ssl_mlp_dim ssl_emb_dim image_size".split()
WATCHED = (
    "lr lr_start lr_end warmup_epochs seed epochs wd betas eps clip_grad ssl_temp ssl_scale freeze_bn on_nonfinite "
    "context_length dataset subset metadata cache window"
).split()


def open_checkpoint(out: Path, asked: str | None) -> tuple[dict | None, str | None]:
    """The checkpoint that a run goes on with, and its path: the newest whole one in `out`, or `asked` (--resume).

    `asked` it is, unless that in `out` is of a run that was started with the same --resume. None, None if there is
    none. Raises InputError if `asked` is damaged, or if all of the run's own are.
    """
    own = distributed.on_rank0(newest_whole, out)
    if own:
        contents = checkpoints.read(own)
        if asked in (None, own, (checkpoints.own_arguments(contents) or {}).get("resume")):
            return contents, own
    return (checkpoints.read(asked), asked) if asked else (None, None)


def newest_whole(out: Path) -> str | None:
    damaged = []
    for path in (out / LATEST, out / PREVIOUS):
        if path.exists():
            try:
                with zipfile.ZipFile(path) as archive:
                    checkpoints.check_archive(archive)
            except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
                damaged.append(path)
                logger.warning(f"{path}: cut short or altered ({error}): it is not used")
                continue
            if damaged:
                logger.warning(f"going on with the one before it, {path}")
            return str(path)
    if damaged:
        raise InputError(
            f"{' and '.join(str(path) for path in damaged)}: cut short or altered, and there is no other checkpoint: "
            "remove it to begin again, or give another with --resume"
        )
    return None


def check_same_run(args, contents: dict, path) -> None:
    """Take what TAKEN names from the checkpoint if not given; refuse a run that differs in SAME, warn of WATCHED."""
    saved = checkpoints.own_arguments(contents)
    if saved is None or not all(key in contents for key in ("optimizer", "epoch", "step", "progress")):
        raise InputError(f"{path}: not a checkpoint of main.py: give weights as --pretrained, not --resume")
    for name in TAKEN:
        setattr(args, name, getattr(args, name) or saved.get(name))
    args.published = saved.get("published") if args.arch == saved["arch"] else None
    for name in SAME:
        if getattr(args, name) != saved[name]:
            raise InputError(
                f"{path}: made with --{name.replace('_', '-')} {saved[name]}, not {getattr(args, name)}: give the "
                "same, or another --output-dir"
            )
    given = plain(args)
    for name in WATCHED:
        if given[name] != saved.get(name):
            logger.warning(f"resuming with {name} {given[name]}; the run began with {saved.get(name)}")
    if not args.evaluate:
        keep_global_batch(args, contents["progress"]["global_batch"], saved, path)
    steps = contents["progress"]["step_in_epoch"]
    where = f"{contents['epoch']} epochs done" + (f" and {steps} steps of the next" if steps else "")
    logger.info(f"weights: going on with {path}, {where}")


def keep_global_batch(args, total: int, saved: dict, path) -> None:
    """Set --update-freq so that a step still takes `total` pairs. Raises InputError with the numbers that would fit."""
    world = distributed.world_size()
    if total % world:
        fit = [n for n in range(1, total + 1) if total % n == 0]
        raise InputError(
            f"{path}: a step takes {total} pairs, which {world} devices cannot share: "
            f"numbers of devices that fit: {', '.join(map(str, fit))}"
        )
    if total % (args.batch_size * world):
        share = total // world
        fit = [n for n in range(1, share + 1) if share % n == 0]
        raise InputError(
            f"{path}: a step takes {total} pairs, {share} of them on each of {world} devices: --batch-size "
            f"{args.batch_size} does not divide that: {', '.join(map(str, fit))} would"
        )
    freq = total // (args.batch_size * world)
    if freq != args.update_freq:
        logger.warning(
            f"a step takes {total} pairs, as the run began: --update-freq is {freq} ({args.batch_size} a device x "
            f"{world} devices x {freq}), not {args.update_freq}"
        )
        args.update_freq = freq
    now, before = (
        grad_cache is not False or update_freq == 1
        for grad_cache, update_freq in ((args.grad_cache, freq), (saved["grad_cache"], saved["update_freq"]))
    )
    if now != before or not (now or args.batch_size * world == total // saved["update_freq"]):
        logger.warning(
            "without --grad-cache the negatives come from a micro-batch, whose size or kind has changed since the run "
            "began"
        )


def restore(contents: dict, optimizer, scaler, args, path) -> None:
    """Load the optimiser's and the scaler's state. Raises InputError if they are of another run."""
    try:
        optimizer.load_state_dict(contents["optimizer"])
        # This command's arguments count, not the checkpoint's.
        for group, decay in zip(optimizer.param_groups, (args.wd, 0.0), strict=True):
            group.update(weight_decay=decay, betas=args.betas, eps=args.eps)
        if scaler.is_enabled() and contents["scaler"]:
            scaler.load_state_dict(contents["scaler"])
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: its optimiser does not fit this run (locked towers differ?): {error}") from None


def check_data(contents: dict, data: int, path) -> None:
    """Refuse to go on within an epoch whose pairs are no longer those that it began with."""
    if contents["progress"]["data"] != data:
        if contents["progress"]["step_in_epoch"]:
            raise InputError(
                f"{path}: the training pairs are not those that this epoch began with, so it cannot be finished: put "
                "the data back, or give this file as --pretrained and another --output-dir"
            )
        logger.warning("the training pairs are not those that the run began with")


def fingerprint(pairs) -> int:
    """CRC-32 over the ids and captions of sets.Pairs, and the window that its images are shown in."""
    return zlib.crc32(pairs.window.encode(), zlib.crc32(pairs.captions.buffer, zlib.crc32(pairs.ids.buffer)))
