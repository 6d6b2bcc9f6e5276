"""Published models in a folder that are damaged or hostile."""

import json
from pathlib import Path

import torch


def edit(path: Path, **changes) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class Harmful:
    """An object whose pickle calls a function."""

    def __reduce__(self):
        return print, ("this code was run",)


def code(folder: Path) -> None:
    """Replace the weights by a file that would run code."""
    (folder / "model.safetensors").unlink()
    torch.save({"x": Harmful()}, folder / "pytorch_model.bin")
