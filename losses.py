"""CLIP, SimCLR and SLIP losses over the global batch.

Each rank takes its own rows against the gathered columns of all ranks, and the gather carries the gradient back, so
that DDP's averaged gradient is the gradient of one process on the whole batch, for every term.
"""

import torch
import torch.nn.functional as F
from torch import nn

from utils import full_precision, gather, rank


def percent_correct(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return 100 * (logits.argmax(dim=-1) == labels).float().mean()


class CLIPLoss(nn.Module):
    """Symmetric InfoNCE between images and texts (Radford et al., 2021, figure 3)."""

    def forward(self, outputs: dict) -> dict:
        """`image_embed`, `text_embed` (B, D), `logit_scale` (exp) -> `loss`, `clip_loss`, `clip_acc` (percent)."""
        with torch.autocast(outputs["image_embed"].device.type, enabled=False):
            image = F.normalize(full_precision(outputs["image_embed"]), dim=-1)
            text = F.normalize(full_precision(outputs["text_embed"]), dim=-1)
            scale = full_precision(outputs["logit_scale"])
            labels = torch.arange(len(image), device=image.device) + rank() * len(image)
            image_logits = scale * image @ gather(text).T
            text_logits = scale * text @ gather(image).T
            loss = (F.cross_entropy(image_logits, labels) + F.cross_entropy(text_logits, labels)) / 2
            return {"loss": loss, "clip_loss": loss, "clip_acc": percent_correct(image_logits.detach(), labels)}


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
            # A view is not its own negative.
            itself = F.one_hot(labels, len(all_one)).bool()
            losses, logits = [], None
            for query, same, other in ((two, all_two, all_one), (one, all_one, all_two)):
                same_view = (query @ same.T / self.temperature).masked_fill(itself, float("-inf"))
                logits = torch.cat([query @ other.T / self.temperature, same_view], dim=1)
                losses.append(F.cross_entropy(logits, labels))
            loss = sum(losses) / 2
            return {"loss": loss, "ssl_loss": loss, "ssl_acc": percent_correct(logits.detach(), labels)}


class SLIPLoss(nn.Module):
    """CLIP plus `ssl_scale` times SimCLR (Mu et al., ECCV 2022, algorithm 1)."""

    def __init__(self, ssl_temp: float = 0.1, ssl_scale: float = 1.0):
        super().__init__()
        self.clip, self.ssl, self.ssl_scale = CLIPLoss(), SimCLRLoss(ssl_temp), ssl_scale

    def forward(self, outputs: dict) -> dict:
        """What CLIPLoss and SimCLRLoss take -> `loss`, `clip_loss`, `ssl_loss`, `clip_acc`, `ssl_acc`."""
        clip, ssl = self.clip(outputs), self.ssl(outputs)
        return {**clip, **ssl, "loss": clip["loss"] + self.ssl_scale * ssl["loss"]}


def create_loss(objective: str, ssl_temp: float = 0.1, ssl_scale: float = 1.0) -> nn.Module:
    if objective == "slip":
        return SLIPLoss(ssl_temp, ssl_scale)
    return CLIPLoss() if objective == "clip" else SimCLRLoss(ssl_temp)
