"""The tokenizer and the model of a run: whether they can be had, fit each other, and take their weights."""

import copy
from pathlib import Path

import torch
from huggingface_hub import constants

import checkpoints
import main
import main_linear
import models
from data import hub
from data.sets import Labelled
from evaluation import probes
from tools.checks.section import Section, logged
from training import resume
from utils import InputError


def allow_download(section: Section, allowed: bool) -> None:
    """Without `allowed` the hub's library reads its cache alone, and nothing is downloaded."""
    if allowed:
        return
    answers = hub.reach()
    constants.HF_HUB_OFFLINE = True
    where = "the Hugging Face hub answers" if answers else "the Hugging Face hub does not answer from here"
    section.say(f"nothing was downloaded; {where}. --download lets this check fetch what a run would")


def absent_medclip(args) -> Path | None:
    """Where MedCLIP's published weights would be downloaded to; None where they are there, or not asked for."""
    if args.pretrained != "medclip" or args.arch not in checkpoints.MEDCLIP_ZIPS:
        return None
    path = checkpoints.medclip_file(args.arch)
    return None if path.exists() else path


def build(args, out: Path, pairs, device, download: bool) -> tuple[Section, object, object]:
    """A training's tokenizer and model -> the section, and both; None for what cannot be had."""
    section = Section("Tokenizer and weights")
    allow_download(section, download)
    resumed = path = tokenizer = model = None
    with logged(section):
        resumed, path = resume.open_checkpoint(out, args.resume)
        if resumed is not None:
            resume.check_same_run(args, resumed, path)
    models.settle_defaults(args)
    chosen = copy.copy(args)
    chosen.compile = False
    if resumed is None:
        without_download(section, chosen, download)
    with logged(section):
        if pairs is None:
            section.note("without training pairs there is no tokenizer to try")
            return section, None, None
        tokenizer, _ = main.make_tokenizer(chosen, resumed, pairs)
    needs = main.options.OBJECTIVES[args.objective].text
    if tokenizer is None and needs:
        return section, None, None
    if tokenizer is not None:
        section.say(f"tokenizer: {len(tokenizer):,} entries")
    model = first_that_fits(
        section, lambda some, contents: main.make_model(some, contents, path, tokenizer, device), chosen, resumed
    )
    if model is not None:
        count_parameters(section, args, model)
    return section, tokenizer, model


def build_probe(args, train: Labelled | None, test: Labelled | None, device, download: bool) -> tuple[Section, object]:
    """A probe's encoder -> the section, and the model; None if it cannot be had."""
    section = Section("Weights")
    allow_download(section, download)
    contents = path = model = None
    if args.pretrained == "medclip" or (args.pretrained is None and (args.arch or "medclip_").startswith("medclip_")):
        asked = copy.copy(args)
        models.settle_defaults(asked)
        if not download and absent_medclip(asked):
            without_download(section, asked, download)
            args.pretrained = "none"
    with logged(section):
        contents, path = main_linear.read_pretrained(args)
    models.settle_defaults(args)
    chosen = copy.copy(args)
    chosen.compile = False
    with logged(section):
        probe = probes.choose(chosen, len(train) if train is not None else 0)
        classes = test.classes if test is not None else []
        model = first_that_fits(
            section, lambda some, known: main_linear.make_encoder(some, probe, known, path, classes, device),
            chosen, contents,
        )  # fmt: skip
    args.features = chosen.features
    if model is not None:
        count_parameters(section, args, model)
    return section, model


def without_download(section: Section, args, download: bool) -> None:
    """Go on with random weights where MedCLIP's would have to be downloaded first."""
    path = absent_medclip(args)
    if path is None or download:
        return
    url = checkpoints.MEDCLIP_URL + checkpoints.MEDCLIP_ZIPS[args.arch]
    section.note(f"a run would download {url} to {path}; checked here with random weights")
    args.pretrained = "none"


def first_that_fits(section: Section, make, args, contents):
    """make(args, contents), or if its weights are refused the same with random ones; None if that is refused too."""
    model = None
    with logged(section):
        model = make(args, contents)
    if model is None:
        random = copy.copy(args)
        random.pretrained = "none"
        unheard = Section("")
        with logged(unheard):
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
