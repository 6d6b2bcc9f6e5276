"""docs/notebook.ipynb runs from top to bottom in a kernel of its own, and what it prints is what it shows."""

import re

import nbformat
from conftest import REPOSITORY
from nbclient import NotebookClient
from scripts import HANG

NOTEBOOK = REPOSITORY / "docs" / "notebook.ipynb"


def printed(notebook) -> str:
    """All that its cells printed."""
    outputs = [one for cell in notebook.cells for one in cell.get("outputs", ())]
    return "".join(one["text"] for one in outputs if one.get("name") == "stdout")


def test_the_notebook_runs_as_it_is_shown():
    shown = nbformat.read(NOTEBOOK, as_version=4)
    assert len(shown.cells) == 10 and NOTEBOOK.stat().st_size < 200_000
    # No path of the machine that it was run on.
    assert not re.search(r"/tmp/|/home/", NOTEBOOK.read_text()) and str(NOTEBOOK.parent) not in NOTEBOOK.read_text()
    done = nbformat.read(NOTEBOOK, as_version=4)
    at = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(done, kernel_name="python3", startup_timeout=HANG, resources=at).execute()
    numbers = r"\d+\.\d+"
    assert re.sub(numbers, "0", printed(done)) == re.sub(numbers, "0", printed(shown))
    zero_shot, frequent, probe = (float(one) for one in re.findall(r"(?:accuracy|class) ([\d.]+)", printed(done)))
    assert zero_shot > frequent and probe > frequent
    pictures = [one for cell in done.cells for one in cell.get("outputs", ()) if "image/png" in one.get("data", {})]
    assert len(pictures) == 2
