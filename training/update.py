"""One update of the weights from a step's micro-batches; a step whose losses are not finite changes nothing.

With the gradient cache (GradCache: Gao et al., RepL4NLP 2021; open_clip's accum-freq) the micro-batches are encoded
without gradient, the projections and losses see all of them at once, and a second pass carries their gradient into
the encoders. Nothing here waits for the device: what a step found is read by Verdicts when later ones are queued.
"""

import contextlib
import math

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import models
import utils
from data.batches import model_inputs
from distributed import batch_norms, mean_over_ranks, rank
from training.schedule import seed_step
from training.verdicts import LOGIT_SCALE, LOSS_SCALE, NORM, Verdicts


class Update:
    """Called with a step's batches (on the host), it updates the model, the optimiser and `totals`.

    `network` is the model or its DistributedDataParallel. With fp16 (`args.amp`) the losses are scaled by `scaler`.
    """

    def __init__(self, network, loss_function, optimizer, args, verdicts: Verdicts):
        self.network, self.loss_function, self.optimizer = network, loss_function, optimizer
        self.model = network.module if isinstance(network, DistributedDataParallel) else network
        self.args, self.verdicts = args, verdicts
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.device = next(self.model.parameters()).device
        self.dtype = utils.amp_dtype(args.amp, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.mean_std = models.pixel_statistics(args)
        self.cached = args.update_freq > 1 and args.grad_cache is not False
        self.guard = StatisticsGuard(self.model) if args.on_nonfinite == "skip" else None
        self.keys, self.totals = (), None  # the losses' names; their sums over the epoch's finite steps, and the count
        self.before_update = lambda: None  # called when the parameters are about to change

    def __call__(self, batches: list[dict], epoch: int, step: int, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.guard:
            self.guard.remember()
        parts, rows = self.backward_cached(batches, step) if self.cached else self.backward(batches, step)
        values = mean_over_ranks(torch.stack([value.detach() for value in parts.values()]))
        numbers = dict(zip(parts, values, strict=True))
        if self.scaler.is_enabled():
            scale = self.scaler.scale(values.new_ones(1))
        finite, numbers[NORM] = self.change_weights(values)
        if self.guard:
            self.guard.restore_if(~finite)
        if self.totals is None:
            self.keys, self.totals = tuple(parts), torch.zeros(len(parts) + 1, dtype=values.dtype, device=self.device)
        self.totals += torch.where(finite, torch.cat([values, values.new_ones(1)]), 0)
        if hasattr(self.model, "logit_scale"):
            numbers[LOGIT_SCALE] = self.model.logit_scale.detach().exp()
        if self.scaler.is_enabled():
            numbers[LOSS_SCALE] = scale
        self.verdicts.add(epoch, step, lr, batches, numbers, rows)

    # Forward and backward

    def inputs(self, batch, step, micro) -> dict:
        """A micro-batch's views on the device; seeds its dropout, the same in a second pass."""
        inputs = model_inputs(batch, *self.mean_std, self.device)
        seed_step(self.args.seed, step, micro, rank())
        return inputs

    def synchronised(self, last: bool):
        """Let DistributedDataParallel average the gradients in the step's last backward only."""
        return contextlib.nullcontext() if last or self.network is self.model else self.network.no_sync()

    def run_backward(self, *tensors_and_gradients) -> None:
        # Recomputed activations (--grad-checkpointing) must not count twice in the batch norms' running statistics.
        recomputes = statistics_kept(self.model) if self.args.grad_checkpointing else contextlib.nullcontext()
        with recomputes:
            torch.autograd.backward(*tensors_and_gradients)

    def backward(self, batches, step) -> tuple[dict, torch.Tensor]:
        """Each micro-batch with its own negatives (SLIP's accumulation) -> the mean losses, and `finite_rows`."""
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
        """All micro-batches against each other -> the losses of the whole batch, and `finite_rows`."""
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

    # The optimiser's step, and what the steps found

    def change_weights(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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

    def state_dict(self) -> dict:
        """The sums of the epoch so far, and the steps left out, for a checkpoint."""
        totals = {} if self.totals is None else {"totals": self.totals, "keys": list(self.keys)}
        return {**totals, **self.verdicts.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.verdicts.load_state_dict(state)
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
