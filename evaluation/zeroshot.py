"""Zero-shot classification: a class is the mean embedding of its prompts (Radford et al., ICML 2021, section 3.1.4)."""

import json
import re

import torch
import torch.nn.functional as F

import checkpoints
import models
import utils
from data.tokens import Tokens, from_json, load_tokenizer
from evaluation.classifiers import Cosine
from evaluation.probes import Probe
from options import OBJECTIVES
from utils import InputError


class ZeroShot(Probe):
    """Needs a checkpoint with a text tower, and no training features."""

    splits = ("test",)

    def make_model(self, args, contents: dict | None, path: str | None, classes: list[str]):
        """Both towers; the tokenizer and the prompts are kept for `fit`.

        Raises InputError for a checkpoint without a text tower, and for prompts that are not of these classes.
        """
        if self.multi:  # two classes a finding
            classes = [name for finding in classes for name in (f"no {finding}", finding)]
        self.prompts = read_prompts(args.prompts, args.dataset, classes)
        saved = (checkpoints.own_arguments(contents) or {}) if contents is not None else {}
        objective = OBJECTIVES.get(str(saved.get("objective")))
        if contents is None or (objective is not None and not objective.text):
            raise InputError(
                f"--probe zeroshot: --pretrained {args.pretrained} has no text tower: give a checkpoint with one"
            )
        args.text_model = args.text_model or saved.get("text_model")
        serialised = contents.get("tokenizer")
        if models.brings_text(args.published):
            self.tokenizer, _ = models.own_tokenizer(args.arch, args.published, serialised)
        else:
            name = args.text_model or models.BIO_CLINICAL_BERT
            self.tokenizer = from_json(serialised) if serialised else load_tokenizer(name)
        self.context_length = saved.get("context_length") or (args.published or {}).get("context_length") or 77
        self.model = models.create_model(
            args.arch, "clip", "none", args.text_model, saved.get("text_pooling", "masked"), len(self.tokenizer),
            image_size=args.image_size, published=args.published, weights=(contents, path),
        )  # fmt: skip
        loaded = self.model.loaded
        absent = {"text_encoder", "text_projection", "image_projection"} - loaded
        if absent:
            raise InputError(
                f"--probe zeroshot: {path} lacks {', '.join(sorted(absent))}: give a checkpoint with both towers"
            )
        return self.model, loaded

    def fit(self, rows: None, data, args):
        """Nothing is fitted: the classes' embeddings are those of their prompts."""
        classes, selected = self.embed(args)
        return Cosine(classes, selected["logit_scale"], False), selected

    def fit_findings(self, rows: None, data, args):
        """A finding's prompts against those of its absence: a softmax over the two, as CheXzero has it (Tiu et al.,
        Nature Biomedical Engineering 2022)."""
        kinds, selected = self.embed(args)  # (2K, D)
        return Cosine(kinds, selected["logit_scale"], True), selected

    @torch.no_grad()
    def embed(self, args) -> tuple[torch.Tensor, dict]:
        """The mean embedding of each list of prompts, normalised, on the CPU; and what is said of them."""
        model, length = self.model, self.context_length
        device = model.logit_scale.device
        dtype = utils.amp_dtype(args.amp, device)
        pad_to = length if model.text_pooling == "padded" or (args.published or {}).get("padded") else None
        means = []
        for some in self.prompts:
            batch = Tokens(self.tokenizer, some, length, pad_to).batch(range(len(some)))
            with utils.autocast(device, dtype):
                chunks = [
                    model.encode_text(ids.to(device), mask.to(device))
                    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
                ]
            means.append(F.normalize(torch.cat(chunks).float(), dim=-1).mean(dim=0))
        classes = F.normalize(torch.stack(means), dim=-1).cpu()
        return classes, {"prompts": sum(map(len, self.prompts)), "logit_scale": model.logit_scale.exp().item()}


def read_prompts(path: str, dataset: str, classes: list[str]) -> list[list[str]]:
    """The prompts of each class: those of `sets[dataset]` in a JSON file, else its `templates` with the name of the
    class in place of {}.

    Raises InputError for a file without either, or with prompts for other classes.
    """
    try:
        contents = json.loads(utils.read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}): correct it") from None
    contents = contents if isinstance(contents, dict) else {}
    sets = contents.get("sets")
    prompts = sets.get(dataset) if isinstance(sets, dict) else None
    if prompts is None:
        templates = contents.get("templates")
        if not is_texts(templates) or not all("{}" in one for one in templates):
            raise InputError(
                f'{path}: no prompts for \'{dataset}\' in "sets", and no "templates" with {{}}: add either'
            )
        names = [name.replace("_", " ").lower() for name in classes]
        return [[template.replace("{}", name) for template in templates] for name in names]
    if not isinstance(prompts, dict) or set(prompts) != set(classes) or not all(map(is_texts, prompts.values())):
        raise InputError(f"{path}: the prompts of '{dataset}' must be lists of texts for {', '.join(classes[:10])}")
    return [prompts[name] for name in classes]


def is_texts(value) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(is_text, value))


def is_text(value) -> bool:
    """Whether it is a string that is not blank and can be tokenised: JSON can write half of a surrogate pair."""
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)
