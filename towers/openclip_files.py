"""What lies beside the weights of open_clip's models: configurations and tokenizers, on the hub, in a folder."""

import difflib
import json
import re
import tempfile
from pathlib import Path

import open_clip
from huggingface_hub import hf_hub_download, snapshot_download
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from transformers import AutoConfig

from data import hub
from data.tokens import PaddingTokenizer, pack, unpack
from distributed import on_rank0
from towers.openclip import POOLERS
from towers.parts import Published
from utils import InputError, logger

CONFIG = "open_clip_config.json"
WEIGHTS = (  # in a folder or on the hub: the first that is there is taken
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)


def split(arch: str) -> tuple[str, str]:
    """ "open_clip:local-dir:FOLDER" -> ("local-dir:", FOLDER); ("", NAME) for a name of open_clip's own."""
    name = arch.partition(":")[2]
    kind = next((one for one in ("hf-hub:", "local-dir:") if name.startswith(one)), "")
    return kind, name.removeprefix(kind) if kind else name.replace("/", "-")


def from_hub(repository: str, names: tuple[str, ...], what: str) -> Path:
    """The first of the files `names` that a repository of the hub, or the hub's cache, has. Raises InputError."""
    for name in names:
        try:
            return Path(hub.load(hf_hub_download, repository, filename=name))
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
    raise InputError(
        f"{what}: no {names[-1]} of {repository} ({reason}): fetch it elsewhere, into the hub's cache or a "
        "folder that is given as open_clip:local-dir:FOLDER"
    )


# What is known of a model before it is built


def published(arch: str, pretrained: str | None) -> Published:
    """From open_clip's table, or from the `open_clip_config.json` of a folder or repository. Raises InputError."""
    kind, name = split(arch)
    tag = (pretrained or "").partition("open_clip:")[2]
    if kind:
        if tag:
            raise InputError(f"--pretrained {pretrained}: the weights of --arch {arch} are its own, leave it out")
        folder = Path(name).expanduser()
        path = folder / CONFIG if kind == "local-dir:" else from_hub(name, (CONFIG,), f"--arch {arch}")
        contents = read_config(arch, path)
        model, shown, folder = contents["model_cfg"], contents.get("preprocess_cfg") or {}, path.parent
    else:
        model, folder = open_clip.get_model_config(name), None
        if model is None:
            close = difflib.get_close_matches(name.lower(), [one.lower() for one in open_clip.list_models()], 4, 0.4)
            hint = [one for one in open_clip.list_models() if one.lower() in close]
            raise InputError(f"--arch {arch}: open_clip has no such model: it has {', '.join(hint or ['ViT-B-32'])}")
        shown = tag_settings(arch, name, pretrained, tag)
    check(arch, model)
    try:
        size, shown = model["vision_cfg"].get("image_size", 224), merge_preprocess_dict(PreprocessCfg(), shown)
        width, height = size if isinstance(size, (list, tuple)) else (size, size)
        mean, std = (
            [float(one)] * 3 if isinstance(one, (int, float)) else [float(channel) for channel in one]
            for one in (shown["mean"], shown["std"])
        )
        fit = [shown["resize_mode"], "bilinear" if shown["interpolation"] == "bilinear" else "bicubic"]
        if len(mean) != 3 or len(std) != 3 or fit[0] not in ("shortest", "squash", "longest"):
            raise ValueError("mean and std have three numbers, and resize_mode is shortest, squash or longest")
        known = Published(
            config={"model_cfg": model, "hf_config": text_config(model["text_cfg"], folder)},
            mean=mean,
            std=std,
            image_size=int(width),
            fit=" ".join([*fit, *([str(int(shown["fill_color"]))] if shown["fill_color"] else [])]),
            pretrained="published" if kind else "none",
            context_length=int(model["text_cfg"].get("context_length", 77)),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"--arch {arch}: its configuration cannot be used: {error}") from None
    if width != height:
        raise InputError(f"--arch {arch}: takes images of {width} x {height} pixels, and here they are square")
    return known


def read_config(arch: str, path: Path) -> dict:
    if not path.parent.is_dir():
        raise InputError(f"--arch {arch}: no such folder")
    if not path.is_file():
        raise InputError(f"--arch {arch}: the folder has no {CONFIG}: it is not one of open_clip's")
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(contents["model_cfg"][key], dict) for key in ("vision_cfg", "text_cfg")):
            raise KeyError("vision_cfg")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a configuration of open_clip ({type(error).__name__}: {error})") from None
    return contents


def tag_settings(arch: str, name: str, pretrained: str | None, tag: str) -> dict:
    """What open_clip's table says of the weights of a tag: {} without one."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    known = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    if (tag and not known) or pretrained in ("published", "timm", "open_clip:"):
        has = f"open_clip has {', '.join(tags)}" if tags else "open_clip has none for it"
        raise InputError(f"--pretrained {pretrained}: no weights of that tag for --arch {arch}: {has}")
    if tag and known.get("quick_gelu", False) != open_clip.get_model_config(name).get("quick_gelu", False):
        logger.warning(
            f"--pretrained {pretrained}: trained with the other GELU than --arch {arch} has: see whether open_clip has "
            f"{name.removesuffix('-quickgelu') if name.endswith('-quickgelu') else name + '-quickgelu'}"
        )
    return known


def check(arch: str, model: dict) -> None:
    """Raises InputError for what cannot be built here."""
    text, image = model["text_cfg"], model["vision_cfg"]
    pooler = text.get("hf_pooler_type", "mean_pooler")
    for wrong, why in (
        ("multimodal_cfg" in model or text.get("embed_cls"), "CoCa, which writes captions, is not supported"),
        (text.get("hf_model_name") and pooler not in POOLERS, f"the text pooling {pooler} is not supported"),
        (image.get("timm_pool") in ("abs_attn", "rot_attn"), f"{image.get('timm_pool')} pooling is not supported"),
    ):
        if wrong:
            raise InputError(f"--arch {arch}: {why}")


def text_config(text: dict, folder: Path | None) -> dict | None:
    """The configuration of a Hugging Face text encoder: from the model's folder, or by its name; None if neither has
    it, or for a text tower of open_clip's own."""
    name = text.get("hf_model_name")
    if not name:
        return None
    try:
        if folder is not None and (folder / "config.json").is_file():
            found = AutoConfig.from_pretrained(folder)
        else:
            found = hub.load(AutoConfig.from_pretrained, name)
    except (OSError, ValueError):
        return None
    return json.loads(found.to_json_string())


def weights(arch: str, pretrained: str, known: Published) -> Path:
    """The file with the weights of a folder, a repository or a tag. Raises InputError."""
    kind, name = split(arch)
    if kind == "local-dir:":
        folder = Path(name).expanduser()
        found = next((folder / one for one in WEIGHTS if (folder / one).is_file()), None)
        if found is None:
            raise InputError(
                f"--arch {arch}: the folder has no weights ({WEIGHTS[0]}): give --pretrained none or a file"
            )
        return found
    if kind:
        return from_hub(name, (WEIGHTS[0], WEIGHTS[2]), f"--pretrained {pretrained}")
    entry = open_clip.get_pretrained_cfg(name, pretrained.partition(":")[2])
    if entry.get("hf_hub"):
        repository, _, file = entry["hf_hub"].rpartition("/")
        names = (re.sub(r"\.\w+$", ".safetensors", file), file) if file else (WEIGHTS[0], WEIGHTS[2])
        return from_hub(repository, names, f"--pretrained {pretrained}")
    try:
        return Path(on_rank0(open_clip.download_pretrained_from_url, entry["url"]))
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"--pretrained {pretrained}: {entry['url']} cannot be downloaded ({error}): fetch it elsewhere, and give "
            "its path to --pretrained"
        ) from None


# The tokenizer


def tokenizer(arch: str, known: Published, kept: str | None = None) -> tuple[PaddingTokenizer, str | None]:
    """open_clip's tokenizer of the model, and the text of its files, so that a checkpoint needs the folder no more.

    `kept` is such a text. Raises InputError.
    """
    text = known.config["model_cfg"]["text_cfg"]
    length, name, options = text.get("context_length", 77), text.get("hf_tokenizer_name"), text.get("tokenizer_kwargs")
    # Padding reaches neither a Hugging Face encoder, which has a mask, nor a causal tower that pools at the end token.
    causal = not text.get("no_causal_mask") and text.get("pool_type", "argmax") in ("argmax", "eos")
    strip = causal or "hf_model_name" in text
    if not name:
        own = open_clip.SimpleTokenizer(context_length=length, **(options or {}))
        return PaddingTokenizer(own, 0, own.vocab_size, strip), None
    options = {"context_length": length, "tokenizer_mode": text.get("tokenizer_mode"), **(options or {})}
    try:
        with tempfile.TemporaryDirectory() as folder:
            unpack(kept or "{}", Path(folder))
            own = hugging_face_tokenizer(arch, name, folder if kept else None, options)
            own.save_pretrained(folder)
            files = pack(Path(folder))
    except Exception as error:  # transformers, tokenizers and the hub raise a dozen kinds
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(
            f"--arch {arch}: its tokenizer cannot be had ({reason}): put its files into the model's folder"
        ) from None
    inner = own.tokenizer
    if inner.pad_token_id is None:
        raise InputError(f"--arch {arch}: its tokenizer has no token for padding: name one in tokenizer_config.json")
    words = inner.backend_tokenizer.get_vocab(with_added_tokens=False) if inner.is_fast else inner.get_vocab()
    if len(words) <= len(inner.all_special_ids):  # transformers makes such of a folder without vocabulary
        raise InputError(
            f"--arch {arch}: its tokenizer has no vocabulary: put tokenizer.json or vocab.txt into its folder"
        )
    size = max([*words.values(), *inner.all_special_ids]) + 1
    return PaddingTokenizer(own, inner.pad_token_id, size, strip), files


def hugging_face_tokenizer(arch: str, name: str, folder: str | None, options: dict):
    """open_clip's HFTokenizer: of a folder, else of the model's own folder, else of a name on the hub, else of the
    model's own repository there."""
    kind, place = split(arch)
    if folder or kind == "local-dir:":
        return open_clip.tokenizer.HFTokenizer(folder or str(Path(place).expanduser()), **options)
    try:
        return hub.load(open_clip.tokenizer.HFTokenizer, name, **options)
    except (OSError, ValueError):
        if not kind:
            raise
        files = hub.load(snapshot_download, place, allow_patterns=["*.json", "*.txt", "*.model"])
        return open_clip.tokenizer.HFTokenizer(files, **options)
