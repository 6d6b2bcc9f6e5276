"""Grad-CAM on maps worked out by hand, on every kind of last stage, and on pictures whose lesion's place is known."""

import numpy as np
import pytest
import timm
import torch
from torch import nn
from transformers import SwinConfig

import models
from evaluation.gradcam import grad_cam
from towers.parts import Towers
from towers.swin import PooledSwin
from utils import InputError


class Mean(nn.Module):
    """Three channels as they are: the last stage, and their means."""

    def __init__(self):
        super().__init__()
        self.stage, self.feature_info = nn.Identity(), [{"module": "stage"}]

    def forward(self, pixels):
        return self.stage(pixels).mean(dim=(2, 3))


def frozen(encoder: nn.Module, width: int) -> models.MedSLIP:
    return models.MedSLIP(Towers(encoder, width, embed_dim=4)).requires_grad_(False).eval()


def test_the_map_worked_out_by_hand():
    """Channel means -> a projection -> a standardised probe: the weights of the channels are their product over 4."""
    model = frozen(Mean(), 3)
    model.image_projection.weight.data = torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 0], [0, 0, 0]])
    spread, probe = torch.tensor([0.5, 4.0, 1, 1]), torch.tensor([[1.0, 5.0], [1.0, -1.0], [0, 0], [0, 0]])

    def scores(features):
        return (features - 7) / spread @ probe + torch.tensor([100.0, -3.0])

    image = torch.tensor([[[8.0, 0], [0, 4]], [[0, 16], [0, -8]], [[9, 9], [9, 9]]])[None]
    # To the first class's score less the mean of both the features give (-2, 1) times what they are over their spread,
    # that is (-4, 1/4): the channels, the second of them doubled, give (-4, 1/2, 0) over the four places.
    signed = torch.tensor([[-8.0, 2.0], [0.0, -5.0]])
    found = grad_cam(model, scores, image.repeat(2, 1, 1, 1), torch.tensor([[0, 1], [1, 0]]), projected=True)
    assert torch.equal(found, torch.stack([signed.relu(), (-signed).relu()])[torch.tensor([[0, 1], [1, 0]])])
    other = grad_cam(model, lambda features: scores(features) + features[:, :1] * 50, image, torch.tensor([[0]]), True)
    torch.testing.assert_close(other[0, 0], signed.relu())  # what is added to both classes changes no map
    third = grad_cam(
        model, lambda features: torch.cat([scores(features), torch.full((1, 1), -torch.inf)], dim=1), image,
        torch.tensor([[0, 2]]), projected=True,
    )  # fmt: skip
    torch.testing.assert_close(third[0], torch.stack([signed.relu(), torch.zeros(2, 2)]))  # a class without a score
    pooled = grad_cam(model, lambda features: features[:, :2], image, torch.tensor([[0]]), projected=False)
    torch.testing.assert_close(pooled[0, 0], torch.tensor([[1.0, 0], [0, 1.5]]))


ENCODERS = {
    "ResNet": lambda: timm.create_model("resnet10t", num_classes=0),
    "Swin of transformers'": lambda: PooledSwin(
        SwinConfig(image_size=32, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=2)
    ),
    "Swin of timm's": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=2,
        num_classes=0,
    ),
    "ViT": lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=0),
}  # fmt: skip


@pytest.mark.parametrize(("name", "side"), [(name, 1 if name == "ResNet" else 4) for name in ENCODERS])
def test_each_kind_of_last_stage(name, side):
    encoder = ENCODERS[name]()
    pixels = torch.randn(2, 3, 32, 32)
    width = encoder.eval()(pixels).shape[1]
    model, weights = frozen(encoder, width), torch.randn(width, 3)
    before = model.encode_image(pixels)
    targets = torch.tensor([[0, 1], [2, 1]])
    together = grad_cam(model, lambda features: features @ weights, pixels, targets, projected=False)
    alone = grad_cam(model, lambda features: features @ weights, pixels[1:], targets[1:], projected=False)
    assert together.shape == (2, 2, side, side) and together.isfinite().all() and (together >= 0).all()
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-6)
    assert torch.equal(model.encode_image(pixels), before)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_encoder_without_a_map_is_refused():
    flat = frozen(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 5)), 5)
    with pytest.raises(InputError, match="Sequential has no last stage"):
        grad_cam(flat, lambda features: features, torch.zeros(1, 3, 4, 4), torch.tensor([[0]]), projected=False)
    still = frozen(Mean(), 3)
    with pytest.raises(InputError, match="does not depend on its last map"):
        grad_cam(still, lambda features: 0 * features, torch.zeros(1, 3, 4, 4), torch.tensor([[0]]), projected=False)


def test_the_heat_lies_rather_on_the_lesion():
    """Discs in noise, and a probe for them: their cells, a sixteenth of the picture, get more than a sixteenth."""
    rng, side = np.random.default_rng(0), 128
    pictures, places = rng.normal(0, 0.3, (32, side, side)), rng.integers(0, 4, (32, 2))
    for number in range(16):
        down, across = places[number] * 32
        pictures[number, down + 8 : down + 24, across + 8 : across + 24] += 2
    pixels = torch.from_numpy(pictures).float()[:, None].repeat(1, 3, 1, 1)
    model = frozen(timm.create_model("resnet10t", num_classes=0), 512)
    features = model.encode_image(pixels, projected=False)
    mean, spread = features.mean(dim=0), features.std(dim=0) + 1e-6
    rows, wanted = (features - mean) / spread, torch.cat([torch.ones(16), -torch.ones(16)])
    weights = torch.linalg.solve(rows.T @ rows + 100 * torch.eye(512), rows.T @ wanted)

    def scores(found):
        positive = (found - mean) / spread @ weights
        return torch.stack([torch.zeros_like(positive), positive], dim=1)

    heat = grad_cam(model, scores, pixels[:16], torch.ones(16, 1, dtype=torch.long), projected=False)[:, 0]
    shares = heat[torch.arange(16), places[:16, 0], places[:16, 1]] / heat.sum(dim=(1, 2))
    print(f"{shares.mean():.0%} of the heat lies on the lesion's sixteenth")
    assert shares.mean() > 1 / 16
