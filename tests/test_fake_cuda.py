"""The code for a GPU on torch's fake CUDA tensors, which have a device, a type and a shape, and no numbers.

Operands on two devices are an error there as on a GPU, and of two types with `Watch`. The backward pass wants a real
device: `reach` stands in for it. What numbers decide is not seen here: `make gpu` runs the same code on a GPU.
"""

import functools
import itertools
from types import SimpleNamespace

import options  # noqa: F401  (before torch)
import pytest
import torch
from conftest import picture
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import SwinConfig

from data import augment
from evaluation import features
import losses
import distributed
import main
import models
from evaluation import retrieval
from training import saver
from data.tokens import Tokens, from_json, train_bpe
import utils
from data import views
from data.batches import model_inputs
from data.images import as_picture
from towers import swin
from training.update import Update
from training.verdicts import Verdicts

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
ARCHS = {"medclip_vit": 224, "medclip_resnet": 64, "test_vit": 64}  # and the side of their views
HALVES = [torch.bfloat16, torch.float16]
AMP = {torch.bfloat16: "bf16", torch.float16: "fp16"}
NORM = models.MEAN_STD["medclip"]
aten = torch.ops.aten
ONE_TYPE = {
    aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.convolution, aten.native_layer_norm, aten.lerp_, aten.scatter,
    aten.scatter_add_, aten.linalg_vecdot,
}  # fmt: skip
CAPTIONS = [f"mass number {i}" + " in the left lobe" * (i % 4) for i in range(20)]


@pytest.fixture(scope="module")
def mode(batches, shapes):
    """Within this module torch makes fake tensors, and takes the machine for one with a GPU that has bf16."""
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode() as mode, Watch():
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        patch.setattr(torch.autograd, "backward", reach)
        augment.channels.cache_clear()
        yield mode
        augment.channels.cache_clear()


class Watch(TorchDispatchMode):
    """Refuses two floating-point types in operations that take one, which fake tensors do not; counts the copies to
    the host, any of which may make it wait."""

    copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket in ONE_TYPE:
            found = {x.dtype for x in args if torch.is_tensor(x) and x.is_floating_point()}
            assert len(found) == 1, f"{func}: {found}"
        if func.overloadpacket is aten._to_copy and args[0].device == CUDA and kwargs.get("device") == CPU:
            Watch.copies += 1
        return func(*args, **kwargs)


def reach(tensors, gradients=None, *_, **__) -> None:
    """Give every leaf that `tensors` depend on a gradient, of no particular value."""
    tensors = [tensors] if torch.is_tensor(tensors) else list(tensors)
    for tensor, gradient in zip(tensors, gradients or [None] * len(tensors), strict=True):
        if gradient is None:
            assert tensor.numel() == 1
        else:
            assert like(gradient) == like(tensor)
    todo, seen = [tensor.grad_fn for tensor in tensors], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # a leaf
            node.variable.grad = torch.zeros_like(node.variable)
        todo.extend(parent for parent, _ in node.next_functions)


def like(x: torch.Tensor) -> tuple:
    return x.device, x.dtype, x.shape


@pytest.fixture(scope="module")
def batches():
    """Two real batches of four gray and two coloured pictures."""
    pictures = [as_picture(picture(i, colour=i % 3 == 0)) for i in range(len(CAPTIONS))]
    tokens = Tokens(from_json(train_bpe(CAPTIONS, 300)), CAPTIONS, 77)

    def make(size: int, dataset=views.TrainViews):
        more = ("slip", size, 0) if dataset is views.TrainViews else (size, "center")
        data = dataset(pictures, tokens, *more)
        keys = [list(range(6)), list(range(6, 12))]
        if dataset is views.TrainViews:
            keys = [[(0, i) for i in some] for some in keys]
        return [data.__getitems__(some) for some in keys]

    return {(size, kind): make(size, kind) for size in ARCHS.values() for kind in (views.TrainViews, views.WholeImages)}


@pytest.fixture(scope="module")
def shapes():
    """The models without memory: `to` does not take fake parameters. Swin has few blocks, plain and shifted ones."""
    shallow = functools.partial(SwinConfig, depths=[2, 1, 1, 1])
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(swin, "SwinConfig", shallow)
        return {
            arch: models.create_model(arch, "slip", "none", "tiny", "masked", 300, 32, 16, size)
            for arch, size in ARCHS.items()
        }


@pytest.fixture(scope="module")
def towers(shapes, mode):
    """The models on the fake GPU, in train mode."""
    for model in shapes.values():
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, value in held.items():
                    if value is not None:
                        empty = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=CUDA)
                        held[name] = torch.nn.Parameter(empty) if held is module._parameters else empty
        model.train()
    return shapes


def fake(mode, batch: dict) -> dict:
    def one(value):
        return [mode.from_tensor(x) for x in value] if isinstance(value, list) else mode.from_tensor(value)

    return {name: one(value) for name, value in batch.items()}


def settings(**more) -> SimpleNamespace:
    return SimpleNamespace(
        **{
            "objective": "slip", "update_freq": 1, "grad_cache": None, "on_nonfinite": "stop", "clip_grad": 1.0,
            "seed": 0, "grad_checkpointing": False, "wd": 0.1, "lr": 1e-4, "betas": (0.9, 0.98), "eps": 1e-8,
            "batch_size": 6, "normalize": "medclip",
        } | more
    )  # fmt: skip


def test_views_are_made_on_the_device(mode, batches):
    batch = fake(mode, batches[64, views.TrainViews][0])
    assert {len(batch["gray"]), len(batch["colour"])} == {4, 2}
    made = augment.make_views(batch, *NORM, CUDA)
    assert [like(view) for view in made] == [(CUDA, torch.float32, (6, 3, 64, 64))] * 3
    inputs = model_inputs(batch, *NORM, CUDA)
    assert {x.device for value in inputs.values() for x in (value if isinstance(value, list) else [value])} == {CUDA}
    assert {x.dtype for name in ("input_ids", "attention_mask") for x in inputs[name]} == {torch.int64}


@pytest.mark.parametrize(
    ("arch", "half", "freq"),
    [
        # Each type and each way with the smallest, and with the larger ones each type and each way once.
        *itertools.product(["test_vit"], HALVES, [1, 2]),
        ("medclip_vit", torch.bfloat16, 2), ("medclip_vit", torch.float16, 1),
        ("medclip_resnet", torch.bfloat16, 1), ("medclip_resnet", torch.float16, 2),
    ],
)  # fmt: skip
def test_a_step(mode, batches, towers, arch, half, freq):
    """Views, forward, losses, the gradient cache's passes, clipping, the update, and the numbers on their way."""
    model, given = towers[arch], [fake(mode, one) for one in batches[ARCHS[arch], views.TrainViews][:freq]]
    args = settings(arch=arch, amp=AMP[half], update_freq=freq, on_nonfinite="skip" if freq == 1 else "stop")
    loss, seen, calls = losses.SLIPLoss(), [], []
    loss.register_forward_hook(lambda _, inputs, parts: seen.append((inputs[0], parts)))
    counting = model.image_encoder.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0]))
    optimizer, verdicts = main.make_optimizer(model, args), Verdicts(range(12), None, args.on_nonfinite)
    update = Update(model, loss, optimizer, args, verdicts)
    assert update.device == CUDA and update.dtype == half and update.scaler.is_enabled() == (half == torch.float16)
    with_gradient, change_weights = {}, update.change_weights

    def look(values):
        with_gradient.update({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        return change_weights(values)

    update.change_weights, copies = look, Watch.copies
    update(given, 0, 0, 1e-4)
    assert Watch.copies == copies + 1  # the step's numbers, read later
    counting.remove()

    ((outputs, parts),) = seen
    rows = 6 * freq
    for name in ("image_embed", "text_embed", "aug1_embed", "aug2_embed"):
        assert like(outputs[name])[:2] == (CUDA, half) and len(outputs[name]) == rows, name
    assert like(outputs["logit_scale"]) == (CUDA, torch.float32, ())
    assert {like(value) for value in parts.values()} == {(CUDA, torch.float32, ())}
    parameters = dict(model.named_parameters())
    assert with_gradient.keys() == parameters.keys()  # a step uses them all
    assert all(like(with_gradient[name]) == (CUDA, torch.float32, p.shape) for name, p in parameters.items())
    state = [value for one in optimizer.state.values() for value in one.values()]
    assert len(state) == 3 * len(parameters) and {x.device for x in state} == {CUDA}
    assert like(update.totals) == (CUDA, torch.float32, (6,))
    (found,) = verdicts.pending  # not read yet
    numbers = 8 if half == torch.float16 else 7
    assert like(found.values) == (CPU, torch.float32, (numbers,)) and like(found.rows) == (CUDA, torch.bool, (rows,))
    verdicts.in_a_row, found.numbers = 3, {"gradient norm": 1.0}  # a fake tensor has none
    assert update.state_dict()["in_a_row"] == 0  # a save comes only if the step under way is finite
    passes = 1 if freq == 1 else 4  # two micro-batches, twice
    together = not distributed.batch_norms(model.image_encoder)
    assert len(calls) == passes * (1 if together else 3)
    assert all(like(x) == (CUDA, torch.float32, (18 if together else 6, 3, *[ARCHS[arch]] * 2)) for x in calls)


@pytest.mark.parametrize("arch", ARCHS)
def test_evaluation(mode, batches, towers, arch):
    """Retrieval's forward, and the probe's features."""
    model, (batch, _) = towers[arch], batches[ARCHS[arch], views.WholeImages]
    batch = fake(mode, batch)
    with torch.no_grad():
        validation = retrieval.Validation(range(6), [batch], None)
        (out,) = retrieval.outputs_of(model, validation, settings(arch=arch, amp="bf16"), None)
        assert {like(out[f"{name}_embed"]) for name in ("image", "text")} == {(CUDA, torch.bfloat16, (6, 512))}
        found = features.encode(model, batch, NORM, CUDA, torch.float16, projected=True, flips=False)
        assert like(found) == (CUDA, torch.float32, (6, 512))
        found = features.encode(model, batch, NORM, CUDA, None, projected=False, flips=True)
        assert like(found) == (CUDA, torch.float32, (6, 4, model.image_projection.in_features))
    model.train()


def test_the_losses_in_blocks(mode, monkeypatch):
    monkeypatch.setattr(losses, "BLOCK_FROM", 1)
    monkeypatch.setattr(losses, "BLOCK", 4)
    outputs = {
        name: torch.randn(6, 16, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
        for name in ("image_embed", "text_embed", "aug1_embed", "aug2_embed")
    }
    outputs["logit_scale"] = torch.ones((), device=CUDA, requires_grad=True)
    parts = losses.SLIPLoss()(outputs)
    assert {like(value) for value in parts.values()} == {(CUDA, torch.float32, ())}
    reach(parts["loss"])
    assert all(x.grad is not None for x in outputs.values())


def test_a_save_is_queued(mode, towers, tmp_path):
    model = towers["test_vit"]
    keeper = saver.Saver(tmp_path, (None, None))
    copies = keeper.copy(model.state_dict(), ())
    assert keeper.later == []  # nothing left for the writer to copy
    for name, value in model.state_dict().items():
        assert like(copies[name]) == (CPU, value.dtype, value.shape) and copies[name].stride() == value.stride()


def test_half_precision(mode, monkeypatch):
    assert [utils.amp_dtype(choice, CUDA) for choice in (None, "bf16", "fp16", "off")] == [*HALVES[:1], *HALVES, None]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: False)
    assert utils.half_precision(CUDA) == torch.float16


@pytest.mark.parametrize(
    ("where", "what", "wrong"),
    [
        (augment, "channels", lambda values, _: torch.zeros(3, 1, 1)),  # constants left on the CPU
        (losses, "full_precision", lambda x: x),  # a loss in half precision
        (losses, "gather", lambda rows: rows.double()),
    ],
)
def test_a_slip_shows(mode, batches, towers, monkeypatch, where, what, wrong):
    monkeypatch.setattr(where, what, wrong)
    with pytest.raises((RuntimeError, AssertionError)):
        test_a_step(mode, batches, towers, "test_vit", torch.bfloat16, 1)
