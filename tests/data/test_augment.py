"""Each operation against torchvision's with the same parameters, and each view of a batch against the sample alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv

from conftest import picture
from data import augment, views
from data.images import as_picture

LEVEL = 1 / 255
NEUTRAL = {views.BRIGHTNESS: 1, views.CONTRAST: 1, views.SATURATION: 1}


def images(count=6, colour=True):
    stack = np.stack([np.asarray(picture(seed, (48, 48), colour)) for seed in range(count)])
    stack = stack.transpose(0, 3, 1, 2) if colour else stack[:, None]
    return torch.from_numpy(stack.copy()).float() / 255


def params(count=6, order=(0, 1, 2, 3), **columns):
    rows = torch.zeros(count, views.N_PARAMS)
    rows[:, list(NEUTRAL)] = 1
    rows[:, views.ORDER : views.ORDER + 4] = torch.tensor(order, dtype=torch.float32)
    for name, values in columns.items():
        rows[:, getattr(views, name)] = torch.as_tensor(values, dtype=torch.float32)
    return rows


@pytest.mark.parametrize(
    ("column", "values", "function"),
    [
        ("BRIGHTNESS", (0.6, 0.8, 1.0, 1.1, 1.3, 1.4), tv.adjust_brightness),
        ("CONTRAST", (0.6, 0.8, 1.0, 1.1, 1.3, 1.4), tv.adjust_contrast),
        ("SATURATION", (0.6, 0.8, 1.0, 1.1, 1.3, 1.4), tv.adjust_saturation),
        ("HUE", (-0.1, -0.05, 0.0, 0.02, 0.07, 0.1), tv.adjust_hue),
    ],
)
@pytest.mark.parametrize("colour", [True, False])
def test_jitter_operations(column, values, function, colour):
    x = images(colour=colour)
    found = augment.jitter(x, params(**{column: values}))
    for image, value, result in zip(x, values, found, strict=True):
        reference = function(image.expand(3, -1, -1), value)
        assert (result - reference).abs().mean() < 0.1 * LEVEL


def test_jitter_keeps_each_samples_order():
    x, rng = images(24), np.random.default_rng(0)
    rows = params(24, BRIGHTNESS=rng.uniform(0.6, 1.4, 24), CONTRAST=rng.uniform(0.6, 1.4, 24))
    rows[:, views.SATURATION] = torch.from_numpy(rng.uniform(0.6, 1.4, 24))
    rows[:, views.HUE] = torch.from_numpy(rng.uniform(-0.1, 0.1, 24))
    orders = [rng.permutation(4) for _ in range(24)]
    rows[:, views.ORDER : views.ORDER + 4] = torch.from_numpy(np.stack(orders)).float()
    functions = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    columns = (views.BRIGHTNESS, views.CONTRAST, views.SATURATION, views.HUE)
    for image, row, order, result in zip(x, rows, orders, augment.jitter(x, rows), strict=True):
        for operation in order:
            image = functions[operation](image, row[columns[operation]].item())
        assert (result - image).abs().mean() < 0.2 * LEVEL


def test_blur():
    x, sigmas = images(), (0.0, 0.1, 0.5, 1.0, 1.5, 2.0)
    found = augment.blur(x, torch.tensor(sigmas))
    assert torch.allclose(found[0], x[0], atol=1e-6)
    for image, sigma, result in zip(x[1:], sigmas[1:], found[1:], strict=True):
        assert (result - tv.gaussian_blur(image, 13, sigma)).abs().max() < 0.1 * LEVEL


def test_grayscale_and_flip():
    x = images(2)
    found = augment.apply(x, params(2, GRAY=(1, 0), FLIP=(0, 1)))
    assert (found[0] - tv.rgb_to_grayscale(x[0], 3)).abs().max() < 0.05 * LEVEL  # its weights have one digit more
    assert torch.allclose(found[1], x[1].flip(-1), atol=1e-5)


def test_neutral_parameters_change_nothing():
    for colour in (True, False):
        x = images(colour=colour)
        assert (augment.apply(x, params()) - x).abs().max() < 0.01 * LEVEL


def test_views_come_back_in_order_and_normalised():
    """Gray and coloured samples go apart, and every view must be the same as if its sample were alone."""
    rng = np.random.default_rng(0)
    samples = [rng.integers(0, 256, (3, 40, 40, 3) if i % 3 == 0 else (3, 40, 40), dtype=np.uint8) for i in range(7)]
    rows = np.stack([[views.draw_view(rng, 40, 40, (0.5, 1), ssl=v > 0) for v in range(3)] for _ in samples])
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)

    def make(chosen):
        pictures = [as_picture(Image.fromarray(samples[i][0])) for i in chosen]

        def fill(picture, i, view, out):
            out[:] = samples[chosen[i]][view]

        batch = {**views.pack(pictures, len(chosen), 3, 40, fill), "params": torch.from_numpy(rows[chosen])}
        return augment.make_views(batch, mean, std, torch.device("cpu"))

    together = make(list(range(7)))
    assert len(together) == 3 and together[0].shape == (7, 3, 40, 40)
    for i in range(7):
        for view, alone in zip(together, make([i]), strict=True):
            assert torch.allclose(view[i], alone[0], atol=1e-5)
    first = torch.from_numpy(samples[1][0]).expand(3, -1, -1) / 255  # CLIP's view: cropped and normalised only
    expected = (first - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(together[0][1], expected, atol=1e-5)
