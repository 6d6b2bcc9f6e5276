"""Checkpoint layouts: one table of all forms in which these weights are published or saved, and one loader for them.

A layout says how its files are recognised, how their keys are renamed to the model's, which keys are ignored on
purpose, and which parts of the model they must fill. Everything is read with `torch.load(weights_only=True)` or
safetensors, so that no file can run code.
"""

import argparse
import io
import json
import os
import re
import urllib.error
import urllib.request
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from distributed import on_rank0
from utils import InputError, atomic_file, logger, read_text

MEDCLIP_URL = "https://storage.googleapis.com/pytrial/"
MEDCLIP_ZIPS = {"medclip_vit": "medclip-vit-pretrained.zip", "medclip_resnet": "medclip-pretrained.zip"}
WEIGHTS, SAFE = "pytorch_model.bin", "model.safetensors"
IN_A_FOLDER = (SAFE, f"{SAFE}.index.json", WEIGHTS)  # the first that is there is taken
MAX_SWELLING = 100  # how much larger than its compressed form a zip's member may be: weights hardly compress

MEDCLIP_RENAMES = (
    (r"^vision_model\.model\.fc\.", "image_projection."),
    (r"^vision_model\.projection_head\.", "image_projection."),
    (r"^vision_model\.model\.", "image_encoder."),
    (r"^text_model\.projection_head\.", "text_projection."),
    (r"^text_model\.model\.", "text_encoder."),
)
# Parts that a checkpoint may have and a model may lack; any other key that the model does not know is an error.
PARTS = (
    "image_encoder",
    "image_projection",
    "text_encoder",
    "text_projection",
    "ssl_head",
    "logit_scale",
    "logit_bias",
)
OPEN_CLIP_RENAMES = (
    (r"^visual\.trunk\.", "image_encoder."),
    (r"^visual\.head\.", "image_projection."),
    (r"^visual\.proj$", "image_projection.weight"),
    (r"^visual\.", "image_encoder."),
    (r"^text\.transformer\.resblocks\.", "text_encoder.transformer.resblocks."),
    (r"^text\.transformer\.", "text_encoder."),  # Hugging Face's
    (r"^text\.proj\.", "text_projection."),
    (r"^(text\.)?text_projection$", "text_projection.weight"),
    (r"^(text\.)?text_projection\.", "text_projection."),
    (r"^text\.", "text_encoder."),
    (r"^(transformer|token_embedding|ln_final)\.", r"text_encoder.\1."),
    (r"^positional_embedding$", "text_encoder.positional_embedding"),
)
SLIP_TEXT = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")


@dataclass(frozen=True)
class Layout:
    name: str
    # How a key starts in files of this layout, and in no other that comes later in LAYOUTS.
    marker: str | tuple[str, ...]
    renames: tuple[tuple[str, str], ...]  # (pattern, replacement): the first pattern that matches a key is replaced
    fills: tuple[str, ...]  # parts of the model whose weights the file must have
    ignores: tuple[str, ...] = ()  # prefixes of keys that are ignored on purpose
    turned: tuple[str, ...] = ()  # keys of matrices that features are multiplied with from the left


LAYOUTS = (  # the first whose marker is found is taken
    Layout("MedSLIP", "image_encoder.", (), ("image_encoder", "image_projection")),
    # What a source of towers has read by itself. An image tower may come without a projection.
    Layout("published", "published.", ((r"^published\.", ""),), ("image_encoder",)),
    Layout(
        "first MedSLIP code",
        "MedCLIP_model.",
        (
            *((pattern.replace("^", r"^MedCLIP_model\."), new) for pattern, new in MEDCLIP_RENAMES),
            (r"^image_mlp\.layer1\.", "ssl_head.0."),
            (r"^image_mlp\.bn1\.", "ssl_head.1."),
            (r"^image_mlp\.layer2\.", "ssl_head.3."),
            (r"^image_mlp\.bn2\.", "ssl_head.4."),
            (r"^image_mlp\.layer3\.", "ssl_head.6."),
        ),
        ("image_encoder", "image_projection", "text_encoder", "text_projection", "ssl_head", "logit_scale"),
        # Towers of SLIP that the code built and never used, and MedCLIP's scale: its loss took the outer logit_scale.
        ("visual.", *SLIP_TEXT, "image_projection", "MedCLIP_model.logit_scale"),
    ),
    Layout(
        "MedCLIP",
        "vision_model.",
        MEDCLIP_RENAMES,
        ("image_encoder", "image_projection", "text_encoder", "text_projection", "logit_scale"),
    ),
    Layout(
        "open_clip",
        ("visual.trunk.", "visual.positional_embedding", "visual.attnpool."),
        OPEN_CLIP_RENAMES,
        ("image_encoder", "image_projection", "text_encoder", "text_projection", "logit_scale"),
        ("input_resolution", "context_length", "vocab_size"),
        ("visual.proj", "text_projection", "text.text_projection"),
    ),
    Layout(
        "SLIP",
        "visual.",
        ((r"^visual\.", "image_encoder."), (r"^image_projection$", "image_projection.weight")),
        ("image_encoder",),
        # SLIP's text tower is another network, and its SimCLR head takes the pooled feature, not the projected one.
        (*SLIP_TEXT, "image_mlp.", "logit_scale"),
        ("image_projection",),
    ),
    Layout(
        "bare vision encoder",
        "model.",
        (
            (r"^model\.fc\.", "image_projection."),
            (r"^projection_head\.", "image_projection."),
            (r"^model\.", "image_encoder."),
        ),
        ("image_encoder", "image_projection"),
    ),
)

CANONICAL = tuple(  # transformers renamed Swin's and BERT's modules over the years; either spelling is accepted
    (re.compile(old), new)
    for old, new in (
        (r"\.attention\.self\.", ".attention."),
        (r"\.attention\.query\.", ".attention.q_proj."),
        (r"\.attention\.key\.", ".attention.k_proj."),
        (r"\.attention\.value\.", ".attention.v_proj."),
        (r"\.attention\.output\.dense\.", ".attention.o_proj."),
        (r"\.relative_position_bias\.relative_position_bias_table$", ".relative_position_bias_table"),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"\.gamma$", ".weight"),
        (r"\.beta$", ".bias"),
    )
)
# Keys that a file may have or lack: integer buffers, which some releases save and others compute, and BERT's pooler.
DROPPABLE = re.compile(r"(relative_position_index|position_ids|token_type_ids|num_batches_tracked)$|\.pooler\.dense\.")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.bool)


def canonical(key: str) -> str:
    for pattern, new in CANONICAL:
        key = pattern.sub(new, key)
    return key


def read(path: str | Path) -> dict:
    """The contents of a checkpoint: a file that torch.save wrote, a zip with `pytorch_model.bin`, a `.safetensors` file
    or the index of several, or a folder with one of IN_A_FOLDER.

    Raises InputError if there is no such file, or if it is damaged, holds no dict, or could run code.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        found = [path / name for name in IN_A_FOLDER if (path / name).is_file()]
        if not found:
            raise InputError(f"{path}: no checkpoint in this folder: it holds none of {', '.join(IN_A_FOLDER)}")
        path = found[0]
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.name.endswith(".safetensors.index.json"):
        return read_shards(path)
    source = path
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                check_archive(archive)
                # A file of torch.save is a zip archive too. MedCLIP's is an archive with such a file in it.
                members = [name for name in archive.namelist() if name.rsplit("/", 1)[-1] == WEIGHTS]
                if members:
                    source = io.BytesIO(archive.read(members[0]))  # in memory: no path in the archive is written to
        # SLIP's checkpoints hold an argparse.Namespace, which is plain data. No other class is allowed.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns of pickle protocols other than its own
            contents = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch raise errors of many kinds
        unsafe = "Unsupported global" in str(error) or "weights_only" in str(error)
        what = "holds more than weights, which could run code" if unsafe else "is damaged or not a checkpoint"
        raise InputError(f"{path}: {what}; it was not loaded. Give a state dict saved by torch.save") from None
    if not isinstance(contents, dict):
        raise InputError(f"{path}: holds a {type(contents).__name__}, not a dict of weights")
    return contents


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Raises InputError for a file that is damaged, cut short or none: its header is held against its size."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f"{path}: is damaged or no safetensors file ({why}); it was not loaded") from None


def read_shards(index: Path) -> dict[str, torch.Tensor]:
    """The tensors that an index names ("weight_map": tensor -> the file beside it that holds it). Raises InputError."""
    try:
        shards = json.loads(read_text(index))["weight_map"]
        plain = all(isinstance(name, str) and name == Path(name).name for name in shards.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        plain = False
    if not plain:  # a path that leads out of the folder is not followed
        raise InputError(f'{index}: no index of safetensors files: its "weight_map" must name files beside it')
    contents = {}
    for name in sorted(set(shards.values())):
        if not os.path.isfile(index.parent / name):
            raise InputError(f"{index}: names {name[:120]}, which is not there")
        contents |= read_safetensors(index.parent / name)
    absent = shards.keys() - contents.keys()
    if absent:
        raise InputError(f"{index}: the files that it names lack {first_keys(absent)}")
    return contents


def check_archive(archive: zipfile.ZipFile) -> None:
    """Verify the CRC-32 of every member, as torch.load does not, and refuse one that would unpack to far more than its
    size. Raises BadZipFile."""
    for member in archive.infolist():
        if member.file_size > max(MAX_SWELLING * member.compress_size, 1 << 26):
            raise zipfile.BadZipFile(f"{member.filename} would swell to {member.file_size:,} bytes")
    damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} is altered")


def own_arguments(contents: dict) -> dict | None:
    """The `args` of a checkpoint that main.py wrote, else None."""
    args = contents.get("args")
    return args if isinstance(args, dict) and "model" in contents else None


def translate(contents: dict, path) -> tuple[Layout, dict[str, torch.Tensor]]:
    """A checkpoint's contents -> their layout, and their weights by the model's names. Raises InputError if no layout
    fits."""
    state = contents
    for wrapper in ("model", "state_dict"):
        if isinstance(contents.get(wrapper), dict):
            state = contents[wrapper]
            break
    if not state or not all(isinstance(key, str) for key in state):
        raise InputError(f"{path}: holds no weights by name")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    layout = next((one for one in LAYOUTS if any(key.startswith(one.marker) for key in state)), None)
    if layout is None:
        names = ", ".join(one.name for one in LAYOUTS)
        first = first_keys([next(iter(state))])
        raise InputError(f"{path}: keys such as {first} belong to no layout known here ({names})")
    translated = {}
    for key, value in state.items():
        if key.startswith(layout.ignores):
            continue
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{path}: '{first_keys([key])}' is a {type(value).__name__}, not a tensor")
        if key in layout.turned:
            value = value.T.contiguous()
        if key in ("logit_scale", "logit_bias") and value.numel() == 1:
            value = value.reshape(())
        for pattern, new in layout.renames:
            renamed = re.sub(pattern, new, key)
            if renamed != key:
                key = renamed
                break
        translated[key] = value
    return layout, translated


def first_keys(keys) -> str:
    keys = sorted(keys)
    return ", ".join(repr(key)[1:-1][:120] for key in keys[:6]) + (
        f" and {len(keys) - 6} more" if len(keys) > 6 else ""
    )


def load_weights(model: torch.nn.Module, contents: dict, path, arch: str = "") -> set[str]:
    """Copy a checkpoint of any known layout into `model` (a models.MedSLIP) -> the parts of it that were loaded, those
    without weights among them.

    A part of the model that the layout lacks stays as it is, and is named in the log. Any other key that is missing,
    unexpected or of another shape raises InputError, which names the keys, before anything is copied.
    """
    args = own_arguments(contents)
    if args and arch and args.get("arch") != arch:
        raise InputError(f"{path}: a checkpoint of --arch {args.get('arch')}, but --arch {arch} was asked for")
    layout, source = translate(contents, path)
    own = model.state_dict()
    parts = {key.split(".")[0] for key in own}
    offered = {key.split(".")[0] for key in source}
    lookup = {canonical(key): key for key in own}
    matched, unexpected = {}, []
    for key, value in source.items():
        target = lookup.get(canonical(key))
        if target is not None:
            matched[target] = value
        elif not DROPPABLE.search(key) and (key.split(".")[0] in parts or key.split(".")[0] not in PARTS):
            unexpected.append(key)
    needed = [key for key in own if key.split(".")[0] in offered | set(layout.fills)]
    # A pooler that a file lacks is no loss, unless the model has one.
    missing = [key for key in needed if key not in matched and (".pooler." in key or not DROPPABLE.search(key))]
    misshapen = [
        f"{key} is {tuple(value.shape)}, not {tuple(own[key].shape)}"
        for key, value in matched.items()
        if value.shape != own[key].shape
    ]
    problems = [
        f"{title} {first_keys(keys)}"
        for title, keys in (("missing:", missing), ("unexpected:", unexpected), ("misshapen:", misshapen))
        if keys
    ]
    if problems:
        asked = f"--arch {arch}" if arch else "this model"
        raise InputError(
            f"{path} ({layout.name} layout) does not fit {asked}, is it another one? {'; '.join(problems)}"
        )
    strange = [key for key, value in matched.items() if value.dtype not in DTYPES]
    if strange:
        kind = matched[strange[0]].dtype
        raise InputError(f"{path}: {first_keys(strange)}: of {kind}, which is not loaded: save them as float32")
    broken = [key for key, value in matched.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise InputError(f"{path}: not finite: {first_keys(broken)}")
    with torch.no_grad():
        for key, value in matched.items():
            own[key].copy_(value)
    loaded = {key.split(".")[0] for key in matched}
    left = sorted(parts - loaded)
    loaded |= {name for name, part in model.named_children() if not part.state_dict()}  # nothing to load: all of it is
    logger.info(
        f"weights: {path} ({layout.name} layout)" + (f"; stay as initialised: {', '.join(left)}" if left else "")
    )
    return loaded


def download_medclip(arch: str) -> Path:
    """MedCLIP's published zip in torch's hub cache, fetched once, by rank 0. Raises InputError if it cannot be had."""
    if arch not in MEDCLIP_ZIPS:
        raise InputError(f"--pretrained medclip has weights for {' and '.join(MEDCLIP_ZIPS)}, not for --arch {arch}")
    return on_rank0(_download, MEDCLIP_URL + MEDCLIP_ZIPS[arch], Path(torch.hub.get_dir()) / "medclip")


def _download(url: str, folder: Path) -> Path:
    path = folder / url.rsplit("/", 1)[-1]
    if path.exists():
        return path
    logger.info(f"downloading {url}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            with urllib.request.urlopen(url, timeout=60) as response, open(temporary, "wb") as file:
                size, expected = 0, response.headers.get("Content-Length")
                while chunk := response.read(1 << 20):
                    file.write(chunk)
                    size += len(chunk)
            if (expected and size != int(expected)) or not zipfile.is_zipfile(temporary):
                raise OSError(f"{size} of {expected or 'an unknown number of'} bytes came, or they are no zip archive")
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"cannot download {url} ({reason}): fetch it elsewhere and put it at {path}, or give "
            "its path to --pretrained"
        ) from None
    return path
