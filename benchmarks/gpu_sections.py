"""The sections of gpu.py, each in a process of its own: python benchmarks/gpu_sections.py NAME OUT --folder FOLDER

A section notes what it finds in OUT as it goes. Those that compare take the CPU's float64 as the truth, and the CPU's
own float32 and bf16 as the measure of what rounding alone does.
"""

import argparse
import contextlib
import copy
import functools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common  # before torch
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from captions import Padded, made_up
from PIL import Image

from data import augment
import benchmarks.step as slip_style
from data import cache
import datasets
from evaluation import features as probe
from data import images
from training import signals
import losses
import main as training_script
import models
import options
from evaluation import retrieval
from data.tokens import SPECIAL_TOKENS
import utils
from data import views
from training.update import Update
from training.verdicts import Verdicts
from data.batches import model_inputs, open_loader
from tools.make_phantoms import make_phantoms

CPU = torch.device("cpu")
EMBEDDINGS = ("image_embed", "text_embed", "aug1_embed", "aug2_embed")
SMALL = "--arch resnet10t --text-model tiny --ssl-mlp-dim 128 --ssl-emb-dim 32".split()


class Section:
    """What a section was given, and what it found."""

    def __init__(self, args):
        self.out, self.folder, self.quick = Path(args.out), Path(args.folder), args.quick
        self.gpu = args.device == "cuda"
        self.device = torch.device("cuda", 0) if self.gpu else CPU
        self.found = {"status": None, "results": {}, "checks": {}}
        if self.gpu:
            torch.cuda.set_device(self.device)
        else:
            torch.set_num_threads(1)

    def note(self, label: str, value) -> None:
        """Keep a result; of several repeats their median and spread."""
        if isinstance(value, list):
            value = {"median": statistics.median(value), "least": min(value), "most": max(value), "repeats": len(value)}
        self.found["results"][label] = value
        self.write()

    def check(self, label: str, good) -> None:
        self.found["checks"][label] = bool(good)
        self.write()

    def write(self) -> None:
        temporary = self.out.with_suffix(".new")
        temporary.write_text(json.dumps(self.found))
        os.replace(temporary, self.out)

    def wait(self) -> None:
        """Until the device has done all that is queued."""
        if self.gpu:
            torch.cuda.synchronize()

    def choose(self, full, quick, small):
        """A size for a GPU, with --quick, and for a rehearsal on the CPU."""
        return (quick if self.quick else full) if self.gpu else small


class Training:
    """A model, its optimiser's step and batches, made as main.py makes them."""

    def __init__(self, section: Section, *words, device=None, dtype=None, wrap=lambda model: model):
        self.device = device or section.device
        given = [
            "--root",
            section.folder / "roco",
            "--text-model",
            section.folder / "vocab.txt",
            "--pretrained",
            "none",
        ]
        if not section.gpu:
            given += [*SMALL, "--image-size", 32, "--batch-size", 8]
        args = options.parse(options.train_parser(), [str(word) for word in (*given, *words)])
        models.settle_defaults(args)
        self.args, self.norm = args, models.mean_std(args.normalize, args.arch)
        self.dtype = dtype or utils.amp_dtype(args.amp, self.device)
        self.pairs = datasets.read_pairs(args.root, "train")
        torch.manual_seed(0)
        self.tokenizer, _ = training_script.make_tokenizer(args, None, self.pairs)
        self.tokens = training_script.make_tokens(args, self.tokenizer, self.pairs)
        self.files = images.Files(self.pairs.path, len(self.pairs))
        self.model = training_script.make_model(args, None, None, self.tokenizer, self.device).train()
        loss = losses.create_loss(args)
        optimizer = training_script.make_optimizer(self.model, args)
        verdicts = Verdicts(self.pairs.ids, Path(args.root), args.on_nonfinite)
        self.update = Update(wrap(self.model), loss, optimizer, args, verdicts)
        if dtype is not None:
            self.update.dtype = dtype
            self.update.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)

    def batches(self, count: int, tokens=None) -> list[dict]:
        """Packed batches on the host."""
        data = views.TrainViews(self.files, tokens or self.tokens, "slip", self.args.image_size, 0)
        size = self.args.batch_size
        keys = [[(0, i % len(self.pairs)) for i in range(n * size, n * size + size)] for n in range(count)]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return list(pool.map(data.__getitems__, keys))

    def run(self, batches: list[dict], steps: int = 1) -> None:
        for number in range(steps):
            chosen = [batches[(number + k) % len(batches)] for k in range(self.args.update_freq)]
            self.update(chosen, 0, number, 1e-5)


def move(batch: dict, device) -> dict:
    def one(value):
        return [x.to(device) for x in value] if isinstance(value, list) else value.to(device)

    return {name: one(value) for name, value in batch.items()}


def pin(batch: dict) -> dict:
    return {
        name: [x.pin_memory() for x in value] if isinstance(value, list) else value.pin_memory()
        for name, value in batch.items()
    }


def tf32(on: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "drop_prob"):  # stochastic depth
            module.drop_prob = 0.0
    return model


def relative(found, reference) -> float:
    """Norm of the difference over the norm; tensors, or dicts of them taken together."""
    if torch.is_tensor(found):
        found, reference = {"": found}, {"": reference}
    pairs = [(found[name].detach().cpu().double(), reference[name].detach().cpu().double()) for name in reference]
    return (sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs)).sqrt().item()


# Data


def data(section: Section) -> None:
    """A ROCO tree of phantoms at 0.7 megapixels, many names for few files; one of small files; a vocabulary.

    All of them stay in the page cache: the loops measure decoding, not a disk.
    """
    few, many = section.choose(24, 24, 4), section.choose(4000, 2000, 64)
    made = section.folder / "phantoms"
    make_phantoms(made, seed=0, pairs=few, validation_pairs=2, calc=(2, 2), mass=(2, 2), workers=1)
    sources = []
    for number, path in enumerate(sorted((made / "roco" / "train").rglob("*.jpg"))):
        image = Image.open(path).convert("L")
        scale = (0.7e6 / (image.width * image.height)) ** 0.5
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.BICUBIC)
        pixels = np.stack([np.asarray(image)] * 3, axis=-1)
        if number == 0:  # one of 24: ROCO has about one coloured in twenty
            pixels[..., 0] = 255 - pixels[..., 0] // 2
        sources.append(section.folder / f"{number}.jpg")
        Image.fromarray(pixels).save(sources[-1], quality=90)
    small = []
    for number, path in enumerate(sources):
        small.append(section.folder / f"small_{number}.jpg")
        Image.open(path).resize((160, 128)).save(small[-1], quality=90)
    write_tree(section.folder / "roco", sources, many, 64)
    write_tree(section.folder / "small", small, section.choose(640, 640, 40), 32)
    words = sorted({word for caption in made_up(2000) for word in caption.split()})
    letters = sorted({letter for word in words for letter in word})
    pieces = [word if len(word) < 6 else word[:3] for word in words] + [f"##{w[3:]}" for w in words if len(w) >= 6]
    entries = dict.fromkeys([*SPECIAL_TOKENS, *letters, *(f"##{one}" for one in letters), *pieces])
    (section.folder / "vocab.txt").write_text("\n".join(entries) + "\n")
    section.note("files of 0.7 megapixels, names", f"{few}, {many}")
    section.note("mean bytes of a file", statistics.mean(path.stat().st_size for path in sources))


def write_tree(root: Path, files: list[Path], train: int, validation: int) -> None:
    captions = made_up(train + validation)
    for split, numbers in (("train", range(train)), ("validation", range(train, train + validation))):
        folder = root / split / "radiology" / "images"
        folder.mkdir(parents=True)
        for number in numbers:
            os.link(files[number % len(files)], folder / f"ROCO_{number:05d}.jpg")
        lines = [f"ROCO_{number:05d}\t {captions[number]}\n" for number in numbers]
        (folder.parent / "captions.txt").write_text("".join(lines))


# Agreement with the CPU


def one_pass(model, inputs: dict, device, dtype, pull: dict) -> tuple[dict, dict]:
    """-> the embeddings, and the gradient of their products with `pull`."""
    model = copy.deepcopy(model).to(device)
    with utils.autocast(device, dtype):
        outputs = model(**move(inputs, device))
    found = {name: utils.full_precision(outputs[name]) for name in EMBEDDINGS}
    sum((found[name] * pull[name].to(found[name])).sum() for name in EMBEDDINGS).backward()
    gradient = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return ({name: value.detach() for name, value in found.items()}, gradient)


def encoders(section: Section) -> None:
    """Embeddings of the whole model with each encoder, in train mode without dropout, and their gradient.

    Random weights give all images nearly one embedding. The losses, and the SimCLR head's batch norms, would make the
    rounding of their differences into most of the gradient: the losses are compared by themselves, the norms are in
    eval mode.
    """
    tf32(False)
    for arch in ("medclip_vit", "medclip_resnet", "vit_small_patch16_224"):
        size = 224 if section.gpu or arch == "medclip_vit" else 64
        more = ["--arch", arch, "--image-size", size, "--batch-size", section.choose(8, 4, 2)]
        training = Training(section, *more, device=CPU)
        model, (batch,) = without_dropout(training.model), training.batches(1)
        model.ssl_head.eval()
        inputs = model_inputs(batch, *training.norm, CPU)
        double = {name: x.double() if torch.is_tensor(x) and x.is_floating_point() else x for name, x in inputs.items()}
        torch.manual_seed(1)
        rows = training.args.batch_size
        pull = {name: torch.randn(rows, model.ssl_head[-1].out_features) for name in EMBEDDINGS[2:]}
        pull |= {name: torch.randn(rows, 512) for name in EMBEDDINGS[:2]}
        truth = one_pass(copy.deepcopy(model).double(), double, CPU, None, pull)
        for dtype, floor in ((None, 1e-5), (torch.bfloat16, 1e-2)):
            kind = "float32" if dtype is None else "bf16"
            errors = {}
            for where, device in (("CPU", CPU), ("device", section.device)):
                found = one_pass(model, inputs, device, dtype, pull)
                errors[where] = [relative(one, other) for one, other in zip(found, truth, strict=True)]
                section.note(f"{arch}, {kind}, {where}: error of embeddings", errors[where][0])
                section.note(f"{arch}, {kind}, {where}: error of the gradient", errors[where][1])
            for what, mine, cpu in zip(("embeddings", "gradient"), errors["device"], errors["CPU"], strict=True):
                bar = max(floor, 3 * cpu)
                section.check(f"{arch}, {kind}: {what} within {bar:.1e} of float64's", mine <= bar)
    losses_(section)


def losses_(section: Section) -> None:
    """The losses and their gradient, whole and in blocks."""
    torch.manual_seed(0)
    given = {name: torch.randn(256, 128) for name in EMBEDDINGS}

    def found(device, dtype):
        inputs = {name: x.to(device, dtype, copy=True).requires_grad_() for name, x in given.items()}
        parts = losses.SLIPLoss()({**inputs, "logit_scale": torch.tensor(14.0, device=device, dtype=dtype)})
        parts["loss"].backward()
        return {name: x.grad for name, x in inputs.items()}, parts["loss"]

    truth = found(CPU, torch.float64)
    for kind, limit in (("whole", losses.BLOCK_FROM), ("in blocks", 1)):
        with mock.patch.object(losses, "BLOCK_FROM", limit), mock.patch.object(losses, "BLOCK", 64):
            mine = found(section.device, torch.float32)
        errors = [relative(one, other) for one, other in zip(mine, truth, strict=True)]
        section.note(f"SLIP loss, {kind}: error of its gradient", errors[0])
        section.note(f"SLIP loss, {kind}: error", errors[1])
        section.check(f"the loss {kind} and its gradient are within 1e-5 of float64's", max(errors) < 1e-5)


def views_(section: Section) -> None:
    """The views of a batch against the CPU's, in grey levels."""
    training = Training(section, *SMALL, "--image-size", section.choose(224, 224, 64), "--batch-size", 24)
    (batch,) = training.batches(1)
    scale = 255 * torch.tensor(training.norm[1])[:, None, None]
    reference = augment.make_views(batch, *training.norm, CPU)
    for on in (False, True):
        tf32(on)
        made = augment.make_views(batch, *training.norm, section.device)
        errors = torch.stack([(one.cpu() - other).abs() * scale for one, other in zip(made, reference, strict=True)])
        kind = "with TF32 convolutions, as is torch's default" if on else "without TF32"
        section.note(f"mean and largest difference {kind}", f"{errors.mean():.1e}, {errors.max():.1e} grey levels")
        section.check(f"differences {kind} are below {0.5 if on else 0.01}", errors.max() < (0.5 if on else 0.01))


def features(section: Section) -> None:
    """The probe's features against the CPU's."""
    tf32(False)
    paths = sorted(str(path) for path in (section.folder / "roco" / "train").rglob("*.jpg"))[
        : section.choose(48, 24, 6)
    ]
    cases = datasets.Labelled(paths, np.arange(len(paths)) % 2, ["one", "two"], None, paths, "squash")
    arch = section.choose("medclip_vit", "medclip_vit", "resnet10t")
    words = ["--arch", arch, "--pretrained", "none", "--features", "pooled", "--batch-size", "16", "--workers", "2"]
    args = options.parse(options.linear_parser(), words)
    args.image_size, args.normalize = section.choose(224, 224, 64), models.default_normalize(arch, "none")
    torch.manual_seed(0)
    model = models.create_model(arch, None, image_size=args.image_size).requires_grad_(False).eval()
    found = {}
    with signals.StopRequest() as stop:
        for where, device in (("CPU", CPU), ("device", section.device)):
            for kind, dtype in (("float32", None), ("bf16", torch.bfloat16)):
                folder = section.folder / "features" / where / kind
                found[where, kind] = probe.extract(
                    model.to(device), cases, cases, args, device, dtype, folder, stop, flips=True
                )
    for kind, where, bar in (("float32", "device", 1e-4), ("bf16", "CPU", None), ("bf16", "device", 2e-2)):
        error = relative(found[where, kind], found["CPU", "float32"])
        section.note(f"{where}, {kind}, against the CPU's float32", error)
        if bar:
            section.check(f"{kind} features are within {bar}", error <= bar)


# fp16


def weights(training: Training) -> dict:
    return {name: parameter.detach().clone() for name, parameter in training.model.named_parameters()}


def overflow(section: Section) -> None:
    """One step whose gradients overflow: left out, the scale is lowered, and training goes on."""
    for freq in (1, 2):
        training = Training(section, "--batch-size", 8, "--update-freq", freq, dtype=torch.float16)
        batches = [move(batch, section.device) for batch in training.batches(2)]
        kind = "gradient cache" if freq > 1 else "plain"
        training.update.scaler.scale(torch.zeros((), device=section.device))  # makes the scale
        training.update.scaler.update(2.0**10)
        training.run(batches, 2)
        before = weights(training)
        training.update.scaler.update(2.0**80)
        training.run(batches)
        after = weights(training)
        section.check(f"{kind}: the step is left out", all(torch.equal(after[name], before[name]) for name in before))
        section.check(f"{kind}: the scale is halved", training.update.scaler.get_scale() == 2.0**79)
        training.update.scaler.update(2.0**10)
        training.run(batches, 3)
        training.update.verdicts.settle()
        moved = weights(training)
        section.check(f"{kind}: training goes on", any(not torch.equal(moved[name], after[name]) for name in before))
        section.check(f"{kind}: all weights are finite", all(x.isfinite().all() for x in moved.values()))
        section.check(f"{kind}: the scale stays", training.update.scaler.get_scale() == 2.0**10)
        section.note(f"{kind}: means of the steps", json.dumps(training.update.means()))


# A process group of one


def group(section: Section) -> None:
    """What several processes do, in a group of one: gather, DistributedDataParallel, synchronised batch norms."""
    tf32(False)
    backend = "nccl" if section.gpu else "gloo"
    dist.init_process_group(backend, init_method=f"file://{section.folder}/group", rank=0, world_size=1)
    # A group of one skips its collectives unless it is told that it is larger.
    larger = functools.partial(mock.patch.dict, losses.gather.__globals__, world_size=lambda: 2)

    def loss_and_gradients():
        torch.manual_seed(0)
        given = {name: torch.randn(32, 64, device=section.device, requires_grad=True) for name in EMBEDDINGS}
        loss = losses.SLIPLoss()({**given, "logit_scale": torch.tensor(14.0, device=section.device)})["loss"]
        loss.backward()
        return {"loss": loss, **{name: x.grad for name, x in given.items()}}

    alone = loss_and_gradients()
    with larger():
        gathered = loss_and_gradients()
    error = relative(gathered, alone)
    section.note(f"loss and gradients through {backend}'s gather, relative", error)
    section.check("the gather and its backward change nothing", error < 1e-6)

    if section.gpu:
        synchronised_norm(section)

    more = [*SMALL, "--amp", "off", "--update-freq", 2, "--image-size", 64, "--batch-size", 8]
    found = []
    for wrap in (lambda model: model, lambda model: training_script.distribute(model, section.device)):
        training = Training(section, *more, wrap=wrap)
        without_dropout(training.model)
        training.run([move(batch, section.device) for batch in training.batches(2)], 3)
        training.update.verdicts.settle()
        found.append(weights(training))
    norms = {type(module).__name__ for module in training.model.modules() if "Norm" in type(module).__name__}
    section.note("norms under DistributedDataParallel", ", ".join(sorted(norms)))
    error = relative(found[1], found[0])
    section.note("weights after 3 steps with it against those without, relative", error)
    section.check("DistributedDataParallel changes no step", error < 1e-4)

    numbers = torch.arange(4.0, device=section.device)
    dist.all_reduce(numbers)
    boxes = [None]
    dist.all_gather_object(boxes, {"rank": 0})
    dist.broadcast_object_list(boxes, src=0)
    section.check("objects and numbers come back", boxes == [{"rank": 0}] and numbers.tolist() == [0, 1, 2, 3])
    with mock.patch.object(signals, "world_size", lambda: 2):  # its own group is on the host: gloo
        stop = signals.StopRequest()
        with stop:
            section.check("no signal has come", [stop.check(), stop.check()] == [[], []])
    dist.destroy_process_group()


def synchronised_norm(section: Section) -> None:
    """The kernels of torch's SyncBatchNorm, which it leaves out in a group of one, against batch_norm's."""
    from torch.nn.modules._functions import SyncBatchNorm

    found = []
    for synchronised in (False, True):
        torch.manual_seed(0)
        x = torch.randn(8, 16, 12, 12, device=section.device).to(memory_format=torch.channels_last).requires_grad_()
        scale, shift = (torch.randn(16, device=section.device, requires_grad=True) for _ in range(2))
        running = torch.zeros(16, device=section.device), torch.ones(16, device=section.device)
        if synchronised:
            y = SyncBatchNorm.apply(x, scale, shift, *running, 1e-5, 0.1, dist.group.WORLD, 1)
        else:
            y = F.batch_norm(x, *running, scale, shift, True, 0.1, 1e-5)
        y.square().mean().backward()
        names = ("y", "dx", "dscale", "dshift", "mean", "variance")
        found.append(dict(zip(names, (y, x.grad, scale.grad, shift.grad, *running), strict=True)))
    error = relative(found[1], found[0])
    section.note("SyncBatchNorm's output, gradients and statistics, relative", error)
    section.check("SyncBatchNorm does what batch norm does", error < 1e-5)


# Runs that are killed

DETERMINISTIC = """
import os, runpy, sys
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
import torch
torch.use_deterministic_algorithms(True, warn_only=True)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Runs:
    """main.py as a process, each in a folder of its own."""

    def __init__(self, section: Section):
        self.section = section
        size, batch = section.choose((96, 32), (96, 32), (32, 8))
        fixed = "--pretrained none --lr 1e-3 --workers 2 --save-every 2 --print-freq 1 --cache none --eval-freq 9"
        self.words = [
            *SMALL, *fixed.split(), "--root", section.folder / "small", "--image-size", size, "--batch-size", batch,
            "--epochs", section.choose(3, 3, 2), "--device", section.device.type,
        ]  # fmt: skip

    def start(self, name: str, deterministic: bool) -> subprocess.Popen:
        script = str(common.REPOSITORY / "main.py")
        start = [sys.executable, script]
        if deterministic:
            start = [sys.executable, "-c", f"import sys; sys.argv[0] = {script!r}{DETERMINISTIC}"]
        words = [*start, *self.words, "--output-dir", self.section.folder / name]
        with open(self.section.folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                [str(word) for word in words], stdout=log, stderr=subprocess.STDOUT, cwd=common.REPOSITORY
            )

    def disturb(self, name: str, process: subprocess.Popen, number: signal.Signals) -> None:
        """Send the signal as soon as the run has saved twice. Raises RuntimeError if it ends before."""
        while not (self.section.folder / name / "checkpoint_previous.pt").exists():
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended before it was disturbed ({process.returncode}): {self.log(name)}")
            time.sleep(0.002)
        process.send_signal(number)

    def log(self, name: str) -> str:
        return (self.section.folder / f"{name}.log").read_text(errors="replace")[-3000:]

    def weights(self, name: str) -> dict:
        return torch.load(self.section.folder / name / "checkpoint.pt", weights_only=True)["model"]


def runs(section: Section) -> None:
    """main.py killed by SIGKILL and asked to leave by SIGTERM, gone on with, against runs that nothing disturbed.

    Once as it is, once with torch's deterministic algorithms.
    """
    make = Runs(section)
    kinds = {"": False, "deterministic ": True} if section.gpu else {"deterministic ": True}
    started = {
        (kind, how): make.start(f"{kind}{how}", on)
        for kind, on in kinds.items()
        for how in ("whole", "SIGKILL", "SIGTERM")
    }
    for (kind, how), process in started.items():
        if how != "whole":
            make.disturb(f"{kind}{how}", process, getattr(signal, how))
    codes = {key: process.wait() for key, process in started.items()}
    for (kind, how), code in codes.items():
        expected = {"whole": 0, "SIGKILL": -signal.SIGKILL, "SIGTERM": utils.EXIT_INTERRUPTED}[how]
        section.check(f"{kind}{how}: exit code {expected}, not {code}" if code != expected else f"{kind}{how}: exit "
                      f"code {code}", code == expected)  # fmt: skip
    again = {key: make.start("".join(key), kinds[key[0]]) for key in started if key[1] != "whole"}
    for (kind, how), process in again.items():
        code = process.wait()
        section.check(f"{kind}{how}: the same command goes on and ends with 0", code == 0)
        if code:
            section.note(f"{kind}{how}: log", make.log(f"{kind}{how}"))
            continue
        found, whole = make.weights(f"{kind}{how}"), make.weights(f"{kind}whole")
        same = all(torch.equal(found[name], whole[name]) for name in whole)
        section.note(f"{kind}{how}, gone on with: same weights bit for bit", same)
        section.note(f"{kind}{how}, gone on with: relative difference", relative(found, whole))
        if kind:
            section.check(f"{kind}{how}: the weights of an undisturbed run", same)
    if section.gpu:
        both = make.weights("whole"), make.weights("deterministic whole")
        section.note("deterministic algorithms against others, relative", relative(*both))
    log = (section.folder / "deterministic whole.log").read_text(errors="replace")
    lacking = sorted({line.strip()[:160] for line in log.splitlines() if "not have a deterministic" in line})
    section.note("operations without a deterministic form", "; ".join(lacking) or "none")


# Rates


def step(section: Section) -> None:
    """A step, ours against a SLIP-style one, and what it is made of; batches are on the device."""
    repeats, steps = section.choose(7, 3, 2), section.choose(8, 4, 1)
    training = Training(section)
    device, args, dtype = section.device, training.args, training.dtype
    (host,) = training.batches(1)
    ours, pinned = move(host, device), pin(host) if section.gpu else host
    chunked = {}
    for count in section.choose((1, 2, 4), (1, 2), (1,)):
        with mock.patch("data.tokens.CHUNKS", count):
            chunked[count] = move(training.batches(1)[0], device)
    (theirs,) = training.batches(1, Padded(training.tokenizer, training.pairs.captions, 77))
    theirs = move(theirs, device)
    theirs["views"] = augment.make_views(theirs, *training.norm, device)
    other = Training(section).model
    slip_dtype = torch.float16 if section.gpu else dtype
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-5)
    scaler = torch.amp.GradScaler(device.type, enabled=slip_dtype == torch.float16)
    loss = losses.SLIPLoss()

    def repeat(function):
        def side():
            for _ in range(steps):
                function()
            section.wait()

        return side

    def one_forward_a_view():
        with mock.patch.object(models, "queued", lambda _: False):
            training.run([ours])

    sides = {
        "a SLIP-style step": lambda: slip_style.slip_step(other, theirs, optimizer, loss, device, slip_dtype, scaler),
        "our step": lambda: training.run([ours]),
        "our step from pinned memory": lambda: training.run([pinned]),
        "our views": lambda: augment.make_views(ours, *training.norm, device),
        "our step, one forward a view": one_forward_a_view,
        **{f"our step, {n} chunks of captions": lambda one=one: training.run([one]) for n, one in chunked.items()},
    }
    seconds = common.in_turn({name: repeat(function) for name, function in sides.items()}, repeats, warmup=2)
    each = {name: [one / steps for one in values] for name, values in seconds.items()}
    sizes = f"{args.arch}, {Path(args.text_model).name}, {args.image_size}, {args.batch_size}"
    section.note("encoder, text, pixels, batch, types", f"{sizes}, ours {dtype}, SLIP's {slip_dtype}")
    for name, values in each.items():
        section.note(f"{name}, ms", [1e3 * one for one in values])
    slip, mine = each["a SLIP-style step"], each["our step"]
    section.note("our step, times as fast as the SLIP-style one", common.ratios(slip, mine))
    section.note("views' share of our step", [a / b for a, b in zip(each["our views"], mine, strict=True)])
    section.note("all views in one forward, times as fast as one a view",
                 common.ratios(each["our step, one forward a view"], mine))  # fmt: skip

    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        training.run([ours])
    flops = counter.get_total_flops()
    product = slip_style.matrix_rate(device, dtype)
    section.note("FLOP of a step", float(flops))
    section.note("FLOP/s of a matrix product", product)
    section.note("FLOP/s of our step, share of the matrix product's", [flops / one / product for one in mine])
    if section.gpu:
        torch.cuda.reset_peak_memory_stats()
        training.run([ours])
        section.note("peak memory of a step, GB", torch.cuda.max_memory_allocated() / 1e9)
        waits(section, training, pinned)


def waits(section: Section, training: Training, batch: dict) -> None:
    """Whether the host waits for the device within a step."""
    training.run([batch], 3)
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        training.run([batch], 3)
    torch.cuda.set_sync_debug_mode("default")
    lines = [f"{one.filename}:{one.lineno}" for one in found if "synchroniz" in str(one.message)]
    section.note("where a step waits for the device", ", ".join(sorted(set(lines))) or "nowhere")
    section.check("a step does not wait for the device", not lines)


def loop(section: Section) -> None:
    """The training loop from files and from the cache, by loader processes, against batches that are on the device."""
    windows, steps = section.choose((5, 16), (3, 6), (2, 2))
    training = Training(section)
    batch_size = training.args.batch_size
    kept = cache.Cache(section.folder / "cache", training.pairs.path, len(training.pairs))
    missing = kept.open()
    utils.make_folder(kept.folder)
    began = time.perf_counter()
    kept.build(missing)
    section.note("cache built, images/s", len(training.pairs) / (time.perf_counter() - began))
    kept.open()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # which are gray is then known, as after an epoch
        list(pool.map(training.files.__getitem__, range(len(training.pairs))))

    def rates(batches, warm: int) -> list[float]:
        """Samples/s of several windows."""
        found = []
        iterator = iter(batches)
        for _ in range(warm):
            training.run([next(iterator)])
        for _ in range(windows):
            section.wait()
            began = time.perf_counter()
            for _ in range(steps):
                training.run([next(iterator)])
            section.wait()
            found.append(batch_size * steps / (time.perf_counter() - began))
        return found

    def on_device():
        while True:
            yield from resident

    resident = [move(batch, section.device) for batch in training.batches(4)]
    best = rates(on_device(), 4)
    section.note("on the device, samples/s", best)
    rng = np.random.default_rng(0)
    for workers in section.choose((4, 8, 16), (4, 16), (1, 2)):
        for name, source in (("files", training.files), ("cache", kept)):
            warm = 2 * workers + 4  # what the workers have ready
            dataset = views.TrainViews(source, training.tokens, "slip", training.args.image_size, 0)
            order = rng.integers(len(training.pairs), size=(warm + windows * steps, batch_size))
            keys = [[(1, int(i)) for i in row] for row in order]
            with open_loader(dataset, keys, workers, section.device) as made:
                found = rates(made, warm)
            section.note(f"{name}, {workers} workers, samples/s", found)
            middle = statistics.median(best)
            section.note(f"{name}, {workers} workers, share of the rate on the device", [one / middle for one in found])
    section.note("on the device at the end, samples/s", rates(on_device(), 4))


def compile_(section: Section) -> None:
    """--compile: what it gains, what it costs, and whether it compiles again."""
    from torch._dynamo.utils import counters

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(section.folder / "inductor")
    repeats, steps = section.choose(5, 3, 2), section.choose(6, 4, 1)
    plain = Training(section)
    with contextlib.ExitStack() as stack:
        if not section.gpu:  # inductor takes minutes there
            partial = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
            stack.enter_context(mock.patch.object(torch.nn.Module, "compile", partial))
        fast = Training(section, "--compile")
    batches = [move(batch, section.device) for batch in plain.batches(4)]
    whole = views.WholeImages(fast.files, fast.tokens, fast.args.image_size, "center")
    validation = [move(whole.__getitems__(list(range(n))), section.device) for n in (fast.args.batch_size, 5)]

    def graphs() -> int:
        return counters["stats"]["unique_graphs"]

    def evaluate():
        with torch.no_grad():
            total = sum(len(one["order"]) for one in validation)
            split = retrieval.Validation(range(total), validation, None)
            list(retrieval.outputs_of(fast.model, split, fast.args, None))
        fast.model.train()
        section.wait()

    def seconds(function) -> float:
        began = time.perf_counter()
        function()
        section.wait()
        return time.perf_counter() - began

    section.note("first step, s", seconds(lambda: fast.run(batches)))
    first = graphs()
    section.note("graphs of the first step", first)
    section.note("the next three steps, other captions, s", seconds(lambda: fast.run(batches[1:], 3)))
    section.note("compiled again in them", graphs() - first)

    def side(training):
        training.run(batches, steps)
        section.wait()

    times = common.in_turn({"plain": lambda: side(plain), "compiled": lambda: side(fast)}, repeats)
    for name, values in times.items():
        section.note(f"{name} step, ms", [1e3 * one / steps for one in values])
    section.note("compiled, times as fast", common.ratios(times["plain"], times["compiled"]))
    before = graphs()
    section.note("first evaluation, s", seconds(evaluate))
    section.note("compiled again in it", graphs() - before)
    before = graphs()
    fast.run(batches, 4)
    evaluate()
    section.note("compiled again in a second epoch and evaluation", graphs() - before)
    section.check("nothing is compiled again after the first epoch", graphs() == before)
    section.note("graph breaks", sum(counters["graph_break"].values()))


SECTIONS = {
    "data": data, "views": views_, "encoders": encoders, "features": features, "overflow": overflow, "group": group,
    "runs": runs, "step": step, "loop": loop, "compile": compile_,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SECTIONS)
    parser.add_argument("out")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--folder", required=True)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    with contextlib.suppress(AttributeError):  # Linux: end with gpu.py
        torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)
    os.environ["HF_HUB_OFFLINE"] = "1"
    section = Section(args)
    try:
        SECTIONS[args.name](section)
        section.found["status"] = "passed" if all(section.found["checks"].values()) else "failed"
    except (Exception, SystemExit):
        traceback.print_exc()
        section.found |= {"status": "error", "traceback": traceback.format_exc()}
    section.write()


if __name__ == "__main__":
    main()
