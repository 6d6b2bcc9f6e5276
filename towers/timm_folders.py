"""timm's models by where they lie: hf-hub:ORG/NAME, on the Hugging Face hub or in its cache, and local-dir:FOLDER.

Either holds a config.json and weights as timm's save_for_hf writes them. An image tower alone.
"""

from pathlib import Path

import timm
from timm.data import resolve_data_config
from timm.models import _hub, resolve_pretrained_cfg

from data import hub
from data.weights import refusal
from towers.parts import Published, Towers, its_own
from utils import InputError, one_line

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def folder_of(arch: str, filename: str) -> Path:
    """The folder that holds a file of the model, fetched from the hub if need be. Raises OSError, ValueError."""
    source, _, name = arch.partition(":")
    if source == "hf-hub":
        name, _, revision = name.partition("@")
        return hub.file(name, filename, revision or None).parent
    if not (Path(name).expanduser() / filename).is_file():
        raise FileNotFoundError(f"{name}: no folder with a {filename}")
    return Path(name).expanduser()


def published(arch: str, pretrained: str | None) -> Published:
    """Raises InputError for a name or folder that is none, or whose config.json is not timm's."""
    its_own(arch, pretrained)
    try:
        config, name, arguments = _hub.load_model_config_from_path(folder_of(arch, "config.json"))
        if not timm.is_model(name):
            raise ValueError(f"timm has no model {name}")
        full = resolve_pretrained_cfg(name, config)
        shown = resolve_data_config(pretrained_cfg=full.to_dict())
        size, how, share = shown["input_size"][-1], shown["interpolation"], shown["crop_pct"]
        mean, std = ([float(one) for one in shown[which]] for which in ("mean", "std"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"--arch {arch}: no model of timm's ({one_line(error)}): give a folder or a name with the config.json that "
            "timm writes"
        ) from None
    mode = {"center": "shortest", "squash": "squash"}.get(shown["crop_mode"])
    if mode is None or how not in ("bilinear", "bicubic") or shown["input_size"][0] != 3:
        raise InputError(f"--arch {arch}: its config.json asks for images as are not known here: {shown}")
    arguments = {key: value for key, value in arguments.items() if value is not None}
    kept = {"name": name, "arguments": arguments, "fixed": bool(full.fixed_input_size)}
    return Published(kept, mean, std, size, f"{mode} {how} 0 {share}", "published")


def weights(arch: str, pretrained: str, known: Published) -> tuple[dict, str]:
    """The published weights, by the model's names, and what they are called. Raises InputError."""
    failed = None
    for filename in WEIGHTS:
        try:
            folder = folder_of(arch, filename)
            model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
            return {f"published.image_encoder.{key}": value for key, value in model.state_dict().items()}, arch
        except (OSError, ValueError) as error:  # not there: the other may be
            failed = failed or error
        except Exception as error:  # timm, torch and safetensors raise many kinds
            failed = error
            break
    raise InputError(f"--arch {arch}: its weights cannot be loaded: {refusal(failed)}") from None


def towers(arch: str, known: Published, with_text: bool, state: dict | None) -> Towers:
    name, arguments = known.config["name"], {**known.config["arguments"], "num_classes": 0}
    try:  # not create_model: the arguments are a file's, and might name another file to load
        model = timm.models.model_entrypoint(name)(**arguments)
    except Exception as error:  # timm raises many kinds
        raise InputError(f"--arch {arch}: timm cannot build {name} with {arguments}: {one_line(error)}") from None
    resize = (lambda size: model.set_input_size(img_size=size)) if known.config["fixed"] else None
    return Towers(model, getattr(model, "head_hidden_size", model.num_features), resize=resize)
