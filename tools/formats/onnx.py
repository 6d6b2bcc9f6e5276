"""ONNX: image.onnx, and text.onnx where there is a text tower, checked by onnx and onnxruntime."""

import shutil

import onnx
import onnxruntime
import torch

from tools.formats import graphs, preprocessing
from utils import InputError, one_line

OPSET = 18
LARGEST_FILE = 2_000_000_000  # bytes: protobuf holds less than 2 GiB, so that weights of more lie in a second file


def write(encoder, folder):
    """See tools/export.py. Beside the graphs lies what preprocessing.py writes."""
    sessions = {}
    for tower, program in graphs.programs(encoder, "onnx").items():
        path = folder / f"{tower}.onnx"
        size = sum(x.numel() * x.element_size() for x in program.state_dict.values())
        try:
            torch.onnx.export(
                program, f=path, dynamo=True, verbose=False, opset_version=OPSET, external_data=size > LARGEST_FILE,
                input_names=list(graphs.INPUTS[tower]), output_names=[f"{tower}_embeddings"],
            )  # fmt: skip
            onnx.checker.check_model(path, full_check=True)
            sessions[tower] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # each of the three raises many kinds
            raise InputError(f"--to onnx: the {tower} tower cannot be written: {one_line(error)}") from None
    preprocessing.write(encoder, folder)
    shutil.copyfile(preprocessing.CLIENT, folder / preprocessing.CLIENT.name)

    def read_back(given):
        found = preprocessing.read_back(folder, given)
        for tower, session in sessions.items():
            inputs = {one.name: given[one.name].numpy() for one in session.get_inputs()}
            found[tower] = torch.from_numpy(session.run(None, inputs)[0])
        return found

    graphs.try_shapes(encoder, read_back, "onnx")
    return read_back, None
