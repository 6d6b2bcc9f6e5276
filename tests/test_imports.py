"""Imports run one way: scripts -> evaluation -> training -> models, losses -> data -> utils.

Every module is parsed; imports inside functions and names in tables count too. Tests, benchmarks and experiments may
import anything.
"""

import ast
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from setup import TABLE_ENTRY

# A module imports from the floors below its own, and from its own package.
FLOORS = (
    {"options"},  # anyone may import the arguments, and they import the standard library alone: no torch
    {"utils"},
    {"distributed"},  # any process may ask the others something, so this is all but the lowest
    {"data", "tools.plots"},  # the plots draw what they are given
    {"datasets", "checkpoints"},  # the catalog hands out readers of data/; the layouts of weights know no model
    {"towers"},  # a source of encoders may read its weights' shapes
    {"models", "losses"},
    {"training"},  # an update asks the model for its embeddings, so training may import models
    {"evaluation"},
    {"medslip"},  # the library's face
    {"main", "main_linear", "run_with_submitit", "setup"},
    {"run_with_submitit_linear"},  # the launcher with another script
    {"tools"},  # run by hand: the plots aside, nothing imports them
)
# Tables hold "module:function" names, which count as imports of the module with the table. Those of options.py are
# looked up elsewhere: objectives by losses.py, probes by evaluation/.
WINGS = ("data", "towers", "training", "evaluation", "medslip", "tools")
TOP_LEVEL = set().union(*FLOORS[:-1]) - {"data", "towers", "training", "evaluation", "medslip", "tools.plots"}


def read_imports(root: Path) -> dict[str, set[str]]:
    """{module: what it imports}, for all modules of the project under `root`, by their dotted names."""
    files = [
        *root.glob("*.py"),
        *(file for wing in WINGS for file in (root / wing).rglob("*.py")),
    ]
    names = {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files}
    found = {}
    for name, file in names.items():
        found[name] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}, line {node.lineno}: write the whole name of what is imported"
                for alias in node.names:
                    submodule = f"{node.module}.{alias.name}"
                    found[name].add(submodule if submodule in names else node.module)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and name != "options":
                entry = TABLE_ENTRY.fullmatch(node.value)
                found[name] |= {entry[1]} & names.keys() - {name} if entry else set()
    return found


def floor_of(module: str) -> int | None:
    """The floor of a module of the project; None for any other."""
    for name in (module, module.split(".")[0]):
        for number, floor in enumerate(FLOORS):
            if name in floor:
                return number
    return None


def against_the_direction(imports: dict[str, set[str]]) -> list[str]:
    """The imports that do not lead to a lower floor, or to the importer's own package."""
    found = []
    for importer, modules in imports.items():
        here = floor_of(importer)
        assert here is not None, f"{importer}: give it a place in FLOORS"
        for module in modules:
            floor, own = floor_of(module), module.split(".")[0] == importer.split(".")[0]
            if floor is not None and (floor > here or (floor == here and not own)):
                found.append(f"{importer} imports {module}")
    return sorted(found)


def find_cycle(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty if there are none."""
    finished = set()

    def follow(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :] + [module]
        if module in finished:
            return []
        for other in sorted(imports[module] & imports.keys()):
            if circle := follow(other, [*path, module]):
                return circle
        finished.add(module)
        return []

    return next((circle for module in sorted(imports) if (circle := follow(module, []))), [])


def test_the_projects_imports_run_one_way():
    imports = read_imports(REPOSITORY)
    assert len(imports) > 50
    assert against_the_direction(imports) == [] and find_cycle(imports) == []
    assert imports["options"] <= sys.stdlib_module_names


def test_the_top_level_holds_these_modules_alone():
    assert {file.stem for file in REPOSITORY.glob("*.py")} == TOP_LEVEL


@pytest.mark.parametrize(
    ("file", "line", "arrow"),
    [
        ("options.py", "import utils", "options imports utils"),
        ("utils.py", "from data.images import read_image", "utils imports data.images"),
        ("data/views.py", "def late():\n    from models import MedSLIP", "data.views imports models"),
        ("losses.py", "import models", "losses imports models"),
        ("utils.py", "TYPES = {'roco': 'data.images:read_image'}", "utils imports data.images"),
        ("training/update.py", "from evaluation import metrics", "training.update imports evaluation.metrics"),
        ("evaluation/probes.py", "import main_linear", "evaluation.probes imports main_linear"),
        ("main.py", "from tools import plots, compare", "main imports tools.compare"),
        ("tools/plots.py", "from tools.compare import compare", "tools.plots imports tools.compare"),
    ],
)
def test_an_import_against_the_direction_is_found(tmp_path, file, line, arrow):
    for name in (
        "options",
        "utils",
        "data/images",
        "models",
        "losses",
        "evaluation/metrics",
        "main_linear",
        "tools/plots",
        "tools/compare",
        file.removesuffix(".py"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text("from utils import InputError\n" if name == "main_linear" else "")
    assert against_the_direction(read_imports(tmp_path)) == []
    (tmp_path / file).write_text(line)
    assert against_the_direction(read_imports(tmp_path)) == [arrow]


def test_a_circle_is_found(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("")
    (tmp_path / "data" / "views.py").write_text("from data import images")
    (tmp_path / "data" / "images.py").write_text("import numpy\nfrom data.cache import Cache")
    (tmp_path / "data" / "cache.py").write_text("")
    assert find_cycle(read_imports(tmp_path)) == []
    (tmp_path / "data" / "cache.py").write_text("def late():\n    from data.views import crop")
    assert find_cycle(read_imports(tmp_path)) == ["data.cache", "data.views", "data.images", "data.cache"]
