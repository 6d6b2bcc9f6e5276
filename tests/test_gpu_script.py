"""benchmarks/gpu.py in small, on the CPU: what runs where there is a GPU must not be wrong for want of one."""

import json
import sys
from types import SimpleNamespace

import options  # noqa: F401  (before torch)
import pytest
import torch
from conftest import REPOSITORY

sys.path.append(str(REPOSITORY / "benchmarks"))

import gpu
import gpu_sections


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The made-up data."""
    folder = tmp_path_factory.mktemp("gpu")
    found = run("data", folder)
    assert found["status"] is None and found["results"]
    return folder


def run(name, folder) -> dict:
    args = SimpleNamespace(out=folder / f"{name}.json", folder=folder, quick=True, device="cpu")
    threads = torch.get_num_threads()
    section = gpu_sections.Section(args)
    try:
        gpu_sections.SECTIONS[name](section)
    finally:
        torch.set_num_threads(threads)
    return json.loads(section.out.read_text())


@pytest.mark.parametrize("name", ["views", "step"])
def test_a_section(folder, name):
    found = run(name, folder)
    assert found["results"] and all(found["checks"].values()), found["checks"]


def test_a_section_that_fails_is_recorded_and_the_others_run(tmp_path, capsys):
    """There is no data in this folder."""
    args = SimpleNamespace(device="cpu", quick=True, folder=str(tmp_path), out=str(tmp_path / "gpu.json"), only=None)
    bench = gpu.Bench(args, torch.device("cpu"))
    bench.run("views")
    found = json.loads((tmp_path / "gpu.json").read_text())["sections"]["views"]
    assert found["status"] == "error" and "InputError" in found["traceback"]
    assert "views: error" in capsys.readouterr().out


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 2 and "no GPU" in capsys.readouterr().err
