"""The validation of a training run: image-text retrieval, or for `simclr` its loss."""

import itertools
import math

import torch
import torch.nn.functional as F

import losses
import metrics
import models
import utils
import views
from step import model_inputs
from utils import InputError


def validation_loader(args, pictures, tokens, workers: int, device):
    """A context manager: batches of this rank's share of the validation set, as many on every rank or one less."""
    world = utils.world_size()
    if args.objective == "simclr":
        batch_size = min(args.batch_size, len(pictures) // world)
        if batch_size < 2:
            raise InputError(f"{len(pictures)} validation pairs are too few for {world} devices")
        batches = views.EpochBatches(len(pictures), batch_size, 1, utils.rank(), world, args.seed)
        dataset = views.TrainViews(pictures, None, "simclr", args.image_size, args.seed)
        return views.loader(dataset, batches, workers, device)
    dataset = views.WholeImages(pictures, tokens, args.image_size, "center")
    batches = views.rank_batches(len(pictures), args.batch_size, utils.rank(), world)
    return views.loader(dataset, batches, workers, device)


@torch.no_grad()
def evaluate(model, loader, total: int, args, device, dtype, stop=None) -> dict | None:
    """Recall at 1, 5 and 10 in percent over `total` pairs; `score` (higher is better) picks the best epoch.

    `simclr` has no text: its loss on fixed views of the validation images, `score` its negative. None if `stop`
    (interrupt.StopRequest) asks to leave.
    """
    model.eval()
    norm = models.mean_std(args.normalize, args.arch)
    loss_function = losses.create_loss("simclr", args.ssl_temp) if args.objective == "simclr" else None
    found = []
    most = math.ceil(math.ceil(total / utils.world_size()) / args.batch_size)
    for batch in itertools.islice(itertools.chain(loader, itertools.repeat(None)), max(most, len(loader))):
        if stop is not None and stop.check():  # every rank asks as often
            return None
        if batch is None:
            continue
        inputs = model_inputs(batch, "simclr" if loss_function else "clip", *norm, device)
        with utils.autocast(device, dtype):
            outputs = model(**inputs)
        found.append(
            loss_function(outputs)["loss"] if loss_function else (outputs["image_embed"], outputs["text_embed"])
        )
    if loss_function:
        loss = utils.mean_over_ranks(torch.stack(found).mean()).item()
        if not math.isfinite(loss):
            raise InputError("the validation loss is not finite: lower --lr, give --clip-grad, or try --amp off")
        return {"loss": loss, "score": -loss}
    columns = zip(*found, strict=True) if found else ([torch.zeros(0, models.EMBED_DIM, device=device)],) * 2
    image, caption = (utils.gather_rows(utils.full_precision(torch.cat(column)), total) for column in columns)
    if not (image.isfinite().all() and caption.isfinite().all()):
        raise InputError("the validation embeddings are not finite: lower --lr, give --clip-grad, or try --amp off")
    recalls = metrics.retrieval(F.normalize(image, dim=-1), F.normalize(caption, dim=-1))
    return {**recalls, "pairs": total, "score": sum(recalls.values()) / len(recalls)}
