import os
import sys
from pathlib import Path

import options  # before numpy and torch: it sets what OpenMP reads

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for the hub

import numpy as np
import pytest
from PIL import Image

from tools.make_phantoms import make_phantoms

sys.path.insert(0, str(Path(__file__).parent))  # helpers of the tests
REPOSITORY = Path(__file__).resolve().parent.parent
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
