"""Every command-line argument of the four scripts; imports no torch, so that --help and a wrong flag answer at once."""

import argparse
import os
import sys
from pathlib import Path
from typing import NamedTuple

# OpenMP, OpenCV and tokenizers read these when they are loaded or first used. The loader's workers occupy the cores
# already, and threads that spin while they wait take the cores from them: on two busy cores a step was measured to take
# 50 times longer. Installed, this module is medslip.options, and a library leaves its user's environment alone.
if __name__ == "options":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")
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
assert all(one.text or one.views for one in OBJECTIVES.values()), "an objective needs captions or views"


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
    add = parser.add_argument_group("data").add_argument
    add("--dataset", default=dataset, help="a name in the catalog (default: %(default)s)")
    add("--catalog", default=str(Path(__file__).with_name("dataset_catalog.json")), metavar="FILE")
    add("--root", metavar="FOLDER", help="where the data lies, instead of the catalog's path")
    add("--image-size", type=positive, metavar="PIXELS", help="default: the checkpoint's, the arch's or 224")
    add("--window", type=float, nargs=2, metavar=("CENTER", "WIDTH"), help="of DICOM files (default: each file's own)")
    add(
        "--cache",
        default=cache,
        metavar="auto|none|FOLDER",
        help="where decoded pictures are kept: auto is beside the data or in the user's cache folder, if the disk has "
        "room; none is nowhere (default: %(default)s)",
    )
    add(
        "--skip-broken",
        action="store_true",
        help="leave out images that cannot be read, after naming them in a file (default: an error)",
    )


def add_model(parser):
    add = parser.add_argument_group("model").add_argument
    add(
        "-a",
        "--arch",
        help="medclip_vit, medclip_resnet, mammo_clip_b5, mammo_clip_b2, gloria, any timm name, timm's hf-hub:ORG/NAME "
        "and local-dir:FOLDER, hf:NAME_OR_FOLDER of transformers, or open_clip:NAME, open_clip:hf-hub:ORG/REPO, "
        "open_clip:local-dir:FOLDER (default: medclip_vit, or the checkpoint's)",
    )
    add(
        "--pretrained",
        metavar="medclip|timm|open_clip:TAG|published|none|PATH",
        help="initial weights: MedCLIP's (downloaded), the published ones of timm and Hugging Face, open_clip's of a "
        "tag, those that a hub's or a folder's model comes with (published), none (random), or those of a file or "
        "folder (default: medclip for medclip_*, published for hf:, hf-hub:, local-dir:, mammo_clip_* and gloria, else "
        "none)",
    )
    add(
        "--normalize",
        choices=("medclip", "imagenet", "timm", "published"),
        help="mean and standard deviation of the pixels; published: what the published weights were trained with, and "
        "timm is the same (default: the checkpoint's; without one medclip for medclip_*, published for "
        "models that say it themselves, as open_clip:* and hf:* do, timm for --pretrained timm, else imagenet)",
    )


def add_system(parser):
    add = parser.add_argument_group("system").add_argument
    add("--output-dir", metavar="FOLDER")
    workers = "loader processes a device (default: cores shared out, 8 at most)"
    add("-j", "--workers", type=not_negative, help=workers)
    add("-p", "--print-freq", type=positive, default=10, metavar="STEPS")
    add("--seed", type=not_negative, default=0)
    save = "save in between too: 500 (steps), 90s, 15m, 2h (default: %(default)s)"
    add("--save-every", type=interval, default="15m", metavar="STEPS|TIME", help=save)
    add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    add("--amp", choices=("bf16", "fp16", "off"), help="mixed precision (default: the device's best)")
    add("--disable-amp", dest="amp", action="store_const", const="off", help="the same as --amp off")
    add("--compile", action="store_true", help="torch.compile the encoders")
    add("--dist-url", default="env://")
    add("--dist-backend", choices=("nccl", "gloo"), help="default: nccl on GPUs, gloo on CPUs")


def train_parser() -> Parser:
    """The arguments of main.py."""
    about = "Fine-tune a MedCLIP or timm encoder on image-caption pairs (CLIP + SimCLR)."
    parser = Parser(prog="main.py", description=about, allow_abbrev=False)
    add_data(parser, dataset="roco", cache="auto")
    add = parser.add_argument_group("captions").add_argument
    add("--metadata", metavar="FILE", help="a file of '<id> <caption>' lines to train on, instead of captions.txt")
    subsets = ("all", "mammo", "mammo+xray")
    add("--subset", choices=subsets, default="all", help="pairs chosen by patterns over captions and keywords")
    add("--context-length", type=positive, metavar="TOKENS", help="default: the text tower's own, or 77")

    add_model(parser)
    add = parser.add_argument_group("objective and towers").add_argument
    add("--model", metavar="SLIP_VITB16", help="SLIP's name for --objective and --arch in one")
    add("--objective", choices=tuple(OBJECTIVES), help="default: slip")
    add(
        "--text-model",
        help="a Hugging Face name or folder, a vocab.txt for Bio_ClinicalBERT's layers, or tiny (default: "
        f"{BIO_CLINICAL_BERT}; open_clip's, CLIP and SigLIP models have their own)",
    )
    pooling = "mean over the real tokens, or over padding too as MedCLIP"
    add("--text-pooling", choices=("masked", "padded"), default="masked", help=pooling)
    add("--lock-image", action="store_true", help="freeze the image encoder; its projection still trains")
    add("--lock-text", action="store_true", help="freeze the text encoder; its projection still trains")
    add("--grad-checkpointing", action="store_true", help="recompute activations: less memory, a third more time")
    add("--ssl-mlp-dim", type=positive, default=4096)
    add("--ssl-emb-dim", type=positive, default=256)
    add("--ssl-scale", type=number, default=1.0, help="weight of the SimCLR loss")
    add("--ssl-temp", type=number, default=0.1, help="temperature of the SimCLR loss")

    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=positive, default=25)
    add("--warmup-epochs", type=number, default=1)
    add("-b", "--batch-size", type=positive, default=64, help="pairs a device and a forward pass")
    add("--lr", type=number, default=1e-4, help="peak; not scaled by the batch size")
    add("--lr-start", type=number, default=1e-6)
    add("--lr-end", type=number, default=1e-5)
    add("--update-freq", type=positive, default=1, metavar="N", help="micro-batches an optimiser step (default: 1)")
    add(
        "--grad-cache",
        action=argparse.BooleanOptionalAction,
        help="all micro-batches of a step are each other's negatives, which takes a second forward pass (default: yes, "
        "if --update-freq is more than 1)",
    )
    add("--freeze-bn", action="store_true", help="the image encoder's batch norms keep their running statistics")
    add("--wd", type=number, default=0.1, help="not applied to norms and biases")
    add("--betas", type=number, nargs=2, default=(0.9, 0.98))
    add("--eps", type=number, default=1e-8)
    add("--clip-grad", type=number, metavar="NORM")
    add(
        "--on-nonfinite",
        choices=("stop", "skip"),
        default="stop",
        help="on a loss that is not finite: end the run, or leave the step out and count it (default: %(default)s)",
    )
    add("--eval-freq", type=positive, default=1, metavar="EPOCHS")
    add("--resume", metavar="CHECKPOINT", help="default: the output folder's own checkpoint.pt, if there")
    add("-e", "--evaluate", action="store_true", help="evaluate on the validation split and stop")

    add_system(parser)
    add = parser.add_argument_group("logging").add_argument
    add("--log-every", type=positive, default=50, metavar="STEPS", help="for steps.txt and the loggers: %(default)s")
    add("--tensorboard", action="store_true", help="event files in the output folder")
    add("--wandb", action="store_true", help="Weights & Biases; WANDB_MODE=offline keeps it on this machine")
    add("--mlflow", action="store_true", help="MLflow, in the output folder or where MLFLOW_TRACKING_URI says")
    return parser


def linear_parser() -> Parser:
    """The arguments of main_linear.py."""
    parser = Parser(prog="main_linear.py", description="Linear probe of a frozen image encoder.", allow_abbrev=False)
    add_data(parser, dataset="cbis_calc", cache="none")  # a figure does not depend on it
    add_model(parser)
    add = parser.add_argument_group("probe").add_argument
    features = "after or before the projection (default: projected if the weights have it)"
    add("--features", choices=("projected", "pooled"), help=features)
    add(
        "--probe",
        choices=tuple(PROBES),
        help="medslip: the published rows' recipe; zeroshot: by prompts, untrained (default: logistic, and sgd above "
        "50,000 training rows)",
    )
    leakage = "go on although patients are in the training and the test split"
    add("--allow-leakage", action="store_true", help=leakage)
    prompts = str(Path(__file__).with_name("evaluation") / "prompts.json")
    add("--prompts", default=prompts, metavar="FILE", help="zeroshot only: the classes' prompts")
    add("--text-model", help="zeroshot only: as main.py's (default: the checkpoint's own)")
    add("-b", "--batch-size", type=positive, default=128, help="images a forward pass; rows an SGD step")
    add("--epochs", type=positive, help="sgd only (default: 90)")
    add("--lr", type=number, help="sgd only, times batch size / 256 (default: 0.1)")
    add("--momentum", type=number, help="sgd only (default: 0.9)")
    add("--wd", "--weight-decay", dest="wd", type=number, help="sgd only (default: 0)")
    add("--name", help="the row's name in the table (default: the arch and its weights)")
    add_system(parser)
    return parser


def add_slurm(parser) -> Parser:
    """Add the launcher's arguments to a script's own."""
    add = parser.add_argument_group("Slurm").add_argument
    add("--cluster", choices=("slurm", "local", "debug"), default="slurm")
    add(
        "--job-dir", default="./jobs/%j", metavar="FOLDER", help="on a disk that all nodes see; %%j is the job's number"
    )
    add("--ngpus", type=positive, help="GPUs, and processes, a node (default: 8 on Slurm, else those here or 1)")
    add("--nodes", type=positive, default=1)
    add("--timeout", type=positive, default=2880, metavar="MINUTES")
    add("--cpus-per-task", type=positive, default=10)
    add("--mem-gb", type=positive, help="memory a node (default: 40 a GPU)")
    for flag in ("--partition", "--constraint", "--account", "--qos", "--comment"):
        add(flag)
    return parser


def plain(args) -> dict:
    """The arguments as a dict of plain values, for a checkpoint that opens with weights_only."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(args).items()}


def parse(parser, argv=None):
    """Parse, fill in what depends on other arguments, and refuse what cannot work together."""
    args = parser.parse_args(argv)
    args.published = None  # what is known of a published model, see models.settle_defaults
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
    if args.window is not None and not (max(map(abs, args.window)) < 1e6 and args.window[1] > 0):
        parser.error("--window: two numbers, and a width of more than 0")
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
        if args.context_length is not None and args.context_length < 3:
            parser.error("--context-length: 3 tokens or more")
    if hasattr(args, "probe"):
        chosen = (args.probe,) if args.probe else ("logistic", "sgd")  # the number of training rows will tell
        taken = {flag for name in chosen for flag in PROBE_FLAGS.get(name, ())}
        if args.probe == "zeroshot" and args.features == "pooled":
            parser.error("--features pooled: zeroshot compares projected features with the prompts'")
        for name, flags in PROBE_FLAGS.items():
            given = [flag for flag in flags if flag not in taken and getattr(args, flag) is not None]
            if given:
                shown = ", ".join(f"--{flag.replace('_', '-')}" for flag in given)
                parser.error(f"{shown}: for --probe {name}, not for {' or '.join(chosen)}")
    return args
