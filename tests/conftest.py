import logging
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import options  # before numpy and torch: it sets what OpenMP reads

os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches for the hub
# One thread a process, its children too: models as small as the tests' gain nothing from a second, and pay for it.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
for name in list(os.environ):  # the tests may run within a job, whose process group is not theirs
    of_a_job = name.startswith(("SLURM_", "SUBMITIT_", "TORCHELASTIC_")) and name != "SLURM_CONF"  # the cluster's
    if of_a_job or name in GROUP:
        del os.environ[name]

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "programs")]  # helpers of the tests

import numpy as np
import pytest
import torch
from PIL import Image

from training import signals
import scripts as forked_scripts
from tools.phantoms import make_phantoms

REPOSITORY = forked_scripts.REPOSITORY
WORDS = ("mass", "calcification", "nodule", "effusion", "fracture", "cyst", "opacity", "lesion")


def picture(seed: int, size=(60, 48), colour: bool = False) -> Image.Image:
    """A smooth random picture, (width, height) pixels."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 6, 3) if colour else (6, 6), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.BICUBIC)


def make_roco(root: Path, train: int = 24, validation: int = 8, absent: int = 2) -> Path:
    """A ROCO tree of small pictures; the last `absent` captions of a split have no image, every fifth is coloured."""
    for split, count in (("train", train), ("validation", validation)):
        folder = root / split / "radiology"
        (folder / "images").mkdir(parents=True)
        lines = []
        for number in range(count + absent):
            key = f"ROCO_{number + (0 if split == 'train' else 50_000):05d}"
            word = WORDS[number % len(WORDS)]
            modality = ("Mammogram", "Chest x-ray", "Axial CT")[number % 3]
            lines.append(f"{key}\t {modality} showing a {word} number {number}.\n")
            if number < count:
                picture(number, colour=number % 5 == 0).save(folder / "images" / f"{key}.jpg", quality=95)
        (folder / "captions.txt").write_text("".join(lines))
        (folder / "keywords.txt").write_text("".join(f"{line.split()[0]}\t\tview\timage\n" for line in lines))
    return root


@pytest.fixture(autouse=True)
def as_before():
    """Each test begins as the first one did, whatever ran before it."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    handlers = {one: signal.getsignal(one) for one in signals.SIGNALS}
    level, root = logging.getLogger("medslip").level, logging.getLogger().handlers[:]
    yield
    for one, handler in handlers.items():  # a run that was interrupted leaves them ignored
        signal.signal(one, handler)
    logging.getLogger("medslip").setLevel(level)
    logging.getLogger().handlers[:] = root


@pytest.fixture(scope="session")
def script_server():
    with forked_scripts.Scripts() as server:
        yield server


@pytest.fixture
def scripts(script_server):
    """Starts the repository's scripts as processes of their own (scripts.Scripts); what a test leaves is ended."""
    first = len(script_server.runs)
    yield script_server
    for run in script_server.runs[first:]:
        run.end()


@pytest.fixture
def roco(tmp_path):
    return make_roco(tmp_path / "roco")


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """A tiny tree of both phantom sets."""
    out = tmp_path_factory.mktemp("phantoms") / "tree"
    make_phantoms(out, seed=0, pairs=8, validation_pairs=4, calc=(30, 12), mass=(30, 12), workers=1)
    return out


@pytest.fixture
def folders(tmp_path):
    """An image folder of two classes, bright and dark, 12 training and 6 test images each."""
    root = tmp_path / "folders"
    for split, count in (("train", 12), ("val", 6)):
        for shift, name in ((0, "dark"), (90, "bright")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.asarray(picture(number + shift + 1000 * (split == "val"))) // 3 + shift
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number}.png")
    catalog = tmp_path / "catalog.json"
    catalog.write_text('{"imagenet": {"path": "folders", "type": "imagefolder", "train": "train", "test": "val"}}')
    return catalog


def put(home: Path, name: str, source: Path, *files: str) -> None:
    """Put some files of a folder into the hub's cache in `home`, where its library would have put them."""
    root, commit = home / "hub" / f"models--{name.replace('/', '--')}", "a" * 40
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    (root / "snapshots" / commit).mkdir(parents=True)
    for file in files:
        shutil.copy(source / file, root / "snapshots" / commit)


def run_cli(capsys, main, parser, *words) -> tuple[int, str, str]:
    """Run a script's main in this process as its command line would -> exit code, stdout, stderr."""
    import distributed

    capsys.readouterr()
    code = 0
    try:
        distributed.run_script(main, options.parse(parser(), [str(word) for word in words]))
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err
