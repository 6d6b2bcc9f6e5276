"""Checkpoint layouts: one table of all forms in which these weights are published or saved, and one loader for them.

A layout says how its files are recognised, how their keys are renamed to the model's, which keys are ignored on
purpose, and which parts of the model they must fill. data/weights.py reads them, so that no file can run code.
"""

import re
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from data.weights import check_archive as check_archive
from data.weights import first_keys
from data.weights import read as read
from distributed import on_rank0
from utils import InputError, atomic_file, logger

MEDCLIP_URL = "https://storage.googleapis.com/pytrial/"
MEDCLIP_ZIPS = {"medclip_vit": "medclip-vit-pretrained.zip", "medclip_resnet": "medclip-pretrained.zip"}

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
    Layout(
        "Mammo-CLIP",
        "image_encoder._conv_stem.",
        (
            (r"^image_encoder\._blocks\.(\d+)\._", r"image_encoder.blocks.\1."),
            (r"^image_encoder\._", "image_encoder."),
            (r"^text_encoder\.text_encoder\.", "text_encoder."),
            (r"^(image|text)_projection\.projection\.", r"\1_projection."),
        ),
        ("image_encoder", "image_projection", "text_encoder", "text_projection", "logit_scale"),
    ),
    Layout(
        "GLoRIA",
        "gloria.img_encoder.",
        (
            (r"^gloria\.img_encoder\.model\.", "image_encoder."),
            (r"^gloria\.img_encoder\.global_embedder\.", "image_projection."),
            (r"^gloria\.text_encoder\.model\.", "text_encoder."),
        ),
        ("image_encoder", "image_projection", "text_encoder"),
        ("gloria.img_encoder.local_embedder.",),  # of regions, which are compared with words
    ),
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


def medclip_file(arch: str) -> Path:
    """Where torch's hub cache has MedCLIP's published zip, or would have it. Raises InputError for another `arch`."""
    if arch not in MEDCLIP_ZIPS:
        raise InputError(f"--pretrained medclip has weights for {' and '.join(MEDCLIP_ZIPS)}, not for --arch {arch}")
    return Path(torch.hub.get_dir()) / "medclip" / MEDCLIP_ZIPS[arch]


def download_medclip(arch: str) -> Path:
    """MedCLIP's published zip in torch's hub cache, fetched once, by rank 0. Raises InputError if it cannot be had."""
    path = medclip_file(arch)
    return on_rank0(_download, MEDCLIP_URL + path.name, path)


def _download(url: str, path: Path) -> Path:
    if path.exists():
        return path
    logger.info(f"downloading {url}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
