"""The validation of a training run: retrieval between images and captions, or without captions the loss."""

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import distributed
import losses
import models
import utils
from data import views
from data.batches import EpochBatches, model_inputs, open_loader, rank_batches
from data.sets import Pairs
from evaluation import metrics
from evaluation.audit import Overlap
from options import OBJECTIVES
from utils import InputError, logger


@dataclass
class Validation:
    """A validation split: its pairs, the loader of this rank's share of them, and the articles shared with training."""

    pairs: Pairs
    loader: torch.utils.data.DataLoader
    overlap: Overlap

    def __len__(self) -> int:
        return len(self.pairs)


def validation_loader(args, pictures, tokens, device):
    """A context manager: the batches of this rank's share of the validation split; a rank may have one batch less."""
    world = distributed.world_size()
    if tokens is None:
        batch_size = min(args.batch_size, len(pictures) // world)
        if batch_size < 2:
            raise InputError(f"{len(pictures)} validation pairs are too few for {world} devices")
        batches = EpochBatches(len(pictures), batch_size, 1, distributed.rank(), world, args.seed)
        dataset = views.TrainViews(pictures, None, args.objective, args.image_size, args.seed)
        return open_loader(dataset, batches, args.workers, device)
    dataset = views.WholeImages(pictures, tokens, args.image_size, models.evaluation_view(args, "center"))
    batches = rank_batches(len(pictures), args.batch_size, distributed.rank(), world)
    return open_loader(dataset, batches, args.workers, device)


@torch.no_grad()
def evaluate(model, validation: Validation, args, stop=None) -> dict | None:
    """Recalls at 1, 5 and 10 in percent, median ranks, and the `score` that picks the best epoch: the highest.

    The score is the mean of the six recalls. Where it is known which articles have training images, the metrics are
    also given for the pairs of the others. An objective without captions gives its loss on fixed views of the
    validation images, and the negative as the score. None if `stop` (signals.StopRequest) asked to leave.
    """
    if not OBJECTIVES[args.objective].text:
        return validation_loss(model, validation, args, stop)
    embeddings = embed(model, validation, args, stop)
    if embeddings is None:
        return None
    results = metrics.retrieval(*embeddings)
    score = mean_recall(results)
    disjoint = validation.overlap.disjoint
    if disjoint is not None and 1 < disjoint.sum() < len(validation):
        rows = torch.from_numpy(disjoint).to(embeddings[0].device)
        part = metrics.retrieval(*(one[rows] for one in embeddings))
        results |= {f"disjoint_{name}": value for name, value in part.items()}
    return {**results, "pairs": len(validation), "score": score}


def mean_recall(results: dict) -> float:
    """The mean of the six recalls."""
    return sum(results[f"{way}_r{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10)) / 6


def outputs_of(model, validation: Validation, args, stop):
    """Yields the model's outputs for each batch, and None at last if `stop` asks to leave: on all ranks at once."""
    model.eval()
    norm, device = models.pixel_statistics(args), next(model.parameters()).device
    dtype = utils.amp_dtype(args.amp, device)
    most = math.ceil(math.ceil(len(validation) / distributed.world_size()) / args.batch_size)
    batches = itertools.chain(validation.loader, itertools.repeat(None))
    for batch in itertools.islice(batches, max(most, len(validation.loader))):
        if stop is not None and stop.check():  # every rank must ask the same number of times
            yield None
            return
        if batch is None:
            continue
        inputs = model_inputs(batch, *norm, device)
        with utils.autocast(device, dtype):
            outputs = model(**inputs)
        yield outputs


@torch.no_grad()
def validation_loss(model, validation: Validation, args, stop=None) -> dict | None:
    """The loss over all ranks, and its negative as `score`; None if `stop` asked to leave."""
    loss_function = losses.create_loss(args)
    found = []
    for outputs in outputs_of(model, validation, args, stop):
        if outputs is None:
            return None
        found.append(loss_function(outputs)["loss"])
    loss = distributed.mean_over_ranks(torch.stack(found).mean()).item()
    if not math.isfinite(loss):
        raise InputError("the validation loss is not finite: lower --lr, give --clip-grad, or try --amp off")
    return {"loss": loss, "score": -loss}


@torch.no_grad()
def embed(model, validation: Validation, args, stop=None) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The image and caption embeddings (N, D) of the whole split, in order, L2-normalised; None if asked to leave."""
    found = []
    for outputs in outputs_of(model, validation, args, stop):
        if outputs is None:
            return None
        found.append((outputs["image_embed"], outputs["text_embed"]))
    none = torch.zeros(0, model.embed_dim, device=next(model.parameters()).device)
    columns = zip(*found, strict=True) if found else (([none],) * 2)
    image, caption = (
        distributed.gather_rows(utils.full_precision(torch.cat(column)), len(validation)) for column in columns
    )
    if not (image.isfinite().all() and caption.isfinite().all()):
        raise InputError("the validation embeddings are not finite: lower --lr, give --clip-grad, or try --amp off")
    return F.normalize(image, dim=-1), F.normalize(caption, dim=-1)


# --evaluate


def evaluate_alone(model, validation: Validation, args, out: Path) -> None:
    """Log the validation's metrics; retrieval's are also written to retrieval.json, with intervals and examples."""
    if not OBJECTIVES[args.objective].text:
        logger.info(json.dumps(validation_loss(model, validation, args)))
        return
    embeddings = embed(model, validation, args)
    if distributed.rank() != 0:
        return
    found = summary(embeddings, validation, args)
    for name, value in found["metrics"].items():
        low, high = found["ci95"].get(name) or (None, None)
        logger.info(f"{name} {value:.4g}" + (f" ({low:.4g} to {high:.4g})" if low is not None else ""))
    utils.write_json(utils.make_folder(out) / "retrieval.json", found)
    logger.info(f"retrieval, its 95% intervals and examples: {out / 'retrieval.json'}")
    logger.info(json.dumps({**found["metrics"], "pairs": found["pairs"], "score": found["score"]}))


def summary(embeddings, validation: Validation, args) -> dict:
    """The contents of retrieval.json: metrics with 95% intervals, and examples.

    Recalls and median ranks are of the whole split, of galleries of 1,000 pairs, and of the pairs whose articles have
    no training image; alignment is of the pairs, uniformity of the images and of the captions (Wang & Isola 2020).
    Intervals resample articles, or pairs where those are unknown, and leave the gallery whole.
    """
    image, caption = embeddings
    pairs, overlap = validation.pairs, validation.overlap
    ranks = metrics.retrieval_ranks(image, caption)
    groups = group_numbers(overlap.articles)
    found, intervals = metrics.recalls(ranks), metrics.recall_intervals(ranks, groups, seed=args.seed)
    found |= metrics.gallery_recalls(image, caption)
    disjoint = overlap.disjoint
    if disjoint is not None and 1 < disjoint.sum() < len(pairs):
        rows = torch.from_numpy(disjoint).to(image.device)
        part = metrics.retrieval_ranks(image[rows], caption[rows])
        found |= {f"disjoint_{name}": value for name, value in metrics.recalls(part).items()}
        some = metrics.recall_intervals(part, groups[disjoint], seed=args.seed)
        intervals |= {f"disjoint_{name}": value for name, value in some.items()}
    found |= {
        "alignment": metrics.alignment(image, caption),
        "image_uniformity": metrics.uniformity(image),
        "text_uniformity": metrics.uniformity(caption),
    }
    return {
        "split": "validation",
        "pairs": len(pairs),
        "score": mean_recall(found),
        "metrics": found,
        "ci95": intervals,
        "ranks": {"ids": list(pairs.ids), **{name: one.tolist() for name, one in ranks.items()}},
        "examples": examples(image, caption, ranks["i2t"], pairs),
        "run": utils.provenance(vars(args), image.device, distributed.world_size()),
    }


def group_numbers(articles: list[str | None]) -> np.ndarray:
    """The number of each pair's article, (N,); a pair whose article is unknown has a number of its own."""
    names = [one or f"pair {i}" for i, one in enumerate(articles)]
    return np.unique(names, return_inverse=True)[1]


def examples(image, caption, ranks: torch.Tensor, pairs, count: int = 5) -> dict:
    """The images whose own captions rank best and worst, with the three captions that each retrieves."""
    own = (image * caption).sum(dim=1)
    order = sorted(range(len(ranks)), key=lambda i: (ranks[i].item(), -own[i].item()))

    def describe(i: int) -> dict:
        best = (image[i] @ caption.T).topk(min(3, len(caption)))
        retrieved = [
            {"id": pairs.ids[j], "caption": pairs.captions[j], "score": score}
            for j, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        rank = int(ranks[i].item()) + 1
        return {
            "id": pairs.ids[i],
            "path": pairs.path(i),
            "caption": pairs.captions[i],
            "rank": rank,
            "retrieved": retrieved,
        }

    return {"good": [describe(i) for i in order[:count]], "bad": [describe(i) for i in order[::-1][:count]]}
