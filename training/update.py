"""One optimiser step over its micro-batches, exact in its negatives, and guarded against losses that are not finite.

With the gradient cache (GradCache: Gao et al., RepL4NLP 2021; open_clip's accum-freq) the micro-batches are encoded
without gradient, the projections and losses see all of them at once, and a second pass carries their gradient into
the encoders. Nothing here waits for the device: what a step found is read when later steps have been queued.
"""

import contextlib
import math
from collections import deque
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import utils
from data.batches import model_inputs
from distributed import all_objects, batch_norms, mean_over_ranks, rank, world_size
from training.schedule import seed_step
from utils import InputError, logger, to_host

LAG = 2  # steps that are queued before the oldest one's numbers are read
MAX_SKIPPED = 10  # steps in a row that --on-nonfinite skip lets pass
OTHERS = ("gradient norm", "logit scale", "loss scale")  # the last is fp16's, by which the loss was multiplied


@dataclass
class Verdict:
    """What a step found, on its way from the device: `numbers` are the losses, then those of OTHERS."""

    epoch: int
    step: int
    lr: float
    batches: list[dict]
    numbers: torch.Tensor
    arrived: object  # its synchronize() waits for the numbers
    rows: torch.Tensor  # (n,) bool, whose features are all finite


class Update:
    """Callable: the host's batches of a step -> the model, its optimiser and `totals` one step further.

    `network` is the model or its DistributedDataParallel; `norm` (mean, std) of the pixels; `names(samples)` gives
    the ids for an error; `out` is where a batch with losses that are not finite is written.
    """

    def __init__(self, network, loss_function, optimizer, scaler, args, norm, device, dtype, names, out):
        self.network, self.loss_function, self.optimizer, self.scaler = network, loss_function, optimizer, scaler
        self.model = network.module if isinstance(network, DistributedDataParallel) else network
        self.args, self.norm, self.device, self.dtype, self.names, self.out = args, norm, device, dtype, names, out
        self.cached = args.update_freq > 1 and args.grad_cache is not False
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.guard = StatisticsGuard(self.model) if args.on_nonfinite == "skip" else None
        self.keys, self.totals = (), None  # the losses' names; their sums over the epoch's finite steps, and the count
        self.pending = deque()
        self.skipped = self.in_a_row = self.overflows = 0
        self.before_update = lambda: None  # called when the parameters are about to change

    def __call__(self, batches: list[dict], epoch: int, step: int, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.guard:
            self.guard.remember()
        parts, rows = self.backward_cached(batches, step) if self.cached else self.backward(batches, step)
        values = mean_over_ranks(torch.stack([value.detach() for value in parts.values()]))
        loss_scale = self.scaler.scale(values.new_ones(1))
        finite, norm = self.update(values)
        if self.guard:
            self.guard.restore_if(~finite)
        if self.totals is None:
            self.keys, self.totals = tuple(parts), torch.zeros(len(parts) + 1, dtype=values.dtype, device=self.device)
        self.totals += torch.where(finite, torch.cat([values, values.new_ones(1)]), 0)
        scale = getattr(self.model, "logit_scale", torch.zeros((), device=self.device)).detach().exp()
        numbers = torch.cat([values, norm[None].to(values), scale[None].to(values), loss_scale.to(values)])
        self.queue(epoch, step, lr, batches, numbers, rows)
        while len(self.pending) > LAG:
            self.judge(self.pending.popleft())

    # Forward and backward

    def inputs(self, batch, step, micro) -> dict:
        """A micro-batch's views on the device; seeds its dropout, the same in a second pass."""
        inputs = model_inputs(batch, self.args.objective, *self.norm, self.device)
        seed_step(self.args.seed, step, micro, rank())
        return inputs

    def synchronised(self, last: bool):
        """Let DistributedDataParallel average the gradients in the step's last backward only."""
        return contextlib.nullcontext() if last or self.network is self.model else self.network.no_sync()

    def run_backward(self, *tensors_and_gradients) -> None:
        # Recomputed activations (--grad-checkpointing) must not count twice in the running statistics.
        recomputes = statistics_kept(self.model) if self.args.grad_checkpointing else contextlib.nullcontext()
        with recomputes:
            torch.autograd.backward(*tensors_and_gradients)

    def backward(self, batches, step) -> tuple[dict, torch.Tensor]:
        """Each micro-batch with its own negatives (SLIP's accumulation) -> means of the losses, finite rows."""
        sums, rows = {}, []
        for micro, batch in enumerate(batches):
            with self.synchronised(micro == len(batches) - 1):
                inputs = self.inputs(batch, step, micro)
                with utils.autocast(self.device, self.dtype):
                    outputs = self.network(**inputs)
                parts = self.loss_function(outputs)
                self.run_backward(self.scaler.scale(parts["loss"] / len(batches)))
            rows.append(finite_rows(outputs))
            for name, value in parts.items():
                sums[name] = sums.get(name, 0) + value.detach() / len(batches)
        return sums, torch.cat(rows)

    def backward_cached(self, batches, step) -> tuple[dict, torch.Tensor]:
        """All micro-batches against each other -> the losses of the whole batch, finite rows."""
        cache = []
        for micro, batch in enumerate(batches):
            inputs = self.inputs(batch, step, micro)
            with torch.no_grad(), statistics_kept(self.model), utils.autocast(self.device, self.dtype):
                cache.append(self.model.encode(**inputs))
        features = {name: torch.cat([one[name] for one in cache]).requires_grad_() for name in cache[0]}
        sizes = [len(next(iter(one.values()))) for one in cache]
        del cache
        with utils.autocast(self.device, self.dtype):
            outputs = self.model.project(features)
        parts = self.loss_function(outputs)
        self.scaler.scale(parts["loss"]).backward()
        gradients = {name: feature.grad.split(sizes) for name, feature in features.items()}
        for micro, batch in enumerate(batches):
            last = micro == len(batches) - 1
            anchored = last and self.network is not self.model
            with self.synchronised(last):
                inputs = self.inputs(batch, step, micro)
                with utils.autocast(self.device, self.dtype):
                    again = self.network(project=False, anchor=anchored, **inputs)
                pairs = [(again[name], gradient[micro]) for name, gradient in gradients.items()]
                if anchored:
                    pairs.append((again["anchor"], torch.zeros_like(again["anchor"])))
                pairs = [pair for pair in pairs if pair[0].requires_grad]  # a locked tower has no gradient
                if pairs:
                    self.run_backward(*zip(*pairs, strict=True))
        return parts, finite_rows(features)

    # The update, and what it was worth

    def update(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The optimiser's step, left out on the device itself if a loss or the gradient is not finite.

        -> whether it was finite (bool scalar) and the gradient's norm, unscaled, both on the device.
        """
        self.before_update()
        scaled = self.scaler.is_enabled()
        finite = values.isfinite().all()
        if scaled:
            self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.args.clip_grad:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.args.clip_grad, norm)
        if scaled:  # the scaler leaves such steps out itself, and lowers its scale
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            finite = finite & norm.isfinite()
            self.optimizer.found_inf = (~finite).float()
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if hasattr(self.model, "logit_scale"):
            self.model.logit_scale.data.clamp_(0, math.log(100))
        return finite, norm

    def queue(self, epoch, step, lr, batches, numbers, rows) -> None:
        self.pending.append(Verdict(epoch, step, lr, batches, *to_host(numbers), rows))

    def failed(self, verdict: Verdict) -> list[str]:
        """The names of what was not finite in a step, "name value" each."""
        numbers = self.numbers(verdict)
        names = self.keys if self.overflowed(numbers) else (*self.keys, OTHERS[0])
        return [f"{name} {numbers[name]}" for name in names if not math.isfinite(numbers[name])]

    def numbers(self, verdict: Verdict) -> dict[str, float]:
        verdict.arrived.synchronize()
        return dict(zip((*self.keys, *OTHERS), verdict.numbers.tolist(), strict=True))

    def overflowed(self, numbers: dict[str, float]) -> bool:
        """Whether only the loss scale was too high for the gradient: no failure, since the scaler lowers it."""
        return numbers["loss scale"] > 1 and not math.isfinite(numbers["gradient norm"])

    def clean(self) -> bool:
        """Whether no step that is still under way failed: waits for the device, for use before a save."""
        return not any(self.failed(verdict) for verdict in self.pending)

    def settle(self) -> None:
        """Judge every step that is still under way; on all ranks together."""
        while self.pending:
            self.judge(self.pending.popleft())

    def judge(self, verdict: Verdict) -> None:
        """Count a step whose losses were not finite, or end the run; on all ranks at the same step."""
        failed, numbers = self.failed(verdict), self.numbers(verdict)
        if not failed:
            if self.overflowed(numbers):
                self.overflows += 1
            self.in_a_row = 0
            return
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        samples = torch.cat([batch["sample"] for batch in verdict.batches])
        mine = self.names(samples[~verdict.rows.cpu()].tolist())
        suspects = [name for names in all_objects(mine) for name in names]
        scaled = self.scaler.is_enabled()
        where = (
            f"epoch {verdict.epoch}, step {verdict.step}: {', '.join(failed)}; lr {verdict.lr:.4g}"
            + (f", logit scale {numbers['logit scale']:.4g}" if hasattr(self.model, "logit_scale") else "")
            + (f", loss scale {numbers['loss scale']:.4g}" if scaled else "")
            + f"; {'samples without finite features: ' if suspects else 'samples of the first device: '}"
            + some(suspects or self.names(samples.tolist()))
        )
        file = ""
        if self.skipped <= MAX_SKIPPED:  # a folder full of them helps nobody
            file = f"; the batch is in {self.write_batch(verdict, failed, samples)}"
        if self.args.on_nonfinite == "skip" and self.in_a_row < MAX_SKIPPED:
            logger.warning(f"{where}{file}; the step was left out ({self.skipped} so far)")
            return
        cure = "lower --lr, give --clip-grad, or try --on-nonfinite skip"
        if self.args.on_nonfinite == "skip":
            cure = f"{self.in_a_row} steps in a row were left out: lower --lr or give --clip-grad"
        if scaled:
            cure += "; or leave fp16: --amp bf16 or --amp off"
        raise InputError(f"{where}{file}; {cure}")

    def write_batch(self, verdict: Verdict, failed: list[str], samples: torch.Tensor) -> str:
        """The step's packed views, parameters and tokens of this rank, as a file that torch.load opens."""
        name = f"nonfinite_step{verdict.step}" + (f"_rank{rank()}" if world_size() > 1 else "") + ".pt"
        contents = {
            "epoch": verdict.epoch, "step": verdict.step, "lr": verdict.lr, "failed": failed,
            "numbers": self.numbers(verdict),
            "ids": self.names(samples.tolist()), "finite_features": verdict.rows.cpu(), "batches": verdict.batches,
        }  # fmt: skip
        try:
            utils.save_tensors(contents, self.out / name)
        except InputError as error:
            return f"no file: {error}"
        return str(self.out / name)

    def state_dict(self) -> dict:
        """The sums of the epoch so far, and the steps left out, for a checkpoint."""
        totals = {} if self.totals is None else {"totals": self.totals, "keys": list(self.keys)}
        # Steps under way at a save are `clean`: the next judgement would end a row of failures.
        in_a_row = 0 if self.pending else self.in_a_row
        overflows = self.overflows + sum(self.overflowed(self.numbers(verdict)) for verdict in self.pending)
        return {**totals, "skipped": self.skipped, "in_a_row": in_a_row, "overflows": overflows}

    def load_state_dict(self, state: dict) -> None:
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
        self.overflows = state.get("overflows", 0)  # not in checkpoints of before
        if "totals" in state:
            self.keys, self.totals = tuple(state["keys"]), state["totals"].to(self.device)

    def reset(self) -> None:
        """Begin a new epoch's sums."""
        self.keys, self.totals = (), None

    def means(self) -> dict:
        """Means over the epoch's steps so far: reads the device."""
        *sums, count = self.totals.tolist()
        return {name: total / max(count, 1) for name, total in zip(self.keys, sums, strict=True)}


def finite_rows(features: dict) -> torch.Tensor:
    """(n,) bool: the samples whose pooled features are finite in every view."""
    names = [name for name in ("image", "text", "aug1", "aug2") if name in features]
    return torch.stack([features[name].detach().isfinite().all(dim=1) for name in names]).all(dim=0)


def some(names: list[str], most: int = 16) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# Running statistics of batch norms, held still where they must be


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
