"""Write a trained model in another format, and prove that what was written is the same model.

python tools/export.py runs/vit --to medclip --out exported/vit

RUN is a checkpoint of main.py, or a run's folder: its checkpoint_best.pt, or without one its checkpoint.pt. The export
is read back, and what it makes of pixels and token ids is compared with the model's own embeddings.
"""

import argparse
import contextlib
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch

import distributed
import utils
from evaluation.encoder import EXPORT, open_encoder
from utils import InputError, resolve

# "module:function" each, imported when it is used. The function takes an evaluation.encoder.Encoder and an empty
# folder, and writes files there. It returns two things: a function that computes from these files alone what
# `embeddings` computes with the model, of both towers or of one; and what evaluation.encoder.open_encoder needs to open
# them, the name of the file of `weights` and arguments that are not the run's, or None if it cannot. It raises
# InputError for what the format cannot hold.
FORMATS = {  # docs/EXTENDING.md adds one
    "medclip": "tools.formats.medclip:write",
    "timm": "tools.formats.timm:write",
    "open_clip": "tools.formats.open_clip:write",
    "onnx": "tools.formats.onnx:write",
    "torch": "tools.formats.torch:write",
}
LARGEST = 1e-4  # difference between the embeddings of the model and of its export


@torch.no_grad()
def main(args) -> None:
    out = Path(args.out).expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out}: is there already: give a new folder")
    encoder = open_encoder(args.run)
    model = encoder.model
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    made = [folder for folder in unfinished.parents if not folder.exists()]  # the innermost first
    try:
        unfinished.mkdir(parents=True)
        read_back, opened = resolve(FORMATS[args.to])(encoder, unfinished)
        given = inputs(model, encoder.args.image_size)
        found, own = read_back(given), embeddings(model, given)
        assert found and all(value.shape == own[name].shape for name, value in found.items()), f"{args.to}: see FORMATS"
        differences = {name: (value - own[name]).abs().max().item() for name, value in found.items()}
        for name, difference in differences.items():
            if not difference <= LARGEST:  # nor if it is no number
                raise InputError(
                    f"--to {args.to}: the {name} embeddings of what was written differ by {difference:.2g} from the "
                    f"model's, by more than {LARGEST:g}: nothing was kept"
                )
        utils.write_json(unfinished / EXPORT, describe(args.to, encoder, opened, differences))
        os.replace(unfinished, out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error}): make room, then try again") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: the export is in it
                folder.rmdir()
    print(f"{out}: {', '.join(sorted(one.name for one in out.iterdir()))}, from {encoder.path}")
    print("largest difference: " + ", ".join(f"{name} embeddings {value:.2g}" for name, value in differences.items()))


def describe(name: str, encoder, opened: dict | None, differences: dict) -> dict:
    """What stands beside an export: what it is of, and how images and texts are shown to it."""
    mean, std = encoder.mean_std
    shown = {"image_size": encoder.args.image_size, "fit": encoder.fit, "mean": list(mean), "std": list(std)}
    texts = (
        {"context_length": encoder.args.context_length, "pad_to": encoder.pad_to} if encoder.load_tokenizer else None
    )
    return {
        "format": name,
        "args": vars(encoder.args),
        "images": shown,
        "texts": texts,
        "largest_difference": differences,
        "open": opened,
    }


def inputs(model, image_size: int) -> dict[str, torch.Tensor]:
    """Two images and two captions, the second shorter, drawn from a seed."""
    draw = torch.Generator().manual_seed(0)
    given = {"pixels": torch.randn(2, 3, image_size, image_size, generator=draw)}
    if hasattr(model, "text_encoder"):
        given["input_ids"] = torch.randint(model.vocab_size, (2, 16), generator=draw)
        given["attention_mask"] = torch.ones(2, 16, dtype=torch.int64)
        given["attention_mask"][1, 9:] = 0
    return given


def embeddings(model, given: dict) -> dict[str, torch.Tensor]:
    """ "pixels" (B, 3, H, W) float, normalised, "input_ids" and "attention_mask" (B, T) -> "image", "text" (B, D)."""
    found = {"image": model.encode_image(given["pixels"])}
    if "input_ids" in given:
        found["text"] = model.encode_text(given["input_ids"], given["attention_mask"])
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN", help="a run's folder, or a checkpoint of main.py")
    parser.add_argument("--to", choices=tuple(FORMATS), required=True)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a new folder")
    distributed.run_script(main, parser.parse_args())
