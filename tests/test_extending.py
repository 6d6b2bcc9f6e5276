"""docs/EXTENDING.md, as written: its files and lines are put into a copy of the project, and its commands run there."""

import importlib.util
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, make_roco, picture
from PIL import Image
from safetensors import safe_open

PAGE = (REPOSITORY / "docs" / "EXTENDING.md").read_text()
SECTIONS = {text.splitlines()[0]: text for text in PAGE.split("\n## ")[1:]}
PARTS = ("*.py", "data", "towers", "training", "evaluation", "tools", "dataset_catalog.json", "tests/scripts.py")
SMALL = {  # for what a command leaves open
    "main.py": "--arch test_efficientnet --pretrained none --text-model tiny --image-size 32 --epochs 1 --batch-size 8 "
    "--ssl-mlp-dim 16 --ssl-emb-dim 8 --workers 0 --device cpu --cache none --amp off",
    "main_linear.py": "--image-size 32 --workers 0 --device cpu --amp off",
    "tools/export.py": "",
}


def blocks(section: str) -> list[tuple[str, str, str]]:
    """Its blocks of code: (language, text, the words before it)."""
    parts = re.split(r"```(\w+)\n(.*?)```\n", section, flags=re.DOTALL)
    return list(zip(parts[1::3], parts[2::3], parts[0::3], strict=False))


def apply(section: str, folder) -> list[list[str]]:
    """Write a section's files, put its lines below the ones that open their tables -> its commands."""
    commands = []
    for language, text, before in blocks(section):
        path = re.match(r"# (\S+)\n", text)
        if language == "bash":
            commands += [line.split() for line in text.splitlines()]
        elif path:
            (folder / path[1]).parent.mkdir(exist_ok=True)
            (folder / path[1]).write_text(text)
        else:
            table, name = re.findall(r"(?:`(\w+)` of )?`([\w./]+\.(?:py|json))`", before)[-1]
            opened = re.compile(rf"^{table + ' = ' if table else ''}{{.*\n", re.MULTILINE)
            file = folder / name
            new, count = opened.subn(lambda found, text=text: found[0] + text, file.read_text(), count=1)
            assert count == 1 and len(text.splitlines()) == 1, f"{name} has no table {table}"
            file.write_text(new)
    return commands


def make_project(folder) -> None:
    """A copy of the project; in data/ a ROCO tree, and pictures of two classes with a CSV file for each split."""
    for part in PARTS:
        for source in REPOSITORY.glob(part):
            target = folder / source.relative_to(REPOSITORY)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
    make_roco(folder / "data" / "roco", train=16, validation=4)
    mine = folder / "data" / "mine"
    mine.mkdir()
    for split, count in (("train", 24), ("test", 12)):
        rows = []
        for i in range(count):
            rows.append((f"{split}{i}.png", ("dark", "bright")[i % 2], f"{split} patient {i // 2}"))
            pixels = np.asarray(picture(i + 100 * (split == "test"))) // 3 + 120 * (i % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(mine / rows[-1][0])
        pd.DataFrame(rows, columns=["path", "label", "patient"]).to_csv(mine / f"{split}.csv", index=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The folder of the extended copy, after every command of the page."""
    folder = tmp_path_factory.mktemp("extended")
    make_project(folder)
    commands = [words for section in SECTIONS.values() for words in apply(section, folder)]
    found = importlib.util.spec_from_file_location("extended_scripts", folder / "tests" / "scripts.py")
    extended = importlib.util.module_from_spec(found)  # it starts the scripts of the project that it lies in
    found.loader.exec_module(extended)
    with extended.Scripts() as scripts:
        for _, script, *words in commands:
            for flag, value in re.findall(r"(--\S+) (\S+)", SMALL[script]):
                words += [] if flag in words else [flag, value]
            code, printed, errors = scripts.run(script, *words, cwd=folder)
            assert code == 0, f"{script} {' '.join(words)}\n{printed}{errors}"
    return folder


@pytest.mark.parametrize("name", SECTIONS)
def test_a_door_takes_one_file_one_line_and_less_than_thirty_in_all(name):
    code = [text for language, text, _ in blocks(SECTIONS[name]) if language == "python"]
    assert [text.startswith("# ") for text in code] == [True, False]
    assert sum(len(text.splitlines()) for text in code) < 30


def test_a_data_set_type_and_a_probe(project):
    plain, nearest = (json.loads((project / "runs" / run / "results.json").read_text()) for run in ("mine", "nearest"))
    for results in (plain, nearest):
        assert (results["n_train"], results["n_test"], results["classes"]) == (24, 12, ["bright", "dark"])
        assert results["audit"]["patients_in_both"] == 0
    assert nearest["selected"]["probe"] == "nearest_mean" and nearest["macro"]["auroc"] > 0.5
    saved = [(project / "runs" / run / "probe.safetensors").exists() for run in ("mine", "nearest")]
    assert saved == [True, False] and plain["calibration"]["temperature"] > 0 and nearest["calibration"] is None


def test_an_objective(project):
    (line,) = (project / "runs" / "siglip" / "log.txt").read_text().splitlines()
    line = json.loads(line)
    assert 0 < line["train_siglip_loss"] == line["train_loss"] and "val_score" in line
    state = torch.load(project / "runs" / "siglip" / "checkpoint.pt", weights_only=True)["model"]
    assert {key.split(".")[0] for key in state} & {"text_encoder", "ssl_head"} == {"text_encoder"}


def test_a_source_of_encoders(project):
    contents = torch.load(project / "runs" / "torchvision" / "checkpoint.pt", weights_only=True)
    assert contents["args"]["arch"] == "torchvision:resnet18" and contents["args"]["normalize"] == "timm"
    assert contents["model"]["image_encoder.layer4.1.conv2.weight"].shape == (512, 512, 3, 3)


def test_an_export_format(project):
    state = torch.load(project / "runs" / "siglip" / "checkpoint_best.pt", weights_only=True)["model"]
    with safe_open(project / "exported" / "siglip" / "image_tower.safetensors", "pt") as file:
        assert file.metadata() == {"arch": "test_efficientnet", "image_size": "32", "normalize": "imagenet"}
        names = set(file.keys())
        assert names == {key for key in state if key.startswith("image_")}
        assert all(torch.equal(file.get_tensor(key), state[key]) for key in names)
