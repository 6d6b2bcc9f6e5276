"""What the steps found: read when later ones have been queued, so that the host never waits for the device.

A step whose losses were not finite has been left out on the device itself. Here it is counted, or ends the run, and
its samples are named.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

import utils
from distributed import all_objects, rank, world_size
from utils import InputError, logger, to_host

LAG = 2  # steps that are queued before the oldest one's numbers are read
MAX_SKIPPED = 10  # steps in a row that --on-nonfinite skip lets pass
NORM, LOGIT_SCALE, LOSS_SCALE = "gradient norm", "logit scale", "loss scale"  # the last is fp16's


@dataclass
class Found:
    """A step's numbers on their way from the device, and what an error message needs."""

    epoch: int
    step: int
    lr: float
    batches: list[dict]
    names: tuple[str, ...]
    values: torch.Tensor
    arrived: object  # its synchronize() waits for the values
    rows: torch.Tensor  # (n,) bool, whose features are all finite

    @cached_property
    def numbers(self) -> dict[str, float]:
        """By name, read once: waits for them."""
        self.arrived.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))

    def overflowed(self) -> bool:
        """Whether the gradient overflowed in fp16: no failure, the scaler lowers its scale."""
        return self.numbers.get(LOSS_SCALE, 0) > 1 and not math.isfinite(self.numbers[NORM])

    def failed(self) -> list[str]:
        """What was not finite, "name value" each."""
        left_out = {LOGIT_SCALE, LOSS_SCALE} | ({NORM} if self.overflowed() else set())
        return [
            f"{name} {value}"
            for name, value in self.numbers.items()
            if name not in left_out and not math.isfinite(value)
        ]


class Verdicts:
    """Judges a run's steps in order, on all ranks alike; counts those that were left out.

    `ids` are the samples', for an error; `folder` is where a batch with losses that are not finite is written;
    `on_nonfinite` is "stop" or "skip".
    """

    def __init__(self, ids: Sequence[str], folder: Path, on_nonfinite: str):
        self.ids, self.folder, self.skip = ids, folder, on_nonfinite == "skip"
        self.pending, self.tell = deque(), lambda found: None  # called with each step when its numbers are here
        self.skipped = self.in_a_row = self.overflows = 0

    def add(self, epoch: int, step: int, lr: float, batches: list[dict], numbers: dict, rows: torch.Tensor) -> None:
        """Queue a step's numbers (name: a tensor of one element, the losses first), and judge the step LAG before it.

        Raises InputError if that one ends the run.
        """
        values = list(numbers.values())
        values = torch.cat([value.detach().reshape(1).to(values[0]) for value in values])
        self.pending.append(Found(epoch, step, lr, batches, tuple(numbers), *to_host(values), rows))
        while len(self.pending) > LAG:
            self.judge(self.pending.popleft())

    def settle(self) -> None:
        """Judge every step that is still under way; on all ranks together."""
        while self.pending:
            self.judge(self.pending.popleft())

    def clean(self) -> bool:
        """Whether no step that is still under way failed: waits for the device, for use before a save."""
        return not any(found.failed() for found in self.pending)

    def judge(self, found: Found) -> None:
        failed = found.failed()
        self.tell(found)
        if not failed:
            self.overflows += found.overflowed()
            self.in_a_row = 0
            return
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        numbers = found.numbers
        samples = torch.cat([batch["sample"] for batch in found.batches])
        suspects = [name for names in all_objects(self.names(samples[~found.rows.cpu()])) for name in names]
        scales = "".join(f", {name} {numbers[name]:.4g}" for name in (LOGIT_SCALE, LOSS_SCALE) if name in numbers)
        where = (
            f"epoch {found.epoch}, step {found.step}: {', '.join(failed)}; lr {found.lr:.4g}{scales}; "
            + ("samples without finite features: " if suspects else "samples of the first device: ")
            + first_names(suspects or self.names(samples))
        )
        if self.skipped <= MAX_SKIPPED:  # a folder full of them helps nobody
            where += f"; the batch is in {self.write_batch(found, failed, samples)}"
        if self.skip and self.in_a_row < MAX_SKIPPED:
            logger.warning(f"{where}; the step was left out ({self.skipped} so far)")
            return
        cure = "lower --lr, give --clip-grad, or try --on-nonfinite skip"
        if self.skip:
            cure = f"{self.in_a_row} steps in a row were left out: lower --lr or give --clip-grad"
        if LOSS_SCALE in numbers:
            cure += "; or leave fp16: --amp bf16 or --amp off"
        raise InputError(f"{where}; {cure}")

    def names(self, samples: torch.Tensor) -> list[str]:
        return [self.ids[i] for i in samples.tolist()]

    def write_batch(self, found: Found, failed: list[str], samples: torch.Tensor) -> str:
        """The step's packed views, parameters and tokens of this rank, as a file that torch.load opens -> its path."""
        name = f"nonfinite_step{found.step}" + (f"_rank{rank()}" if world_size() > 1 else "") + ".pt"
        contents = {
            "epoch": found.epoch, "step": found.step, "lr": found.lr, "failed": failed, "numbers": found.numbers,
            "ids": self.names(samples), "finite_features": found.rows.cpu(), "batches": found.batches,
        }  # fmt: skip
        try:
            utils.save_tensors(contents, self.folder / name)
        except InputError as error:
            return f"no file: {error}"
        return str(self.folder / name)

    def state_dict(self) -> dict:
        # A run is saved only if the pending steps are clean, and a clean step ends a row of failures.
        in_a_row = 0 if self.pending else self.in_a_row
        overflows = self.overflows + sum(found.overflowed() for found in self.pending)
        return {"skipped": self.skipped, "in_a_row": in_a_row, "overflows": overflows}

    def load_state_dict(self, state: dict) -> None:
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
        self.overflows = state.get("overflows", 0)  # not in checkpoints of before

    def counts(self) -> dict[str, int]:
        """For an epoch's record: the steps that were left out, if any were."""
        counts = {"skipped_steps": self.skipped, "overflow_steps": self.overflows}
        return {name: count for name, count in counts.items() if count}


def first_names(names: list[str], most: int = 16) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
