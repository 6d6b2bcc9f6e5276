"""Write a trained model in another format, and prove that what was written is the same model.

python tools/export.py runs/vit --to huggingface --out exported/vit
python tools/export.py runs/vit --to medclip --out exported/vit --probes runs/vit/calc runs/vit/mass
python tools/export.py runs/vit --to huggingface --out exported/vit --push ORG/REPO

RUN is a checkpoint of main.py, a run's folder (its checkpoint_best.pt, or without one its checkpoint.pt), or an export
that holds weights. The export is read back, and what it makes of images and captions is compared with the model's own
embeddings. They are of the run's validation split or of --images; where neither is on this disk, phantoms are drawn.
"""

import argparse
import contextlib
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import validate_repo_id

import distributed
import utils
from data import hub
from evaluation.encoder import open_encoder
from evaluation.exports import EXPORT
from tools.model_card import probe, write_card
from tools.samples import Samples, samples
from utils import InputError, one_line, resolve

# "module:function" each, imported when it is used. The function takes an evaluation.encoder.Encoder and an empty
# folder, and writes files there. It returns two things: a function that computes from these files alone, and from what
# `inputs` gives, what `expected` computes with the model, all of it or a part; and what
# evaluation.encoder.open_encoder needs to open them, the name of the file of `weights` and arguments that are not the
# run's, or None if it cannot. It raises InputError for what the format cannot hold.
FORMATS = {  # docs/EXTENDING.md adds one
    "huggingface": "tools.formats.huggingface:write",
    "medclip": "tools.formats.medclip:write",
    "timm": "tools.formats.timm:write",
    "open_clip": "tools.formats.open_clip:write",
    "onnx": "tools.formats.onnx:write",
    "torch": "tools.formats.torch:write",
}
LARGEST = 1e-4  # difference between what the model and its export make of the same inputs
OURS_ALONE = (  # arguments that say where things lie on this machine, or how the run was run on it
    "root catalog metadata cache output_dir pretrained resume evaluate device dist_url dist_backend workers print_freq "
    "model"
).split()


@torch.no_grad()
def main(args) -> None:
    out = Path(args.out).expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out}: is there already: give a new folder")
    if args.push:
        hub_ready(args.push)
    encoder = open_encoder(args.run)
    probes = [probe(Path(one).expanduser(), encoder) for one in args.probes]
    shown = samples(encoder, args.images)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    made = [folder for folder in unfinished.parents if not folder.exists()]  # the innermost first
    try:
        unfinished.mkdir(parents=True)
        read_back, opened = resolve(FORMATS[args.to])(encoder, unfinished)
        differences = compare(args.to, read_back, encoder, shown)
        utils.write_json(unfinished / EXPORT, describe(args.to, encoder, opened, differences, shown))
        write_card(unfinished, args.to, encoder, differences, shown, probes)
        os.replace(unfinished, out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error}): make room, then try again") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: the export is in it
                folder.rmdir()
    print(f"{out}: {', '.join(sorted(one.name for one in out.iterdir()))}, from {encoder.path}")
    given = f"{len(shown.images)} images" + (f" and {len(shown.captions)} captions" if shown.captions else "")
    print(f"compared on {given}, {'real' if shown.real else 'drawn'} ({shown.source})")
    print("largest difference: " + ", ".join(f"{name} {value:.2g}" for name, value in differences.items()), flush=True)
    if args.push:
        push(out, args.push)


# The proof


def inputs(encoder, shown: Samples) -> dict:
    """`images` (PIL) and their `pixels` (B, 3, S, S); with a text tower `texts` (C of them) and their `input_ids` and
    `attention_mask` (C, T), padded to the longest, or to the context length where padding takes part. Without a
    tokenizer there are no texts, and the ids are drawn."""
    given = {"images": shown.images, "pixels": encoder.pixels(shown.images)}
    if shown.captions:
        batch = encoder.tokens(shown.captions)
        assert len(batch["input_ids"]) == 1  # chunk: as many captions as samples gives are not split
        given["texts"] = shown.captions
        given |= {name: batch[name][0][batch["text_order"]] for name in ("input_ids", "attention_mask")}
    elif encoder.load_tokenizer:  # its tokenizer is not on this machine
        draw, lengths = torch.Generator().manual_seed(0), torch.arange(24, 8, -2)
        given["attention_mask"] = (torch.arange(24) < lengths[:, None]).long()
        given["input_ids"] = torch.randint(encoder.model.vocab_size, (len(lengths), 24), generator=draw)
    return given


def expected(model, given: dict) -> dict[str, torch.Tensor]:
    """What an export is compared with: `image` and `text`, the embeddings (B, D) and (C, D); `pooled` (B, width), of
    the images before the projection; `pixels` and `input_ids` as given, for formats that come with preprocessing."""
    found = {name: given[name] for name in ("pixels", "input_ids") if name in given}
    found |= {"image": model.encode_image(given["pixels"]), "pooled": model.encode_image(given["pixels"], False)}
    if "input_ids" in given:
        found["text"] = model.encode_text(given["input_ids"], given["attention_mask"])
    return found


def compare(name: str, read_back, encoder, shown: Samples) -> dict[str, float]:
    """The largest difference of each thing that `read_back` computes. Raises InputError above LARGEST."""
    given = inputs(encoder, shown)
    found, own = read_back(given), expected(encoder.model, given)
    assert found and found.keys() <= own.keys(), f"{name}: see FORMATS"
    differences = {}
    for what, value in found.items():
        same = value.shape == own[what].shape
        differences[what] = (value - own[what]).abs().max().item() if same else float("inf")
        if not differences[what] <= LARGEST:  # nor if it is no number
            raise InputError(
                f"--to {name}: '{what}' of what was written differs by {differences[what]:.2g} from the model's, by "
                f"more than {LARGEST:g}: nothing was kept"
            )
    return differences


def describe(name: str, encoder, opened: dict | None, differences: dict, shown: Samples) -> dict:
    """What stands beside an export: what it is of, and how images and texts are shown to it."""
    mean, std = encoder.mean_std
    images = {"image_size": encoder.args.image_size, "fit": encoder.fit, "mean": list(mean), "std": list(std)}
    texts = (
        {"context_length": encoder.args.context_length, "pad_to": encoder.pad_to} if encoder.load_tokenizer else None
    )
    return {
        "format": name,
        "args": {key: value for key, value in vars(encoder.args).items() if key not in OURS_ALONE},
        "images": images,
        "texts": texts,
        "largest_difference": differences,
        "compared_on": {
            "images": len(shown.images),
            "captions": len(shown.captions),
            "are": "real" if shown.real else "drawn",
            "from": shown.source,
        },
        "open": opened,
    }


# --push


def hub_ready(repository: str) -> None:
    """Raises InputError unless the name could be one, a token is at hand and the hub answers."""
    try:
        if "/" not in repository:
            raise ValueError("an owner and a name are needed: ORG/REPO")
        validate_repo_id(repository)
    except ValueError as error:  # HFValidationError is one
        raise InputError(f"--push {repository}: {one_line(error)}") from None
    if get_token() is None:
        raise InputError(f"--push {repository}: no token of the Hugging Face hub: `hf auth login`, or set HF_TOKEN")
    if not hub.reach():
        raise InputError(f"--push {repository}: {hub.why_not()}: export without --push, and push where there is one")


def push(folder: Path, repository: str) -> None:
    """Upload an export to a repository of the hub, which is made private if it is not there yet. Raises InputError."""
    try:
        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        found = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export of a MedSLIP run")
    except Exception as error:  # the hub's library, its client and the network raise many kinds
        raise InputError(
            f"--push {repository}: {one_line(error)}; the export is whole in {folder}: push it with "
            f"`hf upload {repository} {folder}`"
        ) from None
    print(f"pushed: {found.commit_url if hasattr(found, 'commit_url') else found}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN", help="a run's folder, a checkpoint of main.py, or an export that opens")
    parser.add_argument("--to", choices=tuple(FORMATS), required=True)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument("--images", metavar="FOLDER", help="compare on these images (default: of the run's data)")
    parser.add_argument(
        "--probes", nargs="+", default=[], metavar="FOLDER", help="probes of main_linear.py, for the model card"
    )
    parser.add_argument(
        "--push", metavar="ORG/REPO", help="then upload it to the Hugging Face hub; a new repository is private"
    )
    distributed.run_script(main, parser.parse_args())
