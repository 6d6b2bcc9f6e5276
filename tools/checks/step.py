"""What a step takes: seconds, and memory of the device; and from them the largest batch and the time of an epoch."""

import contextlib
import gc
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import losses
import main
import main_linear
import models
import utils
from data import cache, images, views
from data.batches import default_workers
from data.images import Picture
from evaluation import features, probes
from tools.checks.disk import gigabytes
from tools.checks.section import Section, logged
from tools.checks.subject import Subject
from training.update import Update
from training.verdicts import Verdicts

PICTURES = 64  # samples that batches are made of, over and over
SECONDS = 6.0  # that the steps of a measurement may take on a CPU
STEPS = 5  # that are timed on a GPU
LARGEST = 8192  # pairs a device beyond which no batch is tried
CARDS = (16, 24, 40, 80)  # GB of GPUs
CONTEXT, MARGIN = 0.6e9, 1.1  # bytes of CUDA itself, and what a step takes over what is kept for its backward pass


class Sample:
    """A few images of a split as the cache would hold them, and how long one takes to decode, in seconds."""

    def __init__(self, path: Callable[[int], str], chosen):
        self.pictures, started = [], time.perf_counter()
        for i in chosen:
            image = images.read_image(path(int(i)))
            levels = cache.shrink(image)
            scales = [(level.shape[1] / image.width, level.shape[0] / image.height) for level in levels]
            self.pictures.append(Picture(*image.size, levels, scales))
        self.decode = (time.perf_counter() - started) / len(self.pictures)

    def time_views(self, dataset, keys) -> float:
        """Seconds in which the views of one image are cut."""
        started = time.perf_counter()
        dataset.__getitems__(keys)
        return (time.perf_counter() - started) / len(keys)


def spaced(total: int) -> np.ndarray:
    return np.unique(np.linspace(0, total - 1, min(PICTURES, total)).astype(np.int64))


class Trial:
    """Steps of a training on a few of its pairs, at a learning rate of 0."""

    def __init__(self, args, model, tokenizer, pairs, folder: Path):
        keep = np.zeros(len(pairs), bool)
        keep[spaced(len(pairs))] = True
        self.pairs = pairs.take(keep)
        self.sample = Sample(self.pairs.path, range(len(self.pairs)))
        tokens = main.make_tokens(args, tokenizer, self.pairs)
        self.data = views.TrainViews(self.sample.pictures, tokens, args.objective, args.image_size, args.seed)
        verdicts = Verdicts(self.pairs.ids, folder, args.on_nonfinite)
        self.update = Update(model.train(), losses.create_loss(args), main.make_optimizer(model, args), args, verdicts)
        self.micro_batches = min(args.update_freq, 2)
        self.device = self.update.device

    def batch(self, size: int) -> dict:
        return self.data.__getitems__([(0, i % len(self.pairs)) for i in range(size)])

    def step(self, size: int, repeats: int = 1) -> float:
        """Seconds of a step of micro-batches of `size` pairs."""
        batches = [self.batch(size)] * self.micro_batches
        wait(self.device)
        started = time.perf_counter()
        for _ in range(repeats):
            self.update(batches, 0, 0, 0.0)
        wait(self.device)
        self.update.verdicts.settle()
        return (time.perf_counter() - started) / repeats

    def peak(self, size: int) -> int | None:
        """The most bytes of the GPU's memory that a step of `size` pairs takes; None if there is too little."""
        torch.cuda.reset_peak_memory_stats(self.device)
        with contextlib.suppress(torch.cuda.OutOfMemoryError):
            self.step(size)
            return torch.cuda.max_memory_allocated(self.device)
        self.update.optimizer.zero_grad(set_to_none=True)  # here the error is gone, whose frames hold tensors
        gc.collect()
        torch.cuda.empty_cache()
        return None

    def kept(self, size: int) -> int:
        """The bytes that autograd keeps for the backward pass of `size` pairs, parameters not counted.

        By torch's fake tensors, which have shapes and no numbers: nothing is computed.
        """
        update, batch, found = self.update, self.batch(size), {}

        def pack(x):
            storage = x.untyped_storage()
            found[storage._cdata] = storage  # held, so that no other gets its place
            return x

        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            own = [mode.from_tensor(p).untyped_storage() for p in update.model.parameters()]
            inputs = update.inputs({name: fake(mode, value) for name, value in batch.items()}, 0, 0)
            hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
            with hooks, utils.autocast(self.device, update.dtype):
                outputs = update.network(**inputs)
            update.loss_function(outputs)
        for storage in own:
            found.pop(storage._cdata, None)
        return sum(storage.nbytes() for storage in found.values())


def fake(mode, value):
    return [fake(mode, one) for one in value] if isinstance(value, list) else mode.from_tensor(value)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe(args, subject: Subject, model, tokenizer, pairs) -> Section:
    """A training's step, on the device of `model`."""
    section = Section("A step")
    with logged(section):
        main.make_batches(args, len(pairs))  # refuses pairs that fill no step
    if model is None:
        section.say("not measured, without a model")
        return section
    with logged(section), tempfile.TemporaryDirectory() as folder, failures(section):
        trial = Trial(args, model, tokenizer, pairs, Path(folder))
        precision = "float32" if trial.update.dtype is None else str(trial.update.dtype)[6:]
        section.say(f"measured on {utils.device_name(trial.device)}, in {precision}")
        seconds = on_gpu(section, args, trial) if trial.device.type == "cuda" else on_cpu(section, args, trial)
        if seconds is not None:
            time_epoch(section, args, subject, trial, len(pairs), seconds * args.update_freq / trial.micro_batches)
        if trial.device.type == "cpu":
            estimate(section, args, trial)
    return section


@contextlib.contextmanager
def failures(section: Section):
    """An error of torch's within the block is a fault: a run would meet it too."""
    try:
        yield
    except (RuntimeError, TypeError, KeyError, IndexError, AttributeError, AssertionError) as error:
        section.fault(f"a step fails: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}")


def on_gpu(section: Section, args, trial: Trial) -> float | None:
    """Measure the memory of a step, and find the largest batch -> a step's seconds, None if it does not fit."""
    device, size = trial.device, args.batch_size
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    while (peak := trial.peak(size)) is None and size > 2:
        size = max(2, size // 2)
    if peak is None:
        section.fault(f"not even --batch-size 2 fits into the {gigabytes(free)} that are free")
        return None
    if size == args.batch_size:
        section.say(f"--batch-size {size} takes {gigabytes(peak)} of the {gigabytes(free)} that are free")
    else:
        section.fault(f"--batch-size {args.batch_size} does not fit into the {gigabytes(free)} that are free")
    largest = largest_batch(trial, size, peak, free)
    times = -(-args.batch_size // largest)
    advice = f", with --update-freq {times} for as large a step" if size < args.batch_size else ""
    section.say(f"the largest --batch-size that fits is about {largest} (found by trying){advice}")
    return trial.step(size, STEPS) if size == args.batch_size else None


def largest_batch(trial: Trial, size: int, peak: int, free: int) -> int:
    """From the memory of `size` pairs and of half as many, a guess; lowered until a step of it runs."""
    half = max(2, size // 2)
    each = (peak - (trial.peak(half) or 0)) / (size - half) if half < size else peak / size
    guess = min(LARGEST, int(size + (0.95 * free - peak) / max(each, 1)))
    while guess > size:
        guess -= guess % 8 if guess >= 16 else 0
        if trial.peak(guess) is not None:
            return max(guess, size)
        guess = int(0.93 * guess)
    return size


def on_cpu(section: Section, args, trial: Trial) -> float:
    """-> a step's seconds: measured with as many pairs as SECONDS allow, and extrapolated along a line."""
    size = few = min(2, args.batch_size)
    trial.step(size)
    seconds = first = trial.step(size)
    while 2 * size <= args.batch_size and 2 * seconds < SECONDS:
        size *= 2
        seconds = trial.step(size)
    if size == args.batch_size:
        return seconds
    sizes = f"{few} to {size}" if size > few else f"{size}"
    section.say(f"steps were measured with {sizes} pairs, and extrapolated to --batch-size {args.batch_size}")
    each = (seconds - first) / (size - few) if size > few else seconds / size
    return seconds + max(0.0, each) * (args.batch_size - size)


def time_epoch(section: Section, args, subject: Subject, trial: Trial, total: int, step: float) -> None:
    """Say the seconds of an epoch on one device: of its steps, or of the loading where that is slower."""
    steps = total // (args.batch_size * args.update_freq)
    if steps == 0:
        return
    workers = default_workers(1) if args.workers is None else max(1, args.workers)
    cached = subject.cached.get("train", False)
    views_ = trial.sample.time_views(trial.data, [(0, i) for i in range(len(trial.pairs))])
    loading = total * (views_ + (0 if cached else trial.sample.decode)) / workers
    epoch = max(steps * step, loading)
    section.say(
        f"an epoch on this one device: about {duration(epoch)} (extrapolated: {steps:,} steps of {step:.3g} s; loading "
        f"takes {duration(loading)} with {workers} workers); {args.epochs} epochs: {duration(args.epochs * epoch)}"
    )
    if loading > 1.2 * steps * step:
        section.note("loading is slower than the steps: more --workers, or a --cache, would help")
    if cached:
        building = total * trial.sample.decode / len(os.sched_getaffinity(0))
        section.say(f"building the cache, if it is not there: about {duration(building)} more, once")
    if args.compile:
        section.say("--compile was left out of the measurement")


def estimate(section: Section, args, trial: Trial) -> None:
    """Say what a step would take of a GPU's memory, from what autograd keeps on the CPU."""
    trial.update.dtype = None if args.amp == "off" else torch.bfloat16
    size = max(4, args.batch_size)
    few, more = trial.kept(size // 2), trial.kept(size)
    each = max(1, (more - few) / (size - size // 2))
    fixed = max(0, more - size * each) + state_bytes(trial.update.model)

    needed = MARGIN * (fixed + args.batch_size * each) + CONTEXT
    sizes = {card: int(((card * 1e9 - CONTEXT) / MARGIN - fixed) / each) for card in CARDS}
    fits = ", ".join(f"{max(0, size - size % (8 if size >= 16 else 1)):,} on {card} GB" for card, size in sizes.items())
    section.say(
        f"a GPU would need about {gigabytes(int(needed))} for --batch-size {args.batch_size} "
        f"(estimated, not measured: there is no GPU here); the largest that fits is about {fits}"
    )


def state_bytes(model) -> int:
    """Weights, gradients and AdamW's two moments."""
    return sum(p.numel() * p.element_size() * (4 if p.requires_grad else 1) for p in model.parameters())


def duration(seconds: float) -> str:
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 86_400:.3g} days"


def describe_features(args, splits: dict, model) -> Section:
    """A probe's pass over the images of its `splits`, {name: Labelled}."""
    section = Section("Features")
    device = next(model.parameters()).device
    dtype = utils.amp_dtype(args.amp, device)
    with logged(section), failures(section):
        probe = probes.named(args.probe)
        data = splits["test"]
        chosen = spaced(len(data))
        started = time.perf_counter()
        pictures = [data[int(i)] for i in chosen]
        decode = (time.perf_counter() - started) / len(chosen)
        dataset = views.WholeImages(pictures, None, args.image_size, main_linear.view_of(args, probe, data))
        batch = dataset.__getitems__(range(min(args.batch_size, len(chosen))))
        norm = models.pixel_statistics(args)
        projected = args.features == "projected"
        few = dataset.__getitems__(range(min(2, len(chosen))))
        features.encode(model, few, norm, device, dtype, projected, probe.flips)
        wait(device)
        started = time.perf_counter()
        features.encode(model, batch, norm, device, dtype, projected, probe.flips)
        wait(device)
        each = (time.perf_counter() - started) / len(batch["order"])
        total = sum(len(splits[name]) for name in probe.splits if splits.get(name) is not None)
        workers = default_workers(1) if args.workers is None else max(1, args.workers)
        loading = total * decode / workers
        section.say(
            f"the features of {total:,} images: about {duration(max(total * each, loading))} on "
            f"{utils.device_name(device)} (extrapolated from {len(batch['order'])}; decoding takes {duration(loading)} "
            f"with {workers} workers)"
        )
        if device.type == "cuda":
            section.say(f"a forward pass takes {gigabytes(torch.cuda.max_memory_allocated(device))} of the GPU")
        else:
            section.say(f"the weights take {gigabytes(state_bytes(model))}; a forward pass keeps nothing more")
    return section
