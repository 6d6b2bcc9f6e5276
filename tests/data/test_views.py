"""Decoding, the drawn parameters of every view against torchvision's, and the order of the batches."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv

import datasets
from conftest import picture
from data import images, views
from data.batches import EpochBatches, open_loader
from data.tokens import Tokens, from_json, train_bpe
from utils import InputError


@pytest.mark.parametrize(
    ("image", "mode"),
    [
        (picture(0), "L"),
        (picture(0).convert("RGB"), "L"),
        (picture(0, colour=True), "RGB"),
        (picture(0).convert("LA"), "L"),
        (picture(0).convert("1"), "L"),
        (picture(0, colour=True).convert("CMYK"), "RGB"),
        (picture(0, colour=True).convert("P"), "RGB"),
        (Image.fromarray(np.asarray(picture(0)).astype(np.uint16) * 257), "L"),
    ],
)
def test_modes(image, mode, tmp_path):
    path = str(tmp_path / ("x.tif" if image.mode == "CMYK" else "x.png"))
    image.save(path)
    found = images.read_image(path)
    assert found.mode == mode and found.size == image.size
    if image.mode == "I;16":
        assert np.array_equal(np.asarray(found), np.asarray(picture(0)))


def test_transparency_lies_on_black():
    image = Image.new("RGBA", (2, 1), (200, 10, 10, 255))
    image.putpixel((1, 0), (255, 255, 255, 0))
    assert [images.to_gray_or_rgb(image).getpixel((x, 0)) for x in (0, 1)] == [(200, 10, 10), (0, 0, 0)]


def test_unreadable_files_are_found(tmp_path):
    whole, cut, page, bomb = (str(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.jpg", "d.png"))
    picture(0).save(whole)
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-300])
    (tmp_path / "c.jpg").write_text("<html>404</html>")
    Image.new("1", (20_000, 10_000)).save(bomb)
    found = images.unreadable([whole, cut, page, bomb])
    assert list(found) == [cut, page]
    assert "download it again or remove it" in found[cut] and "not an image" in found[page]
    with pytest.raises(InputError, match="more than"):
        images.read_image(bomb)
    # Bytes after the end marker are common and harmless.
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes() + b"\0" * 100)
    assert images.unreadable([whole]) == {}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_threads_refuse_a_bomb_each_by_itself(tmp_path, monkeypatch):
    """One thread is done with its file before the other opens its own, of a size that Pillow only warns of."""
    picture(0).save(tmp_path / "small.png")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    both, done, plain = threading.Barrier(2), threading.Event(), Image.open

    def open_in_order(path):
        both.wait()
        if path.endswith("large.png"):
            done.wait()
        return plain(path)

    monkeypatch.setattr(Image, "open", open_in_order)
    with ThreadPoolExecutor(2) as pool:
        small, large = (pool.submit(images.read_image, str(tmp_path / f"{name}.png")) for name in ("small", "large"))
        small.add_done_callback(lambda _: done.set())
        with pytest.raises(InputError, match="more than"):
            large.result()


def test_crops_are_distributed_as_torchvisions():
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    image = torch.empty(1, 300, 400)
    ours = np.array([views.draw_crop(rng, 400, 300, (0.08, 1.0)) for _ in range(8000)])
    theirs = np.array([RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(8000)])
    theirs = theirs[:, [1, 0, 3, 2]]  # top, left, height, width
    for column in range(4):
        deciles = np.arange(0.1, 1, 0.1)
        gap = np.quantile(ours[:, column], deciles) - np.quantile(theirs[:, column], deciles)
        assert np.abs(gap).max() < 12  # pixels; the deciles' own standard error is about 2


@pytest.mark.parametrize("size", [(1000, 40), (40, 1000), (3, 3), (1, 1)])
def test_crops_of_odd_images_stay_inside(size):
    rng = np.random.default_rng(0)
    for _ in range(200):
        left, top, width, height = views.draw_crop(rng, *size, (0.08, 1.0))
        assert left >= 0 and top >= 0 and 0 < width <= size[0] - left and 0 < height <= size[1] - top


def test_parameters_are_distributed_as_slips():
    rng = np.random.default_rng(0)
    rows = np.stack([views.draw_view(rng, 400, 300, (0.08, 1.0), ssl=True) for _ in range(6000)])
    share = rows[:, [views.GRAY, views.FLIP]].mean(axis=0)
    assert share == pytest.approx([0.2, 0.5], abs=0.03)
    assert (rows[:, views.SIGMA] > 0).mean() == pytest.approx(0.5, abs=0.03)
    jittered = rows[rows[:, views.BRIGHTNESS] != 1]
    assert len(jittered) / len(rows) == pytest.approx(0.8, abs=0.03)
    for column, low, high in ((views.BRIGHTNESS, 0.6, 1.4), (views.CONTRAST, 0.6, 1.4), (views.HUE, -0.1, 0.1)):
        values = jittered[:, column]
        assert (
            low <= values.min() and values.max() <= high and values.mean() == pytest.approx((low + high) / 2, abs=0.02)
        )
    orders = {tuple(row) for row in jittered[:, views.ORDER : views.ORDER + 4]}
    assert len(orders) == 24


@pytest.mark.parametrize("size", [(90, 70), (700, 901)])
def test_crops_are_torchvisions_for_the_same_boxes(size):
    """They differ by less than 1.5 grey levels in the mean: torchvision averages in one step, ours halves first."""
    image = picture(3, size, colour=True)
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(20):
        row = views.draw_view(rng, *size, (0.08, 1.0), ssl=False)
        left, top, width, height = (int(value) for value in row[: views.HEIGHT + 1])
        reference = np.asarray(tv.resized_crop(image, top, left, height, width, (32, 32)))
        ours = np.empty((32, 32, 3), np.uint8)
        views.crop(views.halvings(images.as_picture(image), 32), row, 32, ours)
        errors.append(np.abs(ours.astype(float) - reference).mean())
    assert max(errors) < 1.5


def test_a_crop_of_the_size_of_its_box_is_the_box_itself():
    pixels = np.random.default_rng(0).integers(0, 256, (48, 60), dtype=np.uint8)
    row = np.zeros(views.N_PARAMS, np.float32)
    row[: views.HEIGHT + 1] = (11, 7, 32, 32)
    found = np.empty((32, 32), np.uint8)
    views.crop(images.as_picture(Image.fromarray(pixels)), row, 32, found)
    assert np.array_equal(found, pixels[7:39, 11:43])


def test_samples_depend_on_seed_epoch_and_index_only(roco):
    pairs = datasets.read_pairs(roco)
    tokens = Tokens(from_json(train_bpe(pairs.captions, 300)), pairs.captions, 20)
    keys = [(0, 4), (0, 1), (0, 5)]

    def batches(seed, workers):
        data = views.TrainViews(images.Files(pairs.path, len(pairs)), tokens, "slip", 32, seed)
        with open_loader(data, [keys], workers, torch.device("cpu")) as loader:
            return next(iter(loader))

    one, two, other = batches(0, 0), batches(0, 2), batches(1, 0)
    for name in one:
        for left, right in zip(one[name], two[name], strict=True):
            assert torch.equal(left, right)
    assert not torch.equal(one["params"], other["params"])
    data = views.TrainViews(images.Files(pairs.path, len(pairs)), tokens, "slip", 32, 0)
    assert torch.equal(one["params"][2], torch.from_numpy(data.draw(0, 5)[1]))
    assert not np.array_equal(data.draw(0, 5)[1], data.draw(1, 5)[1])


def test_packing_keeps_gray_images_in_one_plane(roco):
    pairs = datasets.read_pairs(roco)
    data = views.TrainViews(images.Files(pairs.path, len(pairs)), None, "simclr", 32, 0)
    batch = data.__getitems__([(0, i) for i in range(6)])  # 0 and 5 are coloured
    assert batch["gray"].shape == (4, 2, 1, 32, 32) and batch["colour"].shape == (2, 2, 3, 32, 32)
    together = torch.cat([batch["gray"].expand(-1, -1, 3, -1, -1), batch["colour"]])[batch["order"]]
    for i in range(6):
        alone = data.__getitems__([(0, i)])
        crops = torch.cat([alone["gray"].expand(-1, -1, 3, -1, -1), alone["colour"]])[0]
        assert torch.equal(together[i], crops)


def test_every_world_size_sees_the_same_steps():
    def steps(batch_size, update_freq, world):
        samplers = [EpochBatches(50, batch_size, update_freq, rank, world, seed=3) for rank in range(world)]
        ranks = [list(sampler) for sampler in samplers]
        assert all(len(batches) == len(sampler) for batches, sampler in zip(ranks, samplers, strict=True))
        return [
            {key for rank in ranks for batch in rank[step * update_freq : (step + 1) * update_freq] for key in batch}
            for step in range(samplers[0].steps)
        ]

    assert steps(12, 1, 1) == steps(6, 1, 2) == steps(3, 1, 4) == steps(3, 2, 2) == steps(3, 4, 1)
    assert len(steps(12, 1, 1)) == 4 and all(len(step) == 12 for step in steps(12, 1, 1))
    sampler = EpochBatches(50, 12, 1, 0, 1, seed=3)
    first = list(sampler)
    sampler.epoch = 1
    assert [i for _, i in first[0]] != [i for _, i in next(iter(sampler))]


@pytest.mark.parametrize(("fit", "inside"), [("squash", (0, 90)), ("center", (10, 80)), ("center256", (15, 75))])
def test_whole_views(fit, inside):
    """A horizontal ramp tells which columns of a 90 x 70 image are in the view."""
    ramp = Image.fromarray(np.tile(np.arange(90, dtype=np.uint8), (70, 1)))
    view = views.whole(images.as_picture(ramp), 64, fit)
    assert view.shape == (64, 64)
    first, last = int(view[0, 0]), int(view[0, -1])
    assert first == pytest.approx(inside[0], abs=2) and last == pytest.approx(inside[1] - 1, abs=2)


def test_captions_of_like_length_share_a_chunk():
    """20 captions of 1 to 20 words go into three chunks; `text_order` puts them back in order."""
    captions = [" ".join(["mass"] * (1 + (7 * i) % 20)) for i in range(20)]
    tokens = Tokens(from_json(train_bpe(captions, 300)), captions, 30)
    batch = tokens.batch(range(20))
    assert [len(chunk) for chunk in batch["input_ids"]] == [7, 7, 6]
    rows = [
        ids[mask.bool()]
        for pair in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        for ids, mask in zip(*pair, strict=True)
    ]
    for i, place in enumerate(batch["text_order"].tolist()):
        assert rows[place].tolist() == tokens.rows([i])[0].tolist()
    padded = Tokens(from_json(train_bpe(captions, 300)), captions, 30, pad_to=30).batch(range(20))
    assert [chunk.shape for chunk in padded["input_ids"]] == [(20, 30)]


def test_captions_tokenised_in_the_worker_are_the_same(monkeypatch):
    captions = ["a large mass", "no", "axial ct of the chest with a mass"]
    tokenizer = from_json(train_bpe(captions, 300))
    kept = Tokens(tokenizer, captions, 6)
    monkeypatch.setattr("data.tokens.LAZY_FROM", 3)
    lazy = Tokens(tokenizer, captions, 6)
    assert kept.ids.dtype == np.uint16 and not hasattr(lazy, "ids")
    for one, two in zip(kept.batch([2, 0])["input_ids"], lazy.batch([2, 0])["input_ids"], strict=True):
        assert torch.equal(one, two)
