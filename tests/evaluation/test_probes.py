"""The probes: by hand, their choice of hyperparameters, the published recipe step by step, and prompts."""

import numpy as np
import pytest
import torch

import options
from evaluation import probes, zeroshot
from utils import InputError


def test_each_name_in_the_table_opens_a_probe():
    assert all(isinstance(probes.named(name), probes.Probe) for name in options.PROBES)
    assert set(options.PROBE_FLAGS) < set(options.PROBES)


def test_without_a_name_the_probe_depends_on_the_number_of_training_rows():
    args = options.parse(options.linear_parser(), ["--lr", "0.2"])
    assert isinstance(probes.choose(args, 50_001), probes.SGD) and args.probe == "sgd"
    args.probe = None
    assert isinstance(probes.choose(args, 50_000), probes.Logistic) and args.probe == "logistic"


def test_folds_keep_patients_together():
    """Each patient's two images are alike and labels are random: folds that split patients would look far better."""
    rng = np.random.default_rng(0)
    once = rng.normal(size=(60, 40))
    labels = np.repeat(rng.integers(0, 2, 60), 2)
    features = np.repeat(once, 2, axis=0) + 0.01 * rng.normal(size=(120, 40))

    class Data:
        pass

    Data.classes, Data.labels, Data.patients = ("a", "b"), labels, [f"p{i // 2}" for i in range(120)]
    args = options.parse(options.linear_parser(), [])
    _, grouped = probes.Logistic().fit(features, Data, args)
    Data.patients = None
    _, split = probes.Logistic().fit(features, Data, args)
    assert grouped["cv_log_loss"] > 0.6 > 0.45 > split["cv_log_loss"]


def test_published_recipe_step_by_step():
    """15 epochs in order, AdamW at 6.25e-5, a cosine restarted every 5 steps, two linear layers; written out here."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(37, 4, 6)).astype(np.float32)
    labels = rng.integers(0, 3, 37)

    class Data:
        pass

    Data.classes, Data.labels = ("a", "b", "c"), labels
    args = options.parse(options.linear_parser(), ["--probe", "medslip", "--seed", "4"])
    predict, _ = probes.PublishedRecipe().fit(table, Data, args)
    torch.manual_seed(4)
    first, second = torch.nn.Linear(6, 1024), torch.nn.Linear(1024, 3)
    optimizer = torch.optim.AdamW([*first.parameters(), *second.parameters()], lr=1e-3)
    step = 0
    flipped = 0
    for epoch in range(15):
        which = probes.draw_flips(37, epoch, 4)
        flipped += np.stack([which % 2, which // 2]).mean(axis=1) / 15
        for start in range(0, 37, 16):
            optimizer.param_groups[0]["lr"] = 6.25e-5 * (1 + np.cos(np.pi * (step % 5) / 5)) / 2
            rows = torch.tensor(np.array([table[i, which[i]] for i in range(start, min(start + 16, 37))]))
            loss = torch.nn.functional.cross_entropy(second(first(rows)), torch.tensor(labels[start : start + 16]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    expected = second(first(torch.from_numpy(table[:, 0]))).softmax(dim=1).detach().numpy()
    assert np.abs(predict(table[:, 0]) - expected).max() < 1e-5
    assert np.abs(flipped - 0.3).max() < 0.06


def test_knn_by_hand():
    """Ten directions of two classes; the nearest by angle, whatever the lengths."""
    angles = np.concatenate([np.linspace(0, 0.5, 10), np.linspace(1.0, 1.5, 10)])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.random.default_rng(0).uniform(1, 9, (20, 1))

    class Data:
        pass

    Data.classes, Data.labels, Data.patients = ("a", "b"), np.repeat([0, 1], 10), None
    args = options.parse(options.linear_parser(), ["--probe", "knn"])
    predict, selected = probes.Neighbours().fit(rows.astype(np.float32), Data, args)
    assert selected["cv_auroc"] == 1 and selected["k"] in probes.NEIGHBOURS
    assert (predict(np.array([[9, 1], [0.1, 1]], np.float32)).argmax(axis=1) == [0, 1]).all()


STRANGE = ['{"sets": []}', '{"sets": 3}', "[" * 100_000, "[]", '{"templates": ["{}\\ud800"]}']


@pytest.mark.parametrize("contents", STRANGE, ids=range(len(STRANGE)))
def test_prompts_that_are_none(tmp_path, contents):
    (tmp_path / "p.json").write_text(contents)
    with pytest.raises(InputError, match=r"p\.json"):
        zeroshot.read_prompts(tmp_path / "p.json", "imagenet", ["a", "b"])
