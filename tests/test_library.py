"""The package `medslip`, built and installed by pip: in a process of its own, beside modules of the same names."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from tiny_run import CAPTIONS, make_run

import medslip
import setup
from conftest import REPOSITORY, picture

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pip's and pytest's

HOSTILE = ("utils", "models", "options", "checkpoints", "data", "datasets", "evaluation", "training", "towers")
CHILD = """
import json, multiprocessing, os, pathlib, signal, sys

def state():
    import cv2, torch
    handlers = [signal.getsignal(one) for one in signal.valid_signals()]
    return dict(os.environ), handlers, os.getcwd(), list(sys.path), torch.get_num_threads(), cv2.getNumThreads()

def ask(run, folder, texts):
    before = state()
    import medslip
    import data, datasets, models, utils
    assert (data.whose, datasets.whose, models.whose, utils.whose) == ("the user's",) * 4
    import medslip.datasets, medslip.evaluation.metrics, medslip.losses, medslip.models, torch
    encoder = medslip.load(run, device="cpu")
    paths = sorted(pathlib.Path(folder).iterdir())
    torch.save({"images": encoder.encode_image(paths), "texts": encoder.encode_text(texts)}, "found.pt")
    from medslip import models as ours
    assert ours.resolve(ours.SOURCES[""].encoder).__module__ == "medslip.towers.timm_encoders"
    assert type(medslip.losses.create_loss(encoder.args)).__module__ == "medslip.losses"
    assert medslip.utils.provenance({}, encoder.device, 1)["git_commit"] is None
    assert issubclass(medslip.InputError, ValueError) and state() == before
    return medslip.__file__, medslip.__version__

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(*pool.apply(ask, json.loads(sys.argv[1])))
"""


def copy_sources(target):
    """What a build needs of the repository, as a source distribution holds it."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "medslip/py.typed", *map(str, setup.library())):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, target / name)
    return target


def pip_install(source, site):
    words = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "install", *words, "--target", str(site), str(source)]
    subprocess.run(command, check=True, capture_output=True, cwd=source)


def test_installed_beside_modules_of_the_same_names(tmp_path):
    run, folder, home, site = (tmp_path / name for name in ("run", "pictures", "home", "site"))
    make_run(run)
    folder.mkdir()
    for number in range(3):
        picture(number, colour=number == 1).save(folder / f"{number}.png")
    encoder = medslip.load(run, device="cpu")
    pip_install(copy_sources(tmp_path / "source"), site)
    assert sorted(one.name for one in site.iterdir()) == ["medslip", f"medslip-{medslip.__version__}.dist-info"]
    held = {str(file.relative_to(site / "medslip")) for file in (site / "medslip").rglob("*") if file.suffix != ".pyc"}
    assert {"py.typed", "evaluation/encoder.py", "towers/swin.py"} <= held
    assert not held & {"main.py", "tools", "tests", "setup.py", "evaluation/results.py"}

    for name in HOSTILE:
        (home / name).mkdir(parents=True)
        (home / name / "__init__.py").write_text('whose = "the user\'s"\n')
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)  # the package lies in the user's repository
    (home / "child.py").write_text(CHILD)
    words = json.dumps([str(run), str(folder), CAPTIONS])
    command = [sys.executable, "child.py", words]
    set_here = ("OMP_WAIT_POLICY", "OPENCV_FOR_THREADS_NUM", "TOKENIZERS_PARALLELISM")  # by options.py
    around = {name: value for name, value in os.environ.items() if name not in set_here}
    done = subprocess.run(command, cwd=home, env={**around, "PYTHONPATH": str(site)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(site / "medslip" / "__init__.py"), medslip.__version__] and done.stderr == ""
    found = torch.load(home / "found.pt", weights_only=True)
    assert torch.equal(found["images"], encoder.encode_image(sorted(folder.iterdir())))
    assert torch.equal(found["texts"], encoder.encode_text(CAPTIONS))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("import models", "import medslip.models as models"),
        ("import os, models as m, utils", "import os, medslip.models as m, medslip.utils as utils"),
        ("import data.dicom", "import medslip.data.dicom, medslip.data as data"),
        ("import data.dicom as d", "import medslip.data.dicom as d"),
        ("def late():\n    from data import cache  # ü", "def late():\n    from medslip.data import cache  # ü"),
        ("x = 'ü'; from data.dicom import (\n    read,\n)", "x = 'ü'; from medslip.data.dicom import (\n    read,\n)"),
        ("TABLE = {'ü': ('data.dicom:read', 3)}", "TABLE = {'ü': ('medslip.data.dicom:read', 3)}"),
        ("from datasets_of_others import data", "from datasets_of_others import data"),
        ("x = 'note:that'; y = 'models: two'; data = models.utils", None),
        ("import numpy.data\nfrom torch import utils", None),
    ],
)
def test_imports_are_rewritten(tmp_path, before, after):
    for name in ("models", "utils", "data/__init__", "data/dicom", "data/cache", "tools/__init__", "main"):
        (tmp_path / f"{name}.py").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text("")
    assert setup.rewrite(before.encode(), "x.py", tmp_path)[0].decode() == (after or before)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import tools.plots", "x.py, line 1: imports tools.plots, which is not installed"),
        ("import os\nfrom main import main", "x.py, line 2: imports main, which"),
        ("from . import cache", "x.py, line 1: write the whole name"),
        ("from \\\n    data import cache", "x.py, line 1: write this import on one line"),
        ("T = 'models' ':build'", "x.py, line 1: write 'models:build' as one plain string"),
        ("import importlib\nimportlib.import_module(name)", "x.py, line 2: import by a statement or a table"),
    ],
)
def test_what_cannot_be_rewritten_is_refused(source, message):
    with pytest.raises(setup.SetupError, match=re.escape(message)):
        setup.rewrite(source.encode(), "x.py")


def test_dependencies_are_those_of_the_requirements():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    asked = (REPOSITORY / "requirements.txt").read_text().split()
    assert sorted(one for group in groups for one in group) == sorted(asked)
