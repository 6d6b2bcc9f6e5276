"""Puts the modules that the library needs into the package `medslip`; pyproject.toml says everything else.

In a clone the scripts import modules by names such as `utils` and `datasets`. Site-packages must not get those, which
are other people's too. So `pip install` copies what `medslip` imports, directly or not, into that package, and rewrites
its imports: `from data import cache` becomes `from medslip.data import cache`. With `pip install -e .` nothing is
copied, and the clone's own names can be imported.
"""

import ast
import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent
PACKAGE = "medslip"
OFFERED = (PACKAGE, "models", "losses", "datasets", "evaluation.metrics")  # what others may import, see docs/using.md
STAYS = ("main", "main_linear", "run_with_submitit", "run_with_submitit_linear", "setup", "tools")  # not installed
TABLE_ENTRY = re.compile(r"([a-z_.]+):[A-Za-z_]\w*")  # "module:function", what utils.resolve imports
BY_NAME = ("import_module", "__import__", "run_module", "find_spec")  # imports that `rewrite` cannot follow


def find(module: str, root: Path = ROOT) -> Path | None:
    """The file of a module of the project, by its dotted name; None for any other."""
    path = root.joinpath(*module.split("."))
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def rewrite(source: bytes, where: str, root: Path = ROOT) -> tuple[bytes, set[str]]:
    """A module's source with its imports of the project's modules as they are within the package, and their names.

    Raises SetupError for what cannot be rewritten.
    """
    lines, edits, needed = source.splitlines(keepends=True), [], set()

    def edit(node, start: int, end: int, text: str, module: str) -> None:
        if module.split(".")[0] in STAYS:
            raise SetupError(f"{where}, line {node.lineno}: imports {module}, which is not installed")
        edits.append((node.lineno - 1, start, end, text.encode()))
        needed.add(module)

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if find(alias.name, root) is None or alias.name == PACKAGE:
                    continue
                inside, first = f"{PACKAGE}.{alias.name}", alias.name.split(".")[0]
                if alias.asname or first == alias.name:
                    text = f"{inside} as {alias.asname or alias.name}"
                else:  # `import data.dicom` binds `data`
                    text = f"{inside}, {PACKAGE}.{first} as {first}"
                edit(alias, alias.col_offset, alias.end_col_offset, text, alias.name)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise SetupError(f"{where}, line {node.lineno}: write the whole name of what is imported")
            if find(node.module, root) is None or node.module == PACKAGE:
                continue
            start = re.match(rb"from +(?=\w)", lines[node.lineno - 1][node.col_offset :])
            if start is None:
                raise SetupError(f"{where}, line {node.lineno}: write this import on one line")
            at = node.col_offset + start.end()
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                needed.add(submodule if find(submodule, root) else node.module)
            edit(node, at, at, f"{PACKAGE}.", node.module)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            entry = TABLE_ENTRY.fullmatch(node.value)
            if entry is None or find(entry[1], root) is None:
                continue
            start, end = node.col_offset, node.end_col_offset
            if lines[node.lineno - 1][start + 1 : end - 1] != node.value.encode():
                raise SetupError(f"{where}, line {node.lineno}: write '{node.value}' as one plain string")
            edit(node, start + 1, start + 1, f"{PACKAGE}.", entry[1])
        elif getattr(node, "attr", getattr(node, "id", None)) in BY_NAME:
            raise SetupError(f"{where}, line {node.lineno}: import by a statement or a table's 'module:function'")
    for line, start, end, text in sorted(edits, reverse=True):
        lines[line] = lines[line][:start] + text + lines[line][end:]
    return b"".join(lines), needed


def library(root: Path = ROOT, offered: tuple[str, ...] = OFFERED) -> dict[Path, bytes]:
    """{file in the clone: its source in the package}, of what is `offered` and all that it imports."""
    found, left = {}, list(offered)
    while left:
        module = left.pop()
        file = find(module, root)
        assert file is not None, f"no module {module}"
        if file.relative_to(root) in found:
            continue
        found[file.relative_to(root)], needed = rewrite(file.read_bytes(), str(file), root)
        left += needed | {module.rpartition(".")[0]} - {""}  # a package's own __init__.py too
    return found


class BuildLibrary(build_py):
    """Setuptools' command that fills the package's folder."""

    def run(self):
        package = Path(self.build_lib, PACKAGE)
        if not self.editable_mode:
            shutil.rmtree(package, ignore_errors=True)  # of an earlier build: a module may be gone
        super().run()
        if self.editable_mode:
            return
        for file, source in library().items():
            path = package / file.relative_to(PACKAGE) if file.parts[0] == PACKAGE else package / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source)

    def get_source_files(self):
        """What a source distribution holds."""
        return sorted({*super().get_source_files(), *map(str, library())})


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildLibrary})
