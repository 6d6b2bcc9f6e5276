"""Fine-tune an image encoder on image-caption pairs with CLIP plus SimCLR.

python main.py --root /data/roco --pretrained medclip --output-dir runs/vit
python main.py --root phantoms/roco --arch resnet10t --text-model tiny --pretrained none --image-size 112
torchrun --nproc_per_node=8 main.py --root /data/roco --pretrained medclip --output-dir runs/vit
"""

import options

if __name__ == "__main__":  # before the heavy imports, so that --help and a wrong flag answer at once
    ARGS = options.parse(options.train_parser())

import contextlib
import json
import math
import time
from pathlib import Path

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch.nn.parallel import DistributedDataParallel

import augment
import checkpoints
import datasets
import losses
import metrics
import models
import text
import utils
import views
from utils import InputError, logger


def main(args) -> None:
    device = utils.init_distributed(args.device, args.dist_backend, args.dist_url)
    world = utils.world_size()
    out = Path(args.output_dir or f"runs/{args.arch or 'medclip_vit'}_{args.objective}").expanduser().absolute()

    # Initialisation: 1. --resume, 2. the run's own latest checkpoint, 3. --pretrained, 4. random.
    latest = out / "checkpoint.pt"
    resume = args.resume or (str(latest) if latest.exists() else None)
    resumed = checkpoints.read(resume) if resume else None
    check_same_run(args, resumed, resume)
    args.arch, args.image_size = args.arch or "medclip_vit", args.image_size or 224
    args.pretrained = args.pretrained or ("medclip" if args.arch.startswith("medclip_") else "none")
    args.normalize = args.normalize or models.default_normalize(args.arch, args.pretrained)

    entry = datasets.find_entry(args.catalog, args.dataset, args.root)
    if entry["type"] != "roco":
        raise InputError(f"--dataset {args.dataset}: type '{entry['type']}' has no captions; main.py takes type 'roco'")
    train_pairs, notes = utils.on_rank0(load_pairs, args, entry["path"], "train")
    val_pairs, val_notes = utils.on_rank0(load_pairs, args, entry["path"], "validation")
    batches = views.EpochBatches(len(train_pairs), args.batch_size, args.update_freq, utils.rank(), world, args.seed)
    if batches.steps == 0 and not args.evaluate:
        raise InputError(
            f"{len(train_pairs)} training pairs are fewer than one step takes ({args.batch_size} a device x {world} "
            f"devices x {args.update_freq}): lower --batch-size or --update-freq"
        )

    torch.manual_seed(args.seed)
    tokenizer, serialised = make_tokenizer(args, resumed, train_pairs)
    model = models.create_model(
        args.arch, args.objective, args.pretrained if resumed is None else "none", args.text_model, args.text_pooling,
        len(tokenizer) if tokenizer else None, args.ssl_mlp_dim, args.ssl_emb_dim, args.image_size,
    )  # fmt: skip
    if resumed is not None:
        checkpoints.load_weights(model, resumed, resume, args.arch)
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
    if args.grad_checkpointing:
        model.checkpoint_gradients()
    if args.compile:
        model.image_encoder.compile()
        if tokenizer:
            model.text_encoder.compile()
    dtype = utils.amp_dtype(args.amp, device)
    workers = views.default_workers(world) if args.workers is None else args.workers

    evaluation = None
    if val_pairs is not None:
        evaluation = make_evaluation(args, val_pairs, tokenizer, workers, device)
    if args.evaluate:
        if evaluation is None:
            raise InputError(f"{entry['path']}: no validation split to evaluate on")
        logger.info(json.dumps(evaluate(model, evaluation, args, device, dtype)))
        return

    optimizer = make_optimizer(model, args)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    start_epoch, best = 0, None
    if resumed is not None:
        start_epoch, best = restore(resumed, optimizer, scaler, args, resume)
        if not (out / "checkpoint_best.pt").exists():
            best = None  # nothing here to be better than
    network = model
    if world > 1:
        if device.type == "cuda":  # torch's SyncBatchNorm trains on CUDA only
            network = convert_sync_batchnorm(model)  # timm's own keeps the activation that some of its norms hold
        network = DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)

    if start_epoch >= args.epochs:
        logger.info(f"{resume}: all {args.epochs} epochs are done; raise --epochs to go on")
        return
    utils.on_rank0(utils.make_folder, out)
    writers = open_writers(args, out)
    if utils.rank() == 0:
        utils.write_json(out / "config.json", {**utils.provenance(vars(args), device), "data": notes | val_notes})
        write_names(out, "train", train_pairs)
        if val_pairs is not None:
            write_names(out, "validation", val_pairs)
        truncate_log(out / "log.txt", start_epoch)
    describe(args, model, batches, device, dtype, workers)
    if val_pairs is None:
        logger.warning(
            f"{entry['path']}: no validation split: nothing is evaluated and checkpoint_best.pt is not written"
        )

    tokens = make_tokens(args, tokenizer, train_pairs)
    dataset = views.TrainViews(train_pairs, tokens, args.objective, args.image_size, args.seed)
    loader = views.loader(dataset, batches, workers, device)
    loss_function = losses.create_loss(args.objective, args.ssl_temp, args.ssl_scale)
    for epoch in range(start_epoch, args.epochs):
        batches.epoch = epoch
        record = {"epoch": epoch, "step": (epoch + 1) * batches.steps}
        record |= train_epoch(network, loss_function, optimizer, scaler, loader, batches, epoch, args, device, dtype)
        is_best = False
        if evaluation is not None and ((epoch + 1) % args.eval_freq == 0 or epoch + 1 == args.epochs):
            results = evaluate(model, evaluation, args, device, dtype)
            record |= {f"val_{name}": value for name, value in results.items()}
            is_best = best is None or results["score"] > best
            best = results["score"] if is_best else best
        if utils.rank() == 0:
            state = {
                "epoch": epoch + 1, "step": record["step"], "model": model.state_dict(),
                "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
                # Every draw is seeded by (seed, epoch, sample) or (seed, step, micro-batch, rank).
                "rng": {"seed": args.seed, "step": record["step"]}, "best": best, "args": plain(args),
            }  # fmt: skip
            if serialised:
                state["tokenizer"] = serialised
            utils.save_checkpoint(state, latest)
            if is_best:
                utils.save_copy(latest, out / "checkpoint_best.pt")
            append_log(out / "log.txt", record)
            for write in writers:
                write(record)
            shown = "  ".join(f"{name} {value:.4g}" for name, value in record.items() if name != "step")
            logger.info(shown + ("  (best)" if is_best else ""))
        if world > 1:
            dist.barrier()


def train_epoch(network, loss_function, optimizer, scaler, loader, batches, epoch, args, device, dtype) -> dict:
    """One pass over the training pairs -> means of the losses, and the rate. Nothing is read back between logs."""
    network.train()
    model = network.module if isinstance(network, DistributedDataParallel) else network
    mean, std = models.mean_std(args.normalize, args.arch)
    total_steps, warmup_steps = args.epochs * batches.steps, round(args.warmup_epochs * batches.steps)
    progress = utils.Progress(batches.steps, args.print_freq, f"epoch {epoch}")
    totals, names, count, started = 0, (), 0, time.monotonic()

    def running_means() -> dict:
        means = (utils.mean_over_ranks(totals.clone()) / count).tolist()  # the device is read here and nowhere else
        if not math.isfinite(means[0]):
            raise InputError(f"the loss is {means[0]} at epoch {epoch}, step {step}: lower --lr or give --clip-grad")
        return {"lr": optimizer.param_groups[0]["lr"], **dict(zip(names, means, strict=True))}

    for number, batch in enumerate(loader):
        step, micro = divmod(number, args.update_freq)
        step += epoch * batches.steps
        utils.seed_step(args.seed, step, micro, utils.rank())
        if micro == 0:
            lr = utils.learning_rate(step, total_steps, warmup_steps, args.lr, args.lr_start, args.lr_end)
            for group in optimizer.param_groups:
                group["lr"] = lr
        last = micro == args.update_freq - 1
        accumulating = contextlib.nullcontext() if last or network is model else network.no_sync()
        with accumulating:
            inputs = model_inputs(batch, args.objective, mean, std, device)
            with utils.autocast(device, dtype):
                outputs = network(**inputs)
            parts = loss_function(outputs)
            scaler.scale(parts["loss"] / args.update_freq).backward()
        names = tuple(parts)
        totals = totals + torch.stack([value.detach() for value in parts.values()])
        count += 1
        if not last:
            continue
        if args.clip_grad:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if hasattr(model, "logit_scale"):
            model.logit_scale.data.clamp_(0, math.log(100))
        progress.step(batches.global_batch, running_means)
    progress.close()
    record = {f"train_{name}" if name != "lr" else name: value for name, value in running_means().items()}
    if hasattr(model, "logit_scale"):
        record["logit_scale"] = model.logit_scale.exp().item()
    seconds = time.monotonic() - started
    return {**record, "samples_per_s": batches.steps * batches.global_batch / seconds, "seconds": seconds}


def model_inputs(batch: dict, objective: str, mean, std, device) -> dict:
    """A training batch -> the arguments of MedSLIP.forward, on the device."""
    made = augment.make_views(batch, mean, std, device)
    inputs = {}
    if objective != "simclr":
        inputs["image"] = made.pop(0)
        for name in ("input_ids", "attention_mask"):
            inputs[name] = batch[name].to(device, non_blocking=True)
    if made:
        inputs["aug1"], inputs["aug2"] = made
    return inputs


def make_evaluation(args, pairs, tokenizer, workers, device) -> tuple:
    """The validation loader, and how many pairs it covers."""
    if args.objective == "simclr":
        batch_size = min(args.batch_size, len(pairs) // utils.world_size())
        if batch_size < 2:
            raise InputError(f"{len(pairs)} validation pairs are too few for {utils.world_size()} devices")
        sampler = views.EpochBatches(len(pairs), batch_size, 1, utils.rank(), utils.world_size(), args.seed)
        dataset = views.TrainViews(pairs, None, "simclr", args.image_size, args.seed)
        return views.loader(dataset, sampler, workers, device), len(pairs)
    dataset = views.WholeImages(
        lambda i: views.read_image(pairs.path(i)), make_tokens(args, tokenizer, pairs), args.image_size, "center"
    )
    batches = views.rank_batches(len(pairs), args.batch_size, utils.rank(), utils.world_size())
    return views.loader(dataset, batches, workers, device), len(pairs)


@torch.no_grad()
def evaluate(model, evaluation, args, device, dtype) -> dict:
    """Image-text retrieval on the validation split, recall in percent; `score` (higher is better) picks the best.

    `simclr` has no text: its loss on fixed views of the validation images, `score` its negative.
    """
    loader, total = evaluation
    model.eval()
    mean, std = models.mean_std(args.normalize, args.arch)
    if args.objective == "simclr":
        loss_function, values = losses.create_loss("simclr", args.ssl_temp), []
        for batch in loader:
            inputs = model_inputs(batch, "simclr", mean, std, device)
            with utils.autocast(device, dtype):
                outputs = model(**inputs)
            values.append(loss_function(outputs)["loss"])
        loss = utils.mean_over_ranks(torch.stack(values).mean()).item()
        return {"loss": loss, "score": -loss}
    embeddings = ([], [])
    for batch in loader:
        inputs = model_inputs(batch, "clip", mean, std, device)
        with utils.autocast(device, dtype):
            embeddings[0].append(model.encode_image(inputs["image"]))
            embeddings[1].append(model.encode_text(inputs["input_ids"], inputs["attention_mask"]))
    width = models.EMBED_DIM
    image, text_ = (
        utils.gather_rows(torch.cat(rows) if rows else torch.zeros(0, width, device=device, dtype=dtype), total)
        for rows in embeddings
    )
    if not (image.isfinite().all() and text_.isfinite().all()):
        raise InputError("the validation embeddings are not finite: lower --lr, give --clip-grad, or try --amp off")
    normal = torch.nn.functional.normalize
    recalls = metrics.retrieval(normal(image.float(), dim=-1), normal(text_.float(), dim=-1))
    return {**recalls, "pairs": total, "score": sum(recalls.values()) / len(recalls)}


# Set-up


def check_same_run(args, resumed: dict | None, path) -> None:
    """A run goes on only as itself: take the architecture from its checkpoint, refuse another one."""
    if resumed is None:
        return
    saved = checkpoints.own_arguments(resumed)
    if saved is None or "optimizer" not in resumed:
        raise InputError(f"{path}: not a checkpoint of main.py: give weights as --pretrained, not --resume")
    args.arch = args.arch or saved["arch"]
    args.normalize = args.normalize or saved["normalize"]
    args.image_size = args.image_size or saved["image_size"]
    for name in (
        "arch",
        "objective",
        "text_model",
        "text_pooling",
        "normalize",
        "ssl_mlp_dim",
        "ssl_emb_dim",
        "image_size",
    ):
        if getattr(args, name) != saved[name]:
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"{path}: made with {flag} {saved[name]}, not {getattr(args, name)}: give the same, or another "
                "--output-dir"
            )
    watched = (
        "lr lr_start lr_end warmup_epochs batch_size update_freq seed epochs wd betas eps clip_grad ssl_temp ssl_scale"
    )
    for name in (*watched.split(), "context_length", "dataset", "subset", "metadata"):
        if plain(args)[name] != saved[name]:
            logger.warning(f"resuming with {name} {getattr(args, name)}; the run began with {saved[name]}")
    logger.info(f"weights: going on with {path}, {resumed['epoch']} epochs done")


def load_pairs(args, root: str, split: str):
    """-> the pairs of a split whose images can be read (None without a validation split), and their counts."""
    validation = split == "validation"
    pairs = datasets.read_pairs(root, split, None if validation else args.metadata, args.subset, optional=validation)
    if pairs is None:
        return None, {}
    broken = views.unreadable((pairs.path(i) for i in range(len(pairs))), decode=args.skip_broken)
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


def make_tokenizer(args, resumed: dict | None, pairs) -> tuple:
    """-> the tokenizer, and its serialised form if a run trained it. None, None where there is no text tower."""
    if args.objective == "simclr":
        return None, None
    if args.text_model != "tiny":
        return text.load_tokenizer(args.text_model), None
    contents = resumed
    if contents is None and Path(args.pretrained).exists():
        contents = checkpoints.read(args.pretrained)
    serialised = contents.get("tokenizer") if contents else None
    if serialised is None:
        serialised = utils.on_rank0(text.train_bpe, pairs.captions)
    return text.from_json(serialised), serialised


def make_tokens(args, tokenizer, pairs):
    if tokenizer is None:
        return None
    pad_to = args.context_length if args.text_pooling == "padded" else None
    return text.Tokens(tokenizer, pairs.captions, args.context_length, pad_to)


def make_optimizer(model, args) -> torch.optim.Optimizer:
    """AdamW without decay on norms, biases and the logit scale."""
    groups = {True: [], False: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[parameter.ndim >= 2].append(parameter)
    settings = [{"params": groups[True], "weight_decay": args.wd}, {"params": groups[False], "weight_decay": 0.0}]
    return torch.optim.AdamW(settings, lr=args.lr, betas=args.betas, eps=args.eps, fused=True)


def restore(contents: dict, optimizer, scaler, args, path) -> tuple[int, float | None]:
    """Load the optimiser's and the scaler's state -> epochs done, best score."""
    try:
        optimizer.load_state_dict(contents["optimizer"])
        for group, decay in zip(
            optimizer.param_groups, (args.wd, 0.0), strict=True
        ):  # the arguments hold, not the file
            group.update(weight_decay=decay, betas=args.betas, eps=args.eps)
        if scaler.is_enabled() and contents["scaler"]:
            scaler.load_state_dict(contents["scaler"])
        return int(contents["epoch"]), contents["best"]
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: its optimiser does not fit this run (locked towers differ?): {error}") from None


def describe(args, model, batches, device, dtype, workers) -> None:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    everything = sum(p.numel() for p in model.parameters())
    logger.info(
        f"{args.arch}, {args.objective}: {everything / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained; "
        f"{args.normalize} normalisation; {device}, {'float32' if dtype is None else str(dtype)[6:]}, {workers} workers"
    )
    logger.info(
        f"peak lr {args.lr:g}; a step takes {batches.global_batch} pairs ({args.batch_size} a device x "
        f"{utils.world_size()} devices x {args.update_freq}); {batches.steps} steps an epoch, {args.epochs} epochs"
    )


def write_names(out: Path, split: str, pairs) -> None:
    """Name the captions without an image, and the images that were left out."""
    for what in ("missing", "unreadable"):
        names = getattr(pairs, what)
        if names:
            path = out / f"{what}_images_{split}.txt"
            utils.write_text(path, "\n".join(names) + "\n")
            logger.info(f"{split}: {len(names)} {what} images are named in {path}")


def truncate_log(path: Path, epoch: int) -> None:
    """Drop the lines of epochs that a resumed run will do again."""
    if path.exists():
        lines = []
        for line in utils.read_text(path).splitlines():
            with contextlib.suppress(ValueError):  # a line that was cut short is dropped too
                if json.loads(line)["epoch"] < epoch:
                    lines.append(line)
        utils.write_text(path, "".join(line + "\n" for line in lines))


def append_log(path: Path, record: dict) -> None:
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}; the checkpoint is whole") from None


def open_writers(args, out: Path) -> list:
    """Functions that take an epoch's record: TensorBoard and Weights & Biases, imported only when asked for."""
    writers = []
    if utils.rank() != 0:
        return writers
    try:
        if args.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            board = SummaryWriter(str(out))
            writers.append(lambda record: [board.add_scalar(k, v, record["step"]) for k, v in record.items()])
        if args.wandb:
            import wandb

            run = wandb.init(project="medslip", dir=str(out), config=plain(args), resume="allow")
            writers.append(lambda record: run.log(record, step=record["step"]))
    except ImportError as error:
        raise InputError(f"{error}: pip install {'wandb' if 'wandb' in str(error) else 'tensorboard'}") from None
    return writers


def plain(args) -> dict:
    """The arguments as a dict of plain values, for a checkpoint that opens with weights_only."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(args).items()}


if __name__ == "__main__":
    utils.run_script(main, ARGS)
