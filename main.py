"""Fine-tune an image encoder on image-caption pairs with CLIP plus SimCLR.

python main.py --root /data/roco --pretrained medclip --output-dir runs/vit
python main.py --root phantoms/roco --arch resnet10t --text-model tiny --pretrained none --image-size 112
torchrun --nproc_per_node=8 main.py --root /data/roco --pretrained medclip --output-dir runs/vit
"""

import options

if __name__ == "__main__":  # before the heavy imports, so that --help and a wrong flag answer at once
    ARGS = options.parse(options.train_parser())

import contextlib
import itertools
import json
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

import checkpoints
import datasets
import distributed
import losses
import models
import utils
from data import cache, images, lock, roco, views
from data.batches import EpochBatches, default_workers, open_loader
from data.tokens import Tokens, from_json, load_tokenizer, train_bpe
from evaluation import audit, retrieval
from options import plain
from training import logs, resume, saver, schedule, signals
from training.progress import Progress
from training.update import Update
from utils import InputError, Interrupted, logger


def main(args) -> None:
    device = distributed.init_distributed(args.device, args.dist_backend, args.dist_url)
    out = Path(args.output_dir or f"runs/{args.arch or 'medclip_vit'}_{args.objective}").expanduser().absolute()
    # --evaluate reads a checkpoint, also that of a run under way, and writes one file of its own, whole.
    with contextlib.nullcontext() if args.evaluate else lock.output_folder(out) as held:
        run(args, device, out, held)


def run(args, device, out: Path, held) -> None:
    """The training, or --evaluate, while `held` (lock.Lock, None for --evaluate) keeps others out of the folder."""
    world = distributed.world_size()
    # Initialisation: 1. --resume, 2. the run's own latest checkpoint, 3. --pretrained, 4. random.
    resumed, resumed_path = resume.open_checkpoint(out, args.resume)
    if resumed is not None:
        resume.check_same_run(args, resumed, resumed_path)
    args.arch, args.image_size = args.arch or "medclip_vit", args.image_size or 224
    args.pretrained = args.pretrained or ("medclip" if args.arch.startswith("medclip_") else "none")
    args.normalize = args.normalize or models.default_normalize(args.arch, args.pretrained)

    entry = datasets.find_entry(args.catalog, args.dataset, args.root)
    if entry["type"] != "roco":
        raise InputError(f"--dataset {args.dataset}: type '{entry['type']}' has no captions; main.py takes type 'roco'")
    train_pairs, notes = distributed.on_rank0(load_pairs, args, entry["path"], "train")
    val_pairs, val_notes = distributed.on_rank0(load_pairs, args, entry["path"], "validation")
    articles, disjoint, article_counts = distributed.on_rank0(audit_articles, train_pairs, val_pairs)
    batches = EpochBatches(len(train_pairs), args.batch_size, args.update_freq, distributed.rank(), world, args.seed)
    if batches.steps == 0 and not args.evaluate:
        raise InputError(
            f"{len(train_pairs)} training pairs are fewer than one step takes ({args.batch_size} a device x {world} "
            f"devices x {args.update_freq}): lower --batch-size or --update-freq"
        )
    data = resume.fingerprint(train_pairs)
    if resumed is not None and not args.evaluate:
        resume.check_data(resumed, data, resumed_path)

    torch.manual_seed(args.seed)
    tokenizer, serialised = make_tokenizer(args, resumed, train_pairs)
    model = make_model(args, resumed, resumed_path, tokenizer, device)
    dtype = utils.amp_dtype(args.amp, device)
    workers = default_workers(world) if args.workers is None else args.workers

    with contextlib.ExitStack() as stack:
        val_loader = None
        if val_pairs is not None:
            val_tokens = make_tokens(args, tokenizer, val_pairs)
            val_pictures = make_pictures(args, val_pairs, "validation")
            val_loader = retrieval.validation_loader(args, val_pictures, val_tokens, workers, device)
            val_loader = stack.enter_context(val_loader)
        if args.evaluate:
            if val_loader is None:
                raise InputError(f"{entry['path']}: no validation split to evaluate on")
            evaluate_only(model, val_loader, val_pairs, articles, disjoint, args, out, device, dtype)
            return

        optimizer = make_optimizer(model, args)
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        epoch, first_step, best = 0, 0, None
        if resumed is not None:
            resume.restore(resumed, optimizer, scaler, args, resumed_path)
            epoch, first_step = resumed["epoch"], resumed["progress"]["step_in_epoch"]
            best = distributed.on_rank0(saver.best_score, out)
        network = distribute(model, device) if world > 1 else model

        if epoch >= args.epochs:
            logger.info(f"{resumed_path}: all {args.epochs} epochs are done; raise --epochs to go on")
            return
        pairs = {"train": train_pairs, "validation": val_pairs}
        distributed.on_rank0(
            open_folder, out, args, device, pairs, {**notes, **val_notes, **article_counts, "crc32": data}, epoch
        )
        log = logs.Log(out, args)
        describe(args, model, batches, device, dtype, workers)
        if val_pairs is None:
            logger.warning(
                f"{entry['path']}: no validation split: nothing is evaluated and {saver.BEST} is not written"
            )

        tokens = make_tokens(args, tokenizer, train_pairs)
        views_of_pairs = views.TrainViews(
            make_pictures(args, train_pairs, "train"), tokens, args.objective, args.image_size, args.seed
        )
        loader = stack.enter_context(open_loader(views_of_pairs, batches, workers, device))
        step = Update(
            network, losses.create_loss(args.objective, args.ssl_temp, args.ssl_scale), optimizer, scaler, args,
            models.mean_std(args.normalize, args.arch), device, dtype,
            lambda samples: [train_pairs.ids[i] for i in samples], out,
        )  # fmt: skip
        if resumed is not None:
            step.load_state_dict(resumed["progress"])
        keeper = saver.Saver(out, args.save_every, epoch * batches.steps + first_step, best)
        stack.callback(keeper.wait)  # a thread that writes must not meet the interpreter's end
        step.before_update = keeper.wait_for_copy
        stop = stack.enter_context(signals.StopRequest())

        def state(step_in_epoch: int) -> dict:
            """What the run goes on from: `epoch` epochs are done, and so many steps of the next."""
            done = epoch * batches.steps + step_in_epoch
            return {
                "epoch": epoch, "step": done, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(), "args": plain(args),
                # Every draw is seeded by (seed, epoch, sample) or (seed, step, micro-batch, rank).
                "rng": {"seed": args.seed, "step": done},
                "progress": {
                    "step_in_epoch": step_in_epoch, "global_batch": batches.global_batch, "data": data,
                    **step.state_dict(),
                },
                **({"tokenizer": serialised} if serialised else {}),
            }  # fmt: skip

        def between_steps(step_in_epoch: int) -> None:
            """Save if it is time, or save and leave if a signal asked for it."""
            held.check()
            if stop.check():
                leave(step_in_epoch)
            last = step_in_epoch == batches.steps  # saved with its evaluation
            if not last and keeper.due(epoch * batches.steps + step_in_epoch) and step.clean():
                keeper.save(state(step_in_epoch))

        def leave(step_in_epoch: int) -> None:
            step.settle()
            keeper.save(state(step_in_epoch))
            with contextlib.suppress(InputError):  # after printing its lines: the run is saved, and will go on
                log.close()
            distributed.on_rank0(keeper.close)  # the others wait: a launcher ends all ranks when one has left
            raise Interrupted(stop.signals)

        def finish() -> None:
            try:
                keeper.close()
            except InputError:
                with contextlib.suppress(InputError):
                    log.close()
                raise
            log.close()

        while epoch < args.epochs:
            batches.epoch, batches.first_step = epoch, first_step
            record = {"epoch": epoch, "step": (epoch + 1) * batches.steps}
            record |= train_epoch(step, loader, batches, args, between_steps)
            score = None
            if val_loader is not None and ((epoch + 1) % args.eval_freq == 0 or epoch + 1 == args.epochs):
                results = retrieval.evaluate(model, val_loader, len(val_pairs), args, device, dtype, stop, disjoint)
                if results is None:
                    leave(batches.steps)  # evaluated when the run goes on
                record |= {f"val_{name}": value for name, value in results.items()}
                score = results["score"]
            log.write(record)
            shown = "  ".join(f"{name} {value:.4g}" for name, value in record.items() if name != "step")
            logger.info(shown + ("  (best)" if keeper.is_best(score) else ""))
            step.reset()
            epoch, first_step = epoch + 1, 0
            held.check()
            keeper.save(state(0), score)
        distributed.on_rank0(finish)


def train_epoch(step: Update, loader, batches, args, between_steps) -> dict:
    """The rest of an epoch -> means of its losses, and the rate. Nothing is read back between logs."""
    step.model.train()
    total, warmup = args.epochs * batches.steps, round(args.warmup_epochs * batches.steps)
    progress = Progress(batches.steps, args.print_freq, f"epoch {batches.epoch}", batches.first_step)
    started = time.monotonic()
    micro_batches = iter(loader)

    def rate_at(now):
        return schedule.learning_rate(now, total, warmup, args.lr, args.lr_start, args.lr_end)

    for number in range(batches.first_step, batches.steps):
        now = batches.epoch * batches.steps + number
        lr = rate_at(now)
        step(list(itertools.islice(micro_batches, args.update_freq)), batches.epoch, now, lr)
        progress.step(batches.global_batch, lambda lr=lr: {"lr": lr, **step.means()})
        between_steps(number + 1)
    progress.close()
    step.settle()
    seconds = time.monotonic() - started
    lr = rate_at((batches.epoch + 1) * batches.steps - 1)
    record = {"lr": lr, **{f"train_{name}": value for name, value in step.means().items()}}
    if hasattr(step.model, "logit_scale"):
        record["logit_scale"] = step.model.logit_scale.exp().item()
    if step.skipped:
        record["skipped_steps"] = step.skipped
    if step.overflows:
        record["overflow_steps"] = step.overflows
    rate = (batches.steps - batches.first_step) * batches.global_batch / max(seconds, 1e-9)
    return {**record, "samples_per_s": rate, "seconds": seconds}


# Set-up


def load_pairs(args, root: str, split: str):
    """-> the pairs of a split whose images can be read (None without a validation split), and their counts."""
    validation = split == "validation"
    pairs = datasets.read_pairs(root, split, None if validation else args.metadata, args.subset, optional=validation)
    if pairs is None:
        return None, {}
    broken = images.unreadable(pairs.paths(), decode=args.skip_broken)
    if broken and not args.skip_broken:
        for why in list(broken.values())[:20]:
            logger.info(why)
        raise InputError(next(iter(broken.values())) + (f" ({len(broken)} such files)" if len(broken) > 1 else ""))
    if broken:
        pairs = pairs.without(set(broken))
        if len(pairs) == 0:
            raise InputError(f"{root}: none of the {len(broken)} {split} images can be read")
    counts = {**pairs.counts, "pairs": len(pairs), "unreadable": len(broken)}
    logger.info(f"{split}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    return pairs, {split: counts}


def audit_articles(train_pairs, val_pairs) -> tuple[list | None, np.ndarray | None, dict]:
    """The validation pairs' articles, which pairs share none with training (None if unknown), and the counts."""
    if val_pairs is None:
        return None, None, {}
    articles = roco.articles(val_pairs.root, val_pairs.ids)
    training = set(roco.articles(train_pairs.root, train_pairs.ids))
    disjoint, counts = audit.shared_articles(articles, training)
    audit.log_articles(counts)
    return articles, disjoint if any(articles) else None, {"articles": counts}


def evaluate_only(model, val_loader, val_pairs, articles, disjoint, args, out, device, dtype) -> None:
    """--evaluate: print the validation's figures; retrieval goes to retrieval.json, with intervals and examples."""
    if args.objective == "simclr":
        found = retrieval.validation_loss(model, val_loader, len(val_pairs), args, device, dtype)
        logger.info(json.dumps(found))
        return
    embeddings = retrieval.embed(model, val_loader, len(val_pairs), args, device, dtype)
    if distributed.rank() != 0:
        return
    report = retrieval.report(embeddings, val_pairs, articles, disjoint, args, device)
    for name, value in report["metrics"].items():
        low, high = report["ci95"].get(name) or (None, None)
        logger.info(f"{name} {value:.4g}" + (f" ({low:.4g} to {high:.4g})" if low is not None else ""))
    utils.write_json(utils.make_folder(out) / "retrieval.json", report)
    logger.info(f"retrieval, its 95% intervals and examples: {out / 'retrieval.json'}")
    logger.info(json.dumps({**report["metrics"], "pairs": report["pairs"], "score": report["score"]}))


def make_tokenizer(args, resumed: dict | None, pairs) -> tuple:
    """-> the tokenizer, and its serialised form if a run trained it. None, None where there is no text tower."""
    if args.objective == "simclr":
        return None, None
    if args.text_model != "tiny":
        return load_tokenizer(args.text_model), None
    contents = resumed
    if contents is None and Path(args.pretrained).exists():
        contents = checkpoints.read(args.pretrained)
    serialised = contents.get("tokenizer") if contents else None
    if serialised is None:
        serialised = distributed.on_rank0(train_bpe, pairs.captions)
    return from_json(serialised), serialised


def make_tokens(args, tokenizer, pairs):
    if tokenizer is None:
        return None
    pad_to = args.context_length if args.text_pooling == "padded" else None
    return Tokens(tokenizer, pairs.captions, args.context_length, pad_to)


def make_pictures(args, pairs, split: str):
    name = f"{args.dataset}-{split}"
    return cache.pictures(args.cache, pairs.root, name, pairs.path, len(pairs), args.image_size)


def make_model(args, resumed, resumed_path, tokenizer, device):
    """The model with its initial weights, on the device, its towers locked or frozen as asked."""
    model = models.create_model(
        args.arch, args.objective, args.pretrained if resumed is None else "none", args.text_model, args.text_pooling,
        len(tokenizer) if tokenizer else None, args.ssl_mlp_dim, args.ssl_emb_dim, args.image_size,
    )  # fmt: skip
    if resumed is not None:
        checkpoints.load_weights(model, resumed, resumed_path, args.arch)
    elif args.pretrained == "none":
        logger.info("weights: random")
    elif args.pretrained == "timm":
        logger.info(
            f"weights: timm's {args.arch}{models.published_text(args.text_model, args.objective)}; the rest random"
        )
    longest = getattr(model.text_encoder.config, "max_position_embeddings", args.context_length) if tokenizer else 0
    if tokenizer and args.context_length > longest:
        raise InputError(
            f"--context-length {args.context_length}: {args.text_model} has positions for {longest} tokens"
        )
    models.mean_std(args.normalize, args.arch)
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


def open_folder(out: Path, args, device, pairs: dict, notes: dict, epoch: int) -> None:
    """Clear the output folder of what was left half done, and write what is known before the first step."""
    utils.remove_temporaries(out)
    utils.write_json(
        out / "config.json", {**utils.provenance(vars(args), device, distributed.world_size()), "data": notes}
    )
    for split, some in pairs.items():
        if some is not None:
            write_names(out, split, some)
    logs.drop_lines(out / "log.txt", epoch)


def make_optimizer(model, args) -> torch.optim.Optimizer:
    """AdamW without decay on norms, biases and the logit scale."""
    groups = {True: [], False: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[parameter.ndim >= 2].append(parameter)
    settings = [{"params": groups[True], "weight_decay": args.wd}, {"params": groups[False], "weight_decay": 0.0}]
    return torch.optim.AdamW(settings, lr=args.lr, betas=args.betas, eps=args.eps, fused=True)


def describe(args, model, batches, device, dtype, workers) -> None:
    world = distributed.world_size()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    everything = sum(p.numel() for p in model.parameters())
    logger.info(
        f"{args.arch}, {args.objective}: {everything / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained; "
        f"{args.normalize} normalisation; {device}, {'float32' if dtype is None else str(dtype)[6:]}, {workers} workers"
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


def write_names(out: Path, split: str, pairs) -> None:
    """Name the captions without an image, and the images that were left out."""
    for what in ("missing", "unreadable"):
        names = getattr(pairs, what)
        if names:
            path = out / f"{what}_images_{split}.txt"
            utils.write_text(path, "\n".join(names) + "\n")
            logger.info(f"{split}: {len(names)} {what} images are named in {path}")


if __name__ == "__main__":
    distributed.run_script(main, ARGS)
