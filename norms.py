"""Batch norm over the global batch on every backend, and its running statistics held still where they must be.

torch's SyncBatchNorm trains on CUDA only. Elsewhere the same is done here with differentiable collectives, so that a
run on gloo sees the statistics of one process with the whole batch, and its gradient.
"""

import contextlib

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn

from utils import full_precision, gather, world_size

BatchNorm = nn.modules.batchnorm._BatchNorm


def normalise(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Batch norm `norm` in train mode: (n, C, ...) of each rank, one mean and variance a channel over all ranks."""
    rows = full_precision(x)
    shape = [1, -1] + [1] * (x.dim() - 2)
    variance, mean = torch.var_mean(rows, [d for d in range(x.dim()) if d != 1], correction=0)
    # Every rank has as many values, so the parts weigh the same (Chan, Golub and LeVeque, 1979).
    means, variances = gather(torch.stack([mean, variance])[None]).unbind(1)
    mean = means.mean(0)
    variance = variances.mean(0) + (means - mean).square().mean(0)
    with torch.no_grad():
        count = rows.numel() // rows.shape[1] * world_size()
        norm.num_batches_tracked += 1
        share = norm.momentum if norm.momentum is not None else 1 / norm.num_batches_tracked.item()
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
        norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var.dtype), share)
    out = (rows - mean.reshape(shape)) * torch.rsqrt(variance + norm.eps).reshape(shape)
    if norm.affine:
        out = out * norm.weight.reshape(shape) + norm.bias.reshape(shape)
    return out.to(x.dtype)


class GlobalBatchNorm(BatchNorm):
    """A batch norm over all ranks. Not a torch SyncBatchNorm, which DistributedDataParallel refuses on the CPU."""

    def _check_input_dim(self, x):
        pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return normalise(self, x) if self.training else super().forward(x)


class GlobalBatchNormAct(BatchNormAct2d):
    """timm's batch norm that holds an activation, over all ranks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(normalise(self, x))) if self.training else super().forward(x)


def synchronise(model: nn.Module, device: torch.device) -> nn.Module:
    """Make every batch norm of `model` take the statistics of all ranks -> the model, converted in place."""
    if device.type == "cuda":
        return convert_sync_batchnorm(model)  # timm's own keeps the activation that some of its norms hold
    for norm in batch_norms(model):
        norm.__class__ = GlobalBatchNormAct if isinstance(norm, BatchNormAct2d) else GlobalBatchNorm
    return model


def batch_norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, BatchNorm)]


@contextlib.contextmanager
def statistics_kept(model: nn.Module):
    """Within the block a pass in train mode leaves the running statistics alone: for passes that are done twice."""
    kept = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in batch_norms(model)]
    for norm, _, _ in kept:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


class StatisticsGuard:
    """Puts the running statistics back after a step that is skipped, without asking the device whether it was."""

    def __init__(self, model: nn.Module):
        self.buffers = [buffer for module in batch_norms(model) for buffer in module.buffers()]
        self.copies = [torch.empty_like(buffer) for buffer in self.buffers]

    def remember(self) -> None:
        for copy, buffer in zip(self.copies, self.buffers, strict=True):
            copy.copy_(buffer)

    def restore_if(self, skipped: torch.Tensor) -> None:
        """`skipped` is a bool scalar on the device."""
        for copy, buffer in zip(self.copies, self.buffers, strict=True):
            buffer.copy_(torch.where(skipped, copy, buffer))
