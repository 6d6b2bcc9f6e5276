"""The tokenizer and the model of a run: whether they can be had, fit each other, and take their weights."""

import copy
import os
import urllib.request
from pathlib import Path

from huggingface_hub import constants

import checkpoints
import main
import main_linear
import models
from data import hub
from data.sets import Labelled
from data.tokens import from_json, train_bpe
from evaluation import probes
from options import OBJECTIVES
from tools.checks.section import Section, logged
from training import resume


def only_cached() -> str:
    """Let the hub's library read its cache alone, so that nothing is downloaded -> what makes a note of it that the
    cache lacks something, or "" where the hub does not answer, and a run would fail."""
    answers = hub.reach()
    constants.HF_HUB_OFFLINE = True
    return "not in the hub's cache; a run would ask the hub, which answers (--download tries it now)" if answers else ""


def on_the_hub(name: str | None) -> bool:
    """Whether a text model is looked up on the hub."""
    return name not in (None, "tiny") and not os.path.exists(name)


def encoder_on_the_hub(args) -> bool:
    """Whether an encoder, or its published weights, are looked up on the hub."""
    arch, pretrained = args.arch or "", args.pretrained or ""
    place = os.path.expanduser(arch.removeprefix("hf:"))
    return (
        pretrained == "timm"
        or pretrained.startswith("open_clip:")
        or arch.removeprefix("open_clip:").startswith("hf-hub:")
        or (arch.startswith("hf:") and not place.startswith((".", "/")) and on_the_hub(place))
        or (arch.startswith("mammo_clip_") and pretrained in ("", "published"))
    )


def settle(section: Section, args, excuse: str) -> bool:
    """models.settle_defaults -> whether it refuses nothing; else the rest is looked at in the size of other archs."""
    with logged(section, excuse if encoder_on_the_hub(args) else ""):
        models.settle_defaults(args)
        return True
    args.image_size = args.image_size or 224
    return False


def absent_medclip(args) -> Path | None:
    """Where MedCLIP's published weights would be downloaded to; None where they are there, or not asked for."""
    if args.pretrained != "medclip" or args.arch not in checkpoints.MEDCLIP_ZIPS:
        return None
    path = checkpoints.medclip_file(args.arch)
    return None if path.exists() else path


def build(args, out: Path, pairs, device, download: bool) -> tuple[Section, object, object]:
    """A training's tokenizer and model -> the section, and both; None for what cannot be had."""
    section = Section("Tokenizer and weights")
    excuse = "" if download else only_cached()
    resumed = path = tokenizer = None
    with logged(section):
        resumed, path = resume.open_checkpoint(out, args.resume)
        if resumed is not None:
            resume.check_same_run(args, resumed, path)
    if not settle(section, args, excuse):
        return section, None, None
    chosen = copy.copy(args)
    chosen.compile = False
    if resumed is None and not download:
        without_download(section, chosen)
    if pairs is None:
        section.note("without training pairs the tokenizer and the weights were not tried")
        return section, None, None
    with logged(section, excuse if on_the_hub(args.text_model) or encoder_on_the_hub(args) else ""):
        tokenizer, _ = main.make_tokenizer(chosen, resumed, pairs)
        if tokenizer is not None:
            section.say(f"tokenizer: {len(tokenizer):,} entries")
    if tokenizer is None and OBJECTIVES[args.objective].text:
        section.say("what follows was measured with a tokenizer of 4,096 entries, made from these captions")
        tokenizer = from_json(train_bpe(pairs.captions))
    model = first_that_fits(
        section, lambda some, contents: main.make_model(some, contents, path, tokenizer, device), chosen, resumed,
        excuse if encoder_on_the_hub(args) else "",
    )  # fmt: skip
    if model is not None:
        count_parameters(section, args, model)
    return section, tokenizer, model


def build_probe(args, train: Labelled | None, test: Labelled | None, device, download: bool) -> tuple[Section, object]:
    """A probe's encoder -> the section, and the model; None if it cannot be had."""
    section = Section("Weights")
    excuse = "" if download else only_cached()
    contents = path = model = None
    if args.pretrained == "medclip" or (args.pretrained is None and (args.arch or "medclip_").startswith("medclip_")):
        asked = copy.copy(args)
        models.settle_defaults(asked)
        if not download and absent_medclip(asked):
            without_download(section, asked)
            args.pretrained = "none"
    with logged(section, excuse if encoder_on_the_hub(args) else ""):
        contents, path = main_linear.read_pretrained(args)
    if not settle(Section(""), args, ""):
        args.probe = args.probe or "logistic"  # for the view of an image
        return section, None
    chosen = copy.copy(args)
    chosen.compile = False
    with logged(section):
        probe = probes.choose(chosen, *((len(train), train.multi) if train is not None else (0,)))
        classes = test.classes if test is not None else []
        model = first_that_fits(
            section, lambda some, known: main_linear.make_encoder(some, probe, known, path, classes, device),
            chosen, contents, excuse if encoder_on_the_hub(args) else "",
        )  # fmt: skip
    args.probe, args.features = chosen.probe, chosen.features
    if model is not None:
        count_parameters(section, args, model)
    return section, model


def without_download(section: Section, args) -> None:
    """Go on with random weights where MedCLIP's would have to be downloaded first."""
    path = absent_medclip(args)
    if path is None:
        return
    url = checkpoints.MEDCLIP_URL + path.name
    args.pretrained = "none"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=hub.SECONDS):
            section.note(f"a run would download {url} to {path} (--download does it now); not tried here")
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        section.fault(f"{url} does not answer ({why}): fetch it elsewhere, and put it at {path}")


def first_that_fits(section: Section, make, args, contents, excuse: str):
    """make(args, contents), or if its weights are refused the same with random ones; None if that is refused too."""
    model = None
    with logged(section, excuse):
        model = make(args, contents)
    if model is None:
        if args.pretrained not in ("none", "timm", "medclip"):  # the text model may have been refused before them
            with logged(section, excuse):
                checkpoints.read(args.pretrained)
        random = copy.copy(args)
        random.pretrained = "none"
        with logged(Section("")):
            model = make(random, None)
    return model


def count_parameters(section: Section, args, model) -> None:
    trained, everything = (
        sum(p.numel() for p in some)
        for some in ([p for p in model.parameters() if p.requires_grad], list(model.parameters()))
    )
    section.say(f"{args.arch}: {everything / 1e6:.1f} M parameters, {trained / 1e6:.1f} M of them trained")


def checkpoint_bytes(model) -> int:
    """What a training's checkpoint takes: the weights, and two moments of those that train."""
    own = sum(x.numel() * x.element_size() for x in model.state_dict().values())
    return own + sum(2 * p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
