"""A fitted probe that is saved and opened: its bits, its gradient, its encoder, and files that are none."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import main_linear
import options
from conftest import run_cli
from data.sets import Labelled
from evaluation import classifiers, fitted, probes
from evaluation.encoder import open_probed
from utils import InputError

NAN = float("nan")
SMALL = ("--arch", "resnet10t", "--pretrained", "none", "--image-size", "32", "--device", "cpu", "--workers", "0")


def arguments(*words):
    return options.parse(options.linear_parser(), ["--dataset", "made up", *words])


def draw(count: int, multi: bool, n: int = 90):
    """Features (n, 7), and the Labelled set they are of: two images a patient; the last class has no case."""
    rng = np.random.default_rng(count)
    rows = rng.normal(size=(n, 7)).astype(np.float32)
    if multi:
        labels = (rows[:, :count] + rng.normal(size=(n, count)) > 0.2).astype(np.float32)
        labels[rng.random(labels.shape) < 0.2] = NAN
        labels[:, -1] = 0
    else:
        labels = (rows[:, : count - 1] + 0.7 * rng.normal(size=(n, count - 1))).argmax(axis=1)
    ids = [f"i{i}" for i in range(n)]
    classes = [f"class {k}" for k in range(count)]
    return rows, Labelled(ids, labels, classes, [f"p{i // 2}" for i in range(n)], [f"{i}.png" for i in ids], "center")


def fit(name: str, count: int, multi: bool):
    """-> the classifier of a probe, and the features that it was fitted to."""
    rows, data = draw(count, multi)
    args = arguments("--probe", name, *(("--epochs", "3") if name == "sgd" else ()))
    if name == "zeroshot":
        directions = torch.nn.functional.normalize(torch.randn(count * (1 + multi), 7), dim=1)
        return classifiers.Cosine(directions, 14.2857, multi), rows
    table = np.stack([rows] * 4, axis=1) if name == "medslip" else rows
    probe = probes.choose(args, len(rows), multi)
    return (probe.fit_findings if multi else probe.fit)(table, data, args)[0], rows


def save(classifier, count: int, folder, temperature=None):
    about = {"width": 7}
    fitted.save_fitted(
        fitted.Fitted(classifier, [f"class {k}" for k in range(count)], "pooled", temperature, about), folder
    )


CASES = [(name, count, False) for name in options.PROBES for count in (3, 4)]
CASES += [(name, 4, True) for name in options.PROBES if name != "medslip"]


@pytest.mark.parametrize(("name", "count", "multi"), CASES)
def test_what_is_saved_is_what_was_fitted(tmp_path, name, count, multi):
    """The same bits for any number of rows, and a gradient of scores that are the probabilities' own."""
    classifier, rows = fit(name, count, multi)
    save(classifier, count, tmp_path)
    opened = fitted.open_fitted(tmp_path)
    assert opened.multi == multi and opened.features == "pooled" and opened.temperature is None
    for some in (rows, rows[:1], rows[:5]):
        before, after = classifier(some), opened(some)
        assert after.shape == (len(some), count) and after.tobytes() == before.tobytes()
        assert opened.calibrated(some).tobytes() == before.tobytes()
    if name == "knn":
        with pytest.raises(InputError, match="no gradient"):
            opened.scores(torch.from_numpy(rows))
        return
    features = torch.from_numpy(rows).requires_grad_()
    scores = opened.scores(features)
    found = torch.sigmoid(scores) if multi else scores.softmax(dim=1)
    assert found.detach().numpy() == pytest.approx(before := opened(rows), abs=1e-12, nan_ok=True)
    scores[:, 0].sum().backward()
    assert features.grad.isfinite().all() and (features.grad != 0).any()
    assert multi or before.sum(axis=1) == pytest.approx(1)


@pytest.mark.parametrize("count", [2, 3])
def test_logistic_and_knn_have_the_bits_of_scikit_learn(count):
    rows, data = draw(count + 1, False)
    unseen = np.random.default_rng(9).normal(size=(33, 7)).astype(np.float32)
    logistic = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=2000))
    nearest = KNeighborsClassifier(5, metric="cosine", algorithm="brute", weights=classifiers.votes)
    for model, ours in (
        (logistic, probes.fit_plain(rows, data, 0.3)),
        (nearest, probes.keep_neighbours(rows, data, 5)),
    ):
        model.fit(rows.astype(np.float64), data.labels)
        assert (ours(unseen)[:, :count] == model.predict_proba(unseen.astype(np.float64))).all()
        assert (ours(unseen)[:, count] == 0).all()  # a class without training cases


def test_damaged_and_foreign_files(tmp_path):
    classifier, _ = fit("logistic", 3, False)
    save(classifier, 3, tmp_path)
    path = tmp_path / fitted.FILE
    whole = path.read_bytes()
    tensors = load_file(path)
    metadata = json.loads(json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]["medslip"])

    def write(changed: dict, found=tensors):
        metadata_ = {**metadata, "tensors": fitted.tensors_crc(found[one] for one in sorted(found)), **changed}
        save_file(found, path, {"medslip": json.dumps(metadata_)})

    def refused(why: str):
        with pytest.raises(InputError, match=why) as caught:
            fitted.open_fitted(tmp_path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    write({})
    fitted.open_fitted(tmp_path)
    for text in (b"", whole[:100], whole[:-1], b"\xff" * 64, b"[" * 10_000):
        path.write_bytes(text)
        refused("damaged, or no probe")
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused("its numbers are altered")
    save_file(tensors, path)  # another program's
    refused("damaged, or no probe")
    for changed in ({"classes": ["a"]}, {"classes": 3}, {"features": "x"}, {"about": {"width": 8}}, {"classifier": 1},
                    {"classifier": {"kind": "os:system"}}, {"temperature": "hot"}, {"about": []}):  # fmt: skip
        write(changed)
        refused("damaged, or no probe")
    write({}, {**tensors, "weight": tensors["weight"][:3].clone()})
    refused("damaged, or no probe")
    path.unlink()
    refused("no such file")


def test_the_encoder_of_a_probe(folders, tmp_path, capsys):
    """Random by the seed, and of a checkpoint: which may move, and must not change."""
    words = ("--catalog", folders, "--dataset", "imagenet", "--amp", "off", "--batch-size", "12")

    def run(out, *more):
        code, _, errors = run_cli(
            capsys, main_linear.main, options.linear_parser, "--output-dir", tmp_path / out, *words, *SMALL, *more
        )
        assert code == 0, errors
        test = torch.load(tmp_path / out / "features.pt", weights_only=True)["test"]
        shown = json.loads((tmp_path / out / "results.json").read_text())
        return test["features"], [str(tmp_path / "folders" / "val" / one) for one in test["ids"]], shown

    features, paths, results = run("random", "--seed", "3")
    torch.manual_seed(8)
    encoder = open_probed(tmp_path / "random", amp="off")
    assert encoder.fit == results["encoder"]["fit"] == "center256" and encoder.args.image_size == 32
    assert [one["p_label"] for one in results["easiest"]] == sorted(
        (one["p_label"] for one in results["easiest"]), reverse=True
    )
    assert torch.equal(encoder.encode_image(paths, projected=False, batch_size=12), features)

    state = encoder.model.state_dict()
    torch.save({"model": state, "args": {"arch": "resnet10t"}}, tmp_path / "first.pt")
    features, paths, _ = run("loaded", "--pretrained", tmp_path / "first.pt")
    assert torch.equal(open_probed(tmp_path / "loaded", amp="off").encode_image(paths, batch_size=12), features)
    (tmp_path / "first.pt").rename(tmp_path / "moved.pt")
    with pytest.raises(InputError, match=r"first.pt: the checkpoint that .* is not there any more"):
        open_probed(tmp_path / "loaded")
    assert open_probed(tmp_path / "loaded", weights=tmp_path / "moved.pt").args.pretrained == str(tmp_path / "moved.pt")
    state["image_projection.weight"][0, 0] += 1
    torch.save({"model": state, "args": {"arch": "resnet10t"}}, tmp_path / "first.pt")
    with pytest.raises(InputError, match="not the weights that"):
        open_probed(tmp_path / "loaded")


def test_a_probe_that_is_a_mere_function_is_not_saved():
    args = SimpleNamespace(probe="mine", features="pooled")
    assert main_linear.keep(args, None, lambda rows: rows, {}, None, {}, {}) == (None, None)
    assert not classifiers.can_be_saved(classifiers.Findings({0: lambda rows: rows}, 1))
