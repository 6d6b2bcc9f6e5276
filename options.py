"""Every command-line argument of the four scripts; imports no torch, so that --help and a wrong flag answer at once."""

import argparse
import os
import sys
from pathlib import Path
from typing import NamedTuple

# OpenMP and tokenizers read these when they are loaded. Threads that spin while they wait take the cores from the
# loader's workers: on two busy cores a step was measured to take 50 times longer.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SLIP_MODELS = {  # facebookresearch/SLIP's --model names, method_size
    "VITS16": "vit_small_mocov3_patch16_224",
    "VITB16": "vit_base_patch16_224",
    "VITL16": "vit_large_patch16_224",
}
BIO_CLINICAL_BERT = "emilyalsentzer/Bio_ClinicalBERT"
PROBES = {  # --probe: the subclass of evaluation.probes.Probe
    "logistic": "evaluation.probes:Logistic",
    "sgd": "evaluation.probes:SGD",
    "medslip": "evaluation.probes:PublishedRecipe",
    "knn": "evaluation.probes:Neighbours",
    "zeroshot": "evaluation.zeroshot:ZeroShot",
}
PROBE_FLAGS = {"sgd": ("epochs", "lr", "momentum", "wd"), "zeroshot": ("text_model",)}  # for these probes alone


class Objective(NamedTuple):
    """What main.py trains with, and what that needs."""

    loss: str  # "module:class", imported when it is used
    text: bool  # captions, each with a view of its image: a text tower
    views: bool  # two views of each image for SimCLR, and their head
    flags: tuple[str, ...] = ()  # the arguments that the loss is made with, in its order


OBJECTIVES = {  # docs/EXTENDING.md adds one
    "slip": Objective("losses:SLIPLoss", text=True, views=True, flags=("ssl_temp", "ssl_scale")),
    "clip": Objective("losses:CLIPLoss", text=True, views=False),
    "simclr": Objective("losses:SimCLRLoss", text=False, views=True, flags=("ssl_temp",)),
}


class Parser(argparse.ArgumentParser):
    """Takes --job_dir as well as --job-dir; an error is one line and exit code 2."""

    def parse_known_args(self, args=None, namespace=None):
        words = []
        for word in sys.argv[1:] if args is None else args:
            name, equals, value = word.partition("=")
            words.append(name.replace("_", "-") + equals + value if name.startswith("--") else word)
        return super().parse_known_args(words, namespace)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return int(text)


def not_negative(text):
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return int(text)


def number(text):
    """A finite float, 0 or more."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of 0 or more")
    return value


def interval(text):
    """ "500" steps, or "90s", "15m", "2h" -> (steps, seconds), one of them None."""
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    if unit is None:
        return positive(text), None
    return None, unit * number(text[:-1])


for function, name in (
    (interval, "number of steps, or time such as 90s, 15m, 2h"),
    (positive, "whole number"),
    (not_negative, "whole number"),
    (number, "number"),
):
    function.__name__ = name  # argparse shows it: "invalid whole number value"


def add_data(parser, dataset, cache):
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", default=dataset, help="a name in the catalog (default: %(default)s)")
    group.add_argument("--catalog", default=str(Path(__file__).with_name("dataset_catalog.json")), metavar="FILE")
    group.add_argument(
        "--root", default=None, metavar="FOLDER", help="where the data lies, instead of the catalog's path"
    )
    group.add_argument(
        "--image-size", type=positive, default=None, metavar="PIXELS", help="default: the checkpoint's, or 224"
    )
    group.add_argument(
        "--cache",
        default=cache,
        metavar="auto|none|FOLDER",
        help="keep decoded pictures: beside the data or in the user's cache folder if it fits the disk, nowhere, or "
        "in FOLDER (default: %(default)s)",
    )
    group.add_argument(
        "--skip-broken",
        action="store_true",
        help="leave out images that cannot be read, after naming them in a file (default: an error)",
    )


def add_model(parser):
    group = parser.add_argument_group("model")
    group.add_argument(
        "-a",
        "--arch",
        default=None,
        help="medclip_vit, medclip_resnet or any timm name (default: medclip_vit, or the checkpoint's)",
    )
    group.add_argument(
        "--pretrained",
        default=None,
        metavar="medclip|timm|none|PATH",
        help="initial weights: MedCLIP's (downloaded), the published ones of timm and Hugging Face, a file or folder",
    )
    group.add_argument(
        "--normalize",
        choices=("medclip", "imagenet", "timm"),
        default=None,
        help="mean and spread (default: the checkpoint's; else medclip for medclip_*, timm with its weights, imagenet)",
    )


def add_system(parser):
    group = parser.add_argument_group("system")
    group.add_argument("--output-dir", default=None, metavar="FOLDER")
    group.add_argument(
        "-j",
        "--workers",
        type=not_negative,
        default=None,
        help="loader processes a device (default: cores shared out, 8 at most)",
    )
    group.add_argument("-p", "--print-freq", type=positive, default=10, metavar="STEPS")
    group.add_argument("--seed", type=not_negative, default=0)
    group.add_argument(
        "--save-every",
        type=interval,
        default="15m",
        metavar="STEPS|TIME",
        help="save in between too: 500 (steps), 90s, 15m, 2h (default: %(default)s)",
    )
    group.add_argument("--device", default=None, help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    group.add_argument(
        "--amp", choices=("bf16", "fp16", "off"), default=None, help="mixed precision (default: the device's best)"
    )
    group.add_argument("--disable-amp", dest="amp", action="store_const", const="off", help="the same as --amp off")
    group.add_argument("--compile", action="store_true", help="torch.compile the encoders")
    group.add_argument("--dist-url", default="env://")
    group.add_argument(
        "--dist-backend", choices=("nccl", "gloo"), default=None, help="default: nccl on GPUs, gloo on CPUs"
    )


def train_parser() -> Parser:
    """The arguments of main.py."""
    parser = Parser(
        prog="main.py",
        description="Fine-tune a MedCLIP or timm encoder on image-caption pairs (CLIP + SimCLR).",
        allow_abbrev=False,
    )
    add_data(parser, dataset="roco", cache="auto")
    group = parser.add_argument_group("captions")
    group.add_argument(
        "--metadata",
        default=None,
        metavar="FILE",
        help="a file of '<id> <caption>' lines to train on, instead of captions.txt",
    )
    group.add_argument(
        "--subset",
        choices=("all", "mammo", "mammo+xray"),
        default="all",
        help="pairs chosen by patterns over captions and keywords",
    )
    group.add_argument("--context-length", type=positive, default=77, metavar="TOKENS")

    add_model(parser)
    group = parser.add_argument_group("objective and towers")
    group.add_argument(
        "--model", default=None, metavar="SLIP_VITB16", help="SLIP's name for --objective and --arch in one"
    )
    group.add_argument("--objective", choices=tuple(OBJECTIVES), default=None, help="default: slip")
    group.add_argument(
        "--text-model",
        default=BIO_CLINICAL_BERT,
        help="a Hugging Face name or folder, a vocab.txt for Bio_ClinicalBERT's layers, or tiny (default: %(default)s)",
    )
    group.add_argument(
        "--text-pooling",
        choices=("masked", "padded"),
        default="masked",
        help="mean over the real tokens, or over padding too as MedCLIP",
    )
    group.add_argument(
        "--lock-image", action="store_true", help="freeze the image encoder; its projection still trains"
    )
    group.add_argument("--lock-text", action="store_true", help="freeze the text encoder; its projection still trains")
    group.add_argument(
        "--grad-checkpointing", action="store_true", help="recompute activations: less memory, a third more time"
    )
    group.add_argument("--ssl-mlp-dim", type=positive, default=4096)
    group.add_argument("--ssl-emb-dim", type=positive, default=256)
    group.add_argument("--ssl-scale", type=number, default=1.0, help="weight of the SimCLR loss")
    group.add_argument("--ssl-temp", type=number, default=0.1, help="temperature of the SimCLR loss")

    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=positive, default=25)
    group.add_argument("--warmup-epochs", type=number, default=1)
    group.add_argument("-b", "--batch-size", type=positive, default=64, help="pairs a device and a forward pass")
    group.add_argument("--lr", type=number, default=1e-4, help="peak; not scaled by the batch size")
    group.add_argument("--lr-start", type=number, default=1e-6)
    group.add_argument("--lr-end", type=number, default=1e-5)
    group.add_argument(
        "--update-freq", type=positive, default=1, metavar="N", help="micro-batches an optimiser step (default: 1)"
    )
    group.add_argument(
        "--grad-cache",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="all micro-batches of a step are each other's negatives, for a second forward pass (default: with N > 1)",
    )
    group.add_argument(
        "--freeze-bn", action="store_true", help="the image encoder's batch norms keep their running statistics"
    )
    group.add_argument("--wd", type=number, default=0.1, help="not applied to norms and biases")
    group.add_argument("--betas", type=number, nargs=2, default=(0.9, 0.98))
    group.add_argument("--eps", type=number, default=1e-8)
    group.add_argument("--clip-grad", type=number, default=None, metavar="NORM")
    group.add_argument(
        "--on-nonfinite",
        choices=("stop", "skip"),
        default="stop",
        help="on a loss that is not finite: end the run, or leave the step out and count it (default: %(default)s)",
    )
    group.add_argument("--eval-freq", type=positive, default=1, metavar="EPOCHS")
    group.add_argument(
        "--resume", default=None, metavar="CHECKPOINT", help="default: the output folder's own checkpoint.pt, if there"
    )
    group.add_argument("-e", "--evaluate", action="store_true", help="evaluate on the validation split and stop")

    add_system(parser)
    group = parser.add_argument_group("logging")
    group.add_argument("--tensorboard", action="store_true")
    group.add_argument("--wandb", action="store_true")
    return parser


def linear_parser() -> Parser:
    """The arguments of main_linear.py."""
    parser = Parser(prog="main_linear.py", description="Linear probe of a frozen image encoder.", allow_abbrev=False)
    add_data(parser, dataset="cbis_calc", cache="none")  # a figure does not depend on it
    add_model(parser)
    group = parser.add_argument_group("probe")
    group.add_argument(
        "--features",
        choices=("projected", "pooled"),
        default=None,
        help="after or before the projection to 512 (default: projected if the weights have it)",
    )
    group.add_argument(
        "--probe",
        choices=tuple(PROBES),
        default=None,
        help="medslip: the published rows' recipe; zeroshot: by prompts, untrained (default: logistic, and sgd above "
        "50,000 training rows)",
    )
    group.add_argument(
        "--allow-leakage", action="store_true", help="go on although patients are in the training and the test split"
    )
    group.add_argument(
        "--prompts",
        default=str(Path(__file__).with_name("evaluation") / "prompts.json"),
        metavar="FILE",
        help="zeroshot only: the classes' prompts",
    )
    group.add_argument("--text-model", default=None, help="zeroshot only: as main.py's (default: the checkpoint's own)")
    group.add_argument("-b", "--batch-size", type=positive, default=128, help="images a forward pass; rows an SGD step")
    group.add_argument("--epochs", type=positive, default=None, help="sgd only (default: 90)")
    group.add_argument("--lr", type=number, default=None, help="sgd only, times batch size / 256 (default: 0.1)")
    group.add_argument("--momentum", type=number, default=None, help="sgd only (default: 0.9)")
    group.add_argument("--wd", "--weight-decay", dest="wd", type=number, default=None, help="sgd only (default: 0)")
    group.add_argument("--name", default=None, help="the row's name in the table (default: the arch and its weights)")
    add_system(parser)
    return parser


def add_slurm(parser) -> Parser:
    """Add the launcher's arguments to a script's own."""
    group = parser.add_argument_group("Slurm")
    group.add_argument("--cluster", choices=("slurm", "local", "debug"), default="slurm")
    group.add_argument(
        "--job-dir", default="./jobs/%j", metavar="FOLDER", help="on a disk that all nodes see; %%j is the job's number"
    )
    group.add_argument(
        "--ngpus",
        type=positive,
        default=None,
        help="GPUs, and processes, a node (default: 8 on Slurm, else those here or 1)",
    )
    group.add_argument("--nodes", type=positive, default=1)
    group.add_argument("--timeout", type=positive, default=2880, metavar="MINUTES")
    group.add_argument("--cpus-per-task", type=positive, default=10)
    group.add_argument("--mem-gb", type=positive, default=None, help="memory a node (default: 40 a GPU)")
    for flag in ("--partition", "--constraint", "--account", "--qos", "--comment"):
        group.add_argument(flag, default=None)
    return parser


def plain(args) -> dict:
    """The arguments as a dict of plain values, for a checkpoint that opens with weights_only."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(args).items()}


def parse(parser, argv=None):
    """Parse, fill in what depends on other arguments, and refuse what cannot work together."""
    args = parser.parse_args(argv)
    if getattr(args, "model", None):
        method, _, size = args.model.upper().rpartition("_")
        if size not in SLIP_MODELS or method.lower() not in OBJECTIVES:
            names = ", ".join(f"{name.upper()}_{size}" for size in SLIP_MODELS for name in OBJECTIVES)
            parser.error(f"--model {args.model}: not one of {names}")
        if args.arch or args.objective:
            parser.error("--model says what --arch and --objective say: give one or the other")
        args.objective, args.arch = method.lower(), SLIP_MODELS[size]
    if getattr(args, "objective", "") is None:
        args.objective = "slip"
    if (args.image_size or 224) < 32:
        parser.error("--image-size: 32 pixels or more")
    if hasattr(args, "betas"):
        args.betas = tuple(args.betas)
        if max(args.betas) >= 1:
            parser.error("--betas: both must be less than 1")
        objective = OBJECTIVES[args.objective]
        if objective.views and args.ssl_temp == 0:
            parser.error("--ssl-temp 0: the temperature must be more than 0")
        cached = args.update_freq > 1 and args.grad_cache is not False
        if objective.views and args.batch_size < 2 and not cached:
            parser.error("--batch-size 1: the SimCLR loss and its batch norm need 2 or more")
        if args.lock_text and not objective.text:
            parser.error(f"--lock-text: --objective {args.objective} builds no text tower")
        if args.context_length < 3:
            parser.error("--context-length: 3 tokens or more")
    if hasattr(args, "probe"):
        chosen = (args.probe,) if args.probe else ("logistic", "sgd")  # the number of training rows will tell
        taken = {flag for name in chosen for flag in PROBE_FLAGS.get(name, ())}
        for name, flags in PROBE_FLAGS.items():
            given = [flag for flag in flags if flag not in taken and getattr(args, flag) is not None]
            if given:
                shown = ", ".join(f"--{flag.replace('_', '-')}" for flag in given)
                parser.error(f"{shown}: for --probe {name}, not for {' or '.join(chosen)}")
    return args
