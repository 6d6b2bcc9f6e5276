"""The learning rate of every step, and the seeds of what a step draws."""

import math

import torch


def learning_rate(step: int, total: int, warmup: int, peak: float, start: float, end: float) -> float:
    """Linear warm-up from `start` to `peak`, then a cosine down to `end` (SLIP's schedule, per step)."""
    if step < warmup:
        return start + (peak - start) * step / max(1, warmup)
    progress = (step - warmup) / max(1, total - warmup)
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * progress))


def seed_step(*numbers: int) -> None:
    """Seed torch from (seed, step, micro-batch, rank): dropout then needs no generator state to resume."""
    state = 0
    for number in numbers:
        state = (state * 1_000_003 + number + 1) % (2**63 - 1)
    torch.manual_seed(state)
