"""torch.export's programs: image.pt2, and text.pt2 where there is a text tower. They hold graph and weights."""

import torch

from tools.formats import graphs, preprocessing


def write(encoder, folder):
    """See tools/export.py. Beside the programs lies what preprocessing.py writes."""
    for tower, program in graphs.programs(encoder, "torch").items():
        torch.export.save(program, folder / f"{tower}.pt2")
    preprocessing.write(encoder, folder)
    towers = {path.stem: torch.export.load(path).module() for path in folder.glob("*.pt2")}

    def read_back(given):
        found = {tower: module(*(given[name] for name in graphs.INPUTS[tower])) for tower, module in towers.items()}
        return found | preprocessing.read_back(folder, given)

    graphs.try_shapes(encoder, read_back, "torch")
    return read_back, None
