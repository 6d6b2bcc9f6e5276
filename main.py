"""Fine-tune an image encoder on image-caption pairs with CLIP plus SimCLR.

python main.py --root /data/roco --pretrained medclip --output-dir runs/vit
python main.py --root phantoms/roco --arch resnet10t --text-model tiny --pretrained none --image-size 112
torchrun --nproc_per_node=8 main.py --root /data/roco --pretrained medclip --output-dir runs/vit
"""

import options

if __name__ == "__main__":  # before the heavy imports, so that --help and a wrong flag answer at once
    ARGS = options.parse(options.train_parser())

import contextlib
import time
import warnings
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

import checkpoints
import datasets
import distributed
import losses
import models
from data import cache, images, views
from data.batches import EpochBatches, open_loader
from data.tokens import Tokens, from_json, load_tokenizer, train_bpe
from evaluation import audit, retrieval
from training.progress import Progress
from training.run import Run, open_run
from training.schedule import learning_rate
from training.update import Update
from training.verdicts import Verdicts
from utils import InputError, logger


def main(args) -> None:
    device = distributed.init_distributed(args.device, args.dist_backend, args.dist_url)
    with open_run(args) as run:
        if run.done():
            return
        models.settle_defaults(args)

        # The data.
        pairs, notes = read_data(args)
        batches = make_batches(args, len(pairs["train"]))
        run.check_data(pairs["train"])
        overlap = distributed.on_rank0(audit.article_overlap, pairs["train"], pairs["validation"])

        # The model. Its weights: the checkpoint to go on with (resume.open_checkpoint), else those of --pretrained.
        torch.manual_seed(args.seed)
        tokenizer, serialised = make_tokenizer(args, run.checkpoint, pairs["train"])
        model = make_model(args, run.checkpoint, run.path, tokenizer, device)
        validation = run.stack.enter_context(open_validation(args, pairs["validation"], overlap, tokenizer, device))
        if args.evaluate:
            retrieval.evaluate_alone(model, validation, args, run.out)
            return

        # What trains it.
        loader = run.stack.enter_context(open_training(args, pairs["train"], tokenizer, batches, device))
        network = distribute(model, device) if distributed.world_size() > 1 else model
        loss = losses.create_loss(args)
        verdicts = Verdicts(pairs["train"].ids, run.out, args.on_nonfinite)
        update = Update(network, loss, make_optimizer(model, args), args, verdicts)
        run.begin(update, batches, pairs, {**notes, **overlap.notes()}, serialised)
        describe(args, update, batches, loader.num_workers)

        for _ in run.epochs():
            record = train_epoch(update, loader, batches, args, run)
            results = {}
            if validation is not None and run.evaluates():
                results = retrieval.evaluate(model, validation, args, run.stop)
            run.end_epoch(record, results)
        run.finish()


def train_epoch(update: Update, loader, batches: EpochBatches, args, run: Run) -> dict:
    """Train the steps that are left of an epoch -> its record: mean losses, learning rate, samples/s.

    The device is read only when a line is shown.
    """
    update.model.train()
    total, warmup = args.epochs * batches.steps, round(args.warmup_epochs * batches.steps)
    progress = Progress(batches.steps, args.print_freq, f"epoch {batches.epoch}", batches.first_step)
    started = time.monotonic()
    micro_batches = iter(loader)
    for number in range(batches.first_step, batches.steps):
        step = batches.epoch * batches.steps + number
        lr = learning_rate(step, total, warmup, args.lr, args.lr_start, args.lr_end)
        update(run.take(micro_batches), batches.epoch, step, lr)
        progress.step(batches.global_batch, lambda lr=lr: {"lr": lr, **update.means()})
        run.between_steps(number + 1)
    progress.close()
    update.verdicts.settle()
    seconds = time.monotonic() - started
    last = (batches.epoch + 1) * batches.steps - 1
    record = {"lr": learning_rate(last, total, warmup, args.lr, args.lr_start, args.lr_end)}
    record |= {f"train_{name}": value for name, value in update.means().items()}
    if hasattr(update.model, "logit_scale"):
        record["logit_scale"] = update.model.logit_scale.exp().item()
    rate = (batches.steps - batches.first_step) * batches.global_batch / max(seconds, 1e-9)
    return {**record, **update.verdicts.counts(), "samples_per_s": rate, "seconds": seconds}


# The data


def read_data(args) -> tuple[dict, dict]:
    """-> {"train": Pairs, "validation": Pairs or None} (data/sets.py), and {split: counts}."""
    entry = datasets.find_entry(args.catalog, args.dataset, args.root, args.window)
    found = {split: distributed.on_rank0(read_split, args, entry, split) for split in ("train", "validation")}
    pairs = {split: some for split, (some, _) in found.items()}
    return pairs, {split: counts for split, (_, counts) in found.items() if counts}


def read_split(args, entry: dict, split: str):
    """-> the pairs of a split whose images can be read (None without a validation split), and their counts."""
    validation = split == "validation"
    pairs = datasets.paired_set(entry, split, None if validation else args.metadata, args.subset, optional=validation)
    if pairs is None:
        return None, {}
    broken = images.broken_files(pairs.paths(), args.skip_broken)
    if broken:
        pairs = pairs.without(set(broken))
        if len(pairs) == 0:
            raise InputError(f"{entry['path']}: none of the {len(broken)} {split} images can be read")
    counts = {**pairs.counts, "pairs": len(pairs), "unreadable": len(broken)}
    logger.info(f"{split}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    for name, text in pairs.notes.items():
        logger.info(f"{split}: {name}: {text}")
    return pairs, {**counts, **pairs.notes}


def make_batches(args, total: int) -> EpochBatches:
    """The order of `total` pairs and this rank's share of each step. Raises InputError if they fill no step."""
    world = distributed.world_size()
    batches = EpochBatches(total, args.batch_size, args.update_freq, distributed.rank(), world, args.seed)
    if batches.steps == 0 and not args.evaluate:
        raise InputError(
            f"{total} training pairs are fewer than one step takes ({args.batch_size} a device x {world} devices x "
            f"{args.update_freq}): lower --batch-size or --update-freq"
        )
    return batches


def open_training(args, pairs, tokenizer, batches: EpochBatches, device):
    """A context manager: the loader of the training views."""
    pictures, tokens = make_pictures(args, pairs, "train"), make_tokens(args, tokenizer, pairs)
    data = views.TrainViews(pictures, tokens, args.objective, args.image_size, args.seed)
    return open_loader(data, batches, args.workers, device)


@contextlib.contextmanager
def open_validation(args, pairs, overlap, tokenizer, device):
    """The validation split with its loader; None without one."""
    if pairs is None:
        if args.evaluate:
            raise InputError(f"--dataset {args.dataset}: no validation split to evaluate on")
        logger.warning("no validation split: nothing is evaluated, and no best checkpoint is kept")
        yield None
        return
    pictures, tokens = make_pictures(args, pairs, "validation"), make_tokens(args, tokenizer, pairs)
    with retrieval.validation_loader(args, pictures, tokens, device) as loader:
        yield retrieval.Validation(pairs, loader, overlap)


def make_pictures(args, pairs, split: str):
    """Decoded pictures, from the cache unless --cache none."""
    name = f"{args.dataset}-{split}"
    return cache.pictures(args.cache, pairs.root, name, pairs.path, len(pairs), args.image_size)


def make_tokens(args, tokenizer, pairs):
    """The captions' token ids; None where there is no text tower."""
    if tokenizer is None:
        return None
    padded = args.text_pooling == "padded" or (args.published or {}).get("padded")
    pad_to = args.context_length if padded else None
    return Tokens(tokenizer, pairs.captions, args.context_length, pad_to)


# The model


def make_tokenizer(args, resumed: dict | None, pairs) -> tuple:
    """-> the tokenizer, and its serialised form if checkpoints keep it. None, None where there is no text tower."""
    if not options.OBJECTIVES[args.objective].text:
        return None, None
    if models.brings_text(args.published):
        return models.own_tokenizer(args.arch, args.published, resumed and resumed.get("tokenizer"))
    if args.text_model != "tiny":
        return load_tokenizer(args.text_model), None
    contents = resumed
    if contents is None and Path(args.pretrained).exists():
        contents = checkpoints.read(args.pretrained)
    serialised = contents.get("tokenizer") if contents else None
    if serialised is None:
        serialised = distributed.on_rank0(train_bpe, pairs.captions)
    return from_json(serialised), serialised


def make_model(args, resumed, resumed_path, tokenizer, device):
    """The model with its initial weights, on the device; what --lock-* and --freeze-bn ask for is frozen."""
    model = models.create_model(
        args.arch, args.objective, args.pretrained, args.text_model, args.text_pooling,
        len(tokenizer) if tokenizer else None, args.ssl_mlp_dim, args.ssl_emb_dim, args.image_size,
        args.published, None if resumed is None else (resumed, resumed_path),
    )  # fmt: skip
    if resumed is None and args.pretrained == "none":
        logger.info("weights: random")
    elif resumed is None and not model.loaded:
        logger.info(
            f"weights: timm's {args.arch}{models.published_text(args.text_model, args.objective)}; the rest random"
        )
    if tokenizer and args.context_length > (model.positions or args.context_length):
        raise InputError(
            f"--context-length {args.context_length}: {args.text_model or args.arch} has positions for "
            f"{model.positions} tokens"
        )
    models.pixel_statistics(args)
    model.to(device)
    model.lock(*(f"{tower}_encoder" for tower in ("image", "text") if getattr(args, f"lock_{tower}")))
    if args.freeze_bn and model.freeze_batch_norms() == 0:
        logger.warning(f"--freeze-bn: {args.arch} has no batch norm")
    if args.grad_checkpointing:
        model.checkpoint_gradients()
    if args.compile:
        model.image_encoder.compile()
        if tokenizer:
            model.text_encoder.compile(dynamic=True)  # captions differ in length
    return model


def distribute(model, device):
    """One process of several: batch norms over all of them, gradients averaged."""
    # On the CPU its buckets must stay as they are laid out at first, which this flag does: new ones after the first
    # step would sum in another order, and a resumed run would differ from an undisturbed one in the last bit.
    still = device.type == "cpu"
    warnings.filterwarnings(
        "ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning
    )  # new in 2.15
    return DistributedDataParallel(
        distributed.synchronise(model, device), device_ids=None if still else [device.index],
        broadcast_buffers=False, find_unused_parameters=still,
    )  # fmt: skip


def make_optimizer(model, args) -> torch.optim.Optimizer:
    """AdamW without decay on norms, biases and the logit scale."""
    groups = {True: [], False: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[parameter.ndim >= 2].append(parameter)
    settings = [{"params": groups[True], "weight_decay": args.wd}, {"params": groups[False], "weight_decay": 0.0}]
    return torch.optim.AdamW(settings, lr=args.lr, betas=args.betas, eps=args.eps, fused=True)


def describe(args, update: Update, batches: EpochBatches, workers: int) -> None:
    """Log what trains, and with how large a step; warn of options that change nothing."""
    model, world = update.model, distributed.world_size()
    trained, everything = (sum(p.numel() for p in some) for some in (update.parameters, model.parameters()))
    precision = "float32" if update.dtype is None else str(update.dtype)[6:]
    logger.info(
        f"{args.arch}, {args.objective}: {everything / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained; "
        f"{args.normalize} normalisation; {update.device}, {precision}, {workers} workers"
    )
    logger.info(
        f"peak lr {args.lr:g}; a step takes {batches.global_batch} pairs ({args.batch_size} a device x "
        f"{world} devices x {args.update_freq}); {batches.steps} steps an epoch, {args.epochs} epochs"
    )
    if args.update_freq == 1 and args.grad_cache is not None:
        logger.warning("--grad-cache and --no-grad-cache change nothing with --update-freq 1")
    elif (
        args.update_freq > 1
        and not (args.freeze_bn or args.lock_image)
        and distributed.batch_norms(model.image_encoder)
    ):
        logger.warning(
            f"the encoder's batch norms see {args.batch_size * world} images at a time, not the "
            f"{batches.global_batch} of a step: --freeze-bn would make the two equal"
        )


if __name__ == "__main__":
    distributed.run_script(main, ARGS)
