"""The losses against SLIP's, and those of two real processes against those of one."""

import os
from argparse import Namespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from medclip_layout import FIXTURES
from torch.nn.parallel import DistributedDataParallel

import distributed
import losses

NAMES = ("image_embed", "text_embed", "aug1_embed", "aug2_embed")


def test_slip_parity():
    golden = np.load(FIXTURES / "golden_loss_seed1.npz")
    inputs = {name: torch.from_numpy(golden[name]).requires_grad_() for name in NAMES}
    scale = torch.tensor(float(golden["log_logit_scale"]), requires_grad=True)
    result = losses.SLIPLoss(float(golden["ssl_temp"]), float(golden["ssl_scale"]))(
        {**inputs, "logit_scale": scale.exp()}
    )
    result["loss"].backward()
    for name in ("loss", "clip_loss", "ssl_loss", "clip_acc", "ssl_acc"):
        assert result[name].item() == pytest.approx(float(golden[name]), rel=1e-4)
    for name in NAMES:
        reference = golden[f"grad_{name}"]
        assert np.linalg.norm(inputs[name].grad.numpy() - reference) < 1e-4 * np.linalg.norm(reference)
    assert scale.grad.item() == pytest.approx(float(golden["grad_logit_scale"]), rel=1e-4)


def test_clip_loss_by_hand():
    """Two pairs, orthogonal and aligned, scale 1: every row is softmax(1, 0)."""
    eye = torch.eye(2)
    result = losses.CLIPLoss()({"image_embed": 5 * eye, "text_embed": eye, "logit_scale": torch.tensor(1.0)})
    assert result["loss"].item() == pytest.approx(np.log(1 + np.exp(-1)))
    assert result["clip_acc"].item() == 100


class Towers(torch.nn.Module):
    """One linear layer for each embedding in place of the towers: every parameter's gradient can be compared."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleDict({name: torch.nn.Linear(10, 6) for name in NAMES})
        self.logit_scale = torch.nn.Parameter(torch.tensor(1.5))

    def forward(self, rows):
        return {**{name: layer(rows) for name, layer in self.layers.items()}, "logit_scale": self.logit_scale.exp()}


def gradient(objective, rows, network, model):
    model.zero_grad()
    losses.create_loss(Namespace(objective=objective, ssl_temp=0.1, ssl_scale=0.7))(network(rows))["loss"].backward()
    zero = torch.zeros(1)
    return torch.cat([(p.grad if p.grad is not None else zero).flatten() for p in model.parameters()])


def expected_gradients(rows):
    model = Towers()
    return {objective: gradient(objective, rows, model, model) for objective in ("clip", "simclr", "slip")}


def one_rank(rank, world, store, rows, expected):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    distributed.init_distributed("cpu", "gloo", store)
    compare(rows.chunk(world)[rank], expected)
    distributed.leave()
    assert distributed.group_threads() == []


def compare(mine, expected):
    model = Towers()
    network = DistributedDataParallel(model, find_unused_parameters=True)
    for objective, reference in expected.items():
        found = gradient(objective, mine, network, model)
        error = ((found - reference).norm() / reference.norm()).item()
        assert error < 1e-5, f"{objective}, rank {dist.get_rank()}: relative error {error}"


def test_two_processes_give_the_gradient_of_one(tmp_path):
    rows = torch.randn(8, 10, generator=torch.Generator().manual_seed(1))
    mp.spawn(one_rank, args=(2, f"file://{tmp_path}/store", rows, expected_gradients(rows)), nprocs=2)


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_row_blocks_change_nothing(monkeypatch, dtype, bar):
    """37 pairs in blocks of 8 rows: values, accuracies and gradients are those of the plain form."""
    generator = torch.Generator().manual_seed(0)
    start = {name: torch.randn(37, 16, generator=generator, dtype=dtype) for name in NAMES}
    start["text_embed"] += start["image_embed"]  # so that some rows are right
    found = []
    for first_block in (10**9, 1):
        monkeypatch.setattr(losses, "BLOCK_FROM", first_block)
        monkeypatch.setattr(losses, "BLOCK", 8)
        inputs = {name: value.clone().requires_grad_() for name, value in start.items()}
        scale = torch.tensor(2.0, dtype=dtype, requires_grad=True)
        parts = losses.SLIPLoss(ssl_scale=0.7)({**inputs, "logit_scale": scale.exp()})
        parts["loss"].backward()
        found.append((parts, [*(inputs[name].grad for name in NAMES), scale.grad]))
    (plain, gradients), (blocks, of_blocks) = found
    for name, value in plain.items():
        assert blocks[name].item() == pytest.approx(value.item(), rel=bar)
    for one, other in zip(gradients, of_blocks, strict=True):
        assert (one - other).norm() <= bar * one.norm()
