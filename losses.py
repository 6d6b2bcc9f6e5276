"""CLIP, SimCLR and SLIP losses over the global batch.

Each rank computes its own rows of the logits, against the embeddings gathered from all ranks. The gradient flows back
through the gather, so that the average that DistributedDataParallel takes is the gradient of one process on the whole
batch, for every term. With a global batch of BLOCK_FROM or more the logits are never held as a whole: see RowBlocks.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from distributed import gather, rank
from options import OBJECTIVES
from utils import full_precision, resolve

BLOCK_FROM = 4096  # columns
BLOCK = 512  # rows


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, N), the right columns (B,) -> the mean cross entropy, and the accuracy in percent."""
    return F.cross_entropy(logits, labels), 100 * (logits.detach().argmax(dim=-1) == labels).float().mean()


class RowBlocks(torch.autograd.Function):
    """`cross_entropy(scale * query @ keys.T, labels)`, BLOCK rows of the logits at a time.

    The forward pass also computes each block's gradient while its logits are at hand. Nothing is computed twice, and
    all that is kept for the backward pass are gradients as large as the embeddings.
    """

    @staticmethod
    def forward(ctx, query, keys, scale, labels, excluded=None):
        """`query` (B, D), `keys` (N, D), `scale` a tensor () or a float, `labels` and `excluded` (B,): for each row the
        number of its right key, and of one that is left out (a logit of minus infinity)."""
        loss = correct = 0
        d_query, d_keys = torch.empty_like(query), torch.zeros_like(keys)
        blocks = (
            x.split(BLOCK)
            for x in (query, d_query, labels[:, None], (labels if excluded is None else excluded)[:, None])
        )
        for rows, d_rows, right, left_out in zip(*blocks, strict=True):
            logits = (rows @ keys.T).mul_(scale)
            if excluded is not None:
                logits.scatter_(1, left_out, float("-inf"))
            correct += (logits.argmax(dim=1, keepdim=True) == right).sum()
            top = logits.amax(dim=1, keepdim=True)
            of_right = logits.gather(1, right) - top
            weights = logits.sub_(top).exp_()
            total = weights.sum(dim=1, keepdim=True)
            loss += (total.log() - of_right).sum() / len(query)
            weights.div_(total).scatter_add_(1, right, -torch.ones_like(total))
            torch.mm(weights, keys, out=d_rows)
            d_keys.addmm_(weights.T, rows)
        accuracy = 100 * (correct / len(query))
        d_scale = torch.linalg.vecdot(d_query, query).sum() / len(query)
        ctx.save_for_backward(d_query.mul_(scale / len(query)), d_keys.mul_(scale / len(query)), d_scale)
        ctx.scale_learns = isinstance(scale, torch.Tensor)
        ctx.mark_non_differentiable(accuracy)
        return loss, accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss, _):
        d_query, d_keys, d_scale = (d_loss * gradient for gradient in ctx.saved_tensors)
        return d_query, d_keys, d_scale if ctx.scale_learns else None, None, None


class CLIPLoss(nn.Module):
    """Symmetric InfoNCE between images and texts (Radford et al., 2021, figure 3)."""

    def forward(self, outputs: dict) -> dict:
        """`image_embed`, `text_embed` (B, D), `logit_scale` (exp) -> `loss`, `clip_loss`, `clip_acc` (percent)."""
        with torch.autocast(outputs["image_embed"].device.type, enabled=False):
            image = F.normalize(full_precision(outputs["image_embed"]), dim=-1)
            text = F.normalize(full_precision(outputs["text_embed"]), dim=-1)
            scale = full_precision(outputs["logit_scale"])
            labels = torch.arange(len(image), device=image.device) + rank() * len(image)
            found = []
            for query, keys in ((image, gather(text)), (text, gather(image))):
                if len(keys) < BLOCK_FROM:
                    found.append(cross_entropy(scale * query @ keys.T, labels))
                else:
                    found.append(RowBlocks.apply(query, keys, scale, labels))
            loss = (found[0][0] + found[1][0]) / 2
            return {"loss": loss, "clip_loss": loss, "clip_acc": found[0][1]}


class SimCLRLoss(nn.Module):
    """NT-Xent between two views of each image (Chen et al., ICML 2020, equation 1), as SLIP's losses.py has it."""

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        self.temperature = temperature

    def forward(self, outputs: dict) -> dict:
        """`aug1_embed`, `aug2_embed` (B, D) -> `loss`, `ssl_loss`, `ssl_acc` (percent)."""
        with torch.autocast(outputs["aug1_embed"].device.type, enabled=False):
            one = F.normalize(full_precision(outputs["aug1_embed"]), dim=-1)
            two = F.normalize(full_precision(outputs["aug2_embed"]), dim=-1)
            labels = torch.arange(len(one), device=one.device) + rank() * len(one)
            all_one, all_two = gather(one), gather(two)
            found = []
            for query, same, other in ((two, all_two, all_one), (one, all_one, all_two)):
                # A view is no negative of itself: its own column is left out.
                if len(same) < BLOCK_FROM:
                    same_view = (query @ same.T / self.temperature).scatter(1, labels[:, None], float("-inf"))
                    logits = torch.cat([query @ other.T / self.temperature, same_view], dim=1)
                    found.append(cross_entropy(logits, labels))
                else:
                    keys, itself = torch.cat([other, same]), labels + len(other)
                    found.append(RowBlocks.apply(query, keys, 1 / self.temperature, labels, itself))
            loss = (found[0][0] + found[1][0]) / 2
            return {"loss": loss, "ssl_loss": loss, "ssl_acc": found[1][1]}


class SLIPLoss(nn.Module):
    """CLIP plus `ssl_scale` times SimCLR (Mu et al., ECCV 2022, algorithm 1)."""

    def __init__(self, ssl_temp: float = 0.1, ssl_scale: float = 1.0):
        super().__init__()
        self.clip, self.ssl, self.ssl_scale = CLIPLoss(), SimCLRLoss(ssl_temp), ssl_scale

    def forward(self, outputs: dict) -> dict:
        """What CLIPLoss and SimCLRLoss take -> `loss`, `clip_loss`, `ssl_loss`, `clip_acc`, `ssl_acc`."""
        clip, ssl = self.clip(outputs), self.ssl(outputs)
        return {**clip, **ssl, "loss": clip["loss"] + self.ssl_scale * ssl["loss"]}


def create_loss(args) -> nn.Module:
    """The loss of `args.objective`, made with those of the arguments that options.OBJECTIVES names for it.

    It may have no parameters: what trains belongs to models.MedSLIP.
    """
    objective = OBJECTIVES[args.objective]
    loss = resolve(objective.loss)(*(getattr(args, name) for name in objective.flags))
    assert not list(loss.parameters()), f"{objective.loss}: its parameters would not be trained"
    return loss
