"""A folder for transformers: its AutoModel (with modeling_medslip.py, which lies there), tokenizer, image processor."""

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel
from transformers import logging as transformers_logging

import utils
from data.weights import SAFE
from tools.formats import modeling_medslip
from towers.timm_encoders import timm_call
from utils import InputError

CODE = Path(modeling_medslip.__file__)
transformers_logging.disable_progress_bar()
IMAGE, TEXT = "image_tower", "text_tower"  # folders: a tower as transformers has it; a text tower's configuration


def write(encoder, folder: Path):
    """Towers, projections, logit scale, tokenizer and image processor. See tools/export.py for the arguments.

    An image tower of transformers' is also written by itself to `image_tower`, for its own class there.
    """
    model, args = encoder.model, encoder.args
    with_text = hasattr(model, "text_encoder")
    config = {
        "architectures": ["MedSLIPModel"],
        "auto_map": {"AutoConfig": f"{CODE.stem}.MedSLIPConfig", "AutoModel": f"{CODE.stem}.MedSLIPModel"},
        "model_type": "medslip",
        "dtype": "float32",
        "image_size": args.image_size,
        "image_tower": image_tower(model.image_encoder, args),
        "image_projection": projection(model.image_projection),
    }
    if with_text:
        config |= {
            "text_tower": text_tower(model, args),
            "text_pooling": model.text_pooling,
            "text_projection": projection(model.text_projection),
            "context_length": args.context_length,
            "logit_bias": hasattr(model, "logit_bias"),
        }
    utils.write_json(folder / "config.json", config)
    save(model.state_dict(), folder / SAFE)
    shutil.copyfile(CODE, folder / CODE.name)
    mean, std = encoder.mean_std
    processor = modeling_medslip.MedSLIPImageProcessor.__name__
    shown = {"image_size": args.image_size, "fit": encoder.fit, "image_mean": list(mean), "image_std": list(std)}
    shown |= {"image_processor_type": processor, "auto_map": {"AutoImageProcessor": f"{CODE.stem}.{processor}"}}
    utils.write_json(folder / "preprocessor_config.json", shown)
    if "timm" not in config[IMAGE]:
        (folder / IMAGE).mkdir()
        utils.write_json(folder / IMAGE / "config.json", config[IMAGE])
        save(model.image_encoder.state_dict(), folder / IMAGE / SAFE)
    opened = {"weights": SAFE}
    if with_text:
        write_tokenizer(encoder, folder)
        (folder / TEXT).mkdir()
        utils.write_json(folder / TEXT / "config.json", config[TEXT])
        opened |= {"tokenizer": ".", "text_model": TEXT}
    return read_back(folder, encoder.pad_to), opened


def read_back(folder: Path, pad_to: int | None):
    """What `write` wrote, asked through transformers: from the pixels and ids that are given, and from images and
    texts."""
    model = modeling_medslip.MedSLIPModel.from_pretrained(folder).eval()
    processor = modeling_medslip.MedSLIPImageProcessor.from_pretrained(folder)

    def found(given: dict) -> dict:
        values = {
            "image": model.get_image_features(given["pixels"]).pooler_output,
            "pixels": processor(given["images"])["pixel_values"],
        }
        if (folder / IMAGE).is_dir():
            tower = type(model.image_encoder).from_pretrained(folder, subfolder=IMAGE).eval()
            values["pooled"] = tower(given["pixels"]).pooler_output
        if "input_ids" in given:
            text = {name: given[name] for name in ("input_ids", "attention_mask")}
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            padding = "max_length" if pad_to else True
            tokens = tokenizer(given["texts"], padding=padding, truncation=True, return_tensors="pt")
            values["text"] = model.get_text_features(**text).pooler_output
            values["input_ids"] = tokens["input_ids"]
        return values

    return found


def save(state: dict, path: Path) -> None:
    save_file({name: x.contiguous() for name, x in state.items()}, path, {"format": "pt"})
    shutil.copymode(path.with_name("config.json"), path)  # safetensors' own files are for their owner alone


def held(tower: nn.Module) -> dict | None:
    """The configuration of a tower of transformers'; None for another."""
    if not isinstance(tower, PreTrainedModel):
        return None
    named = next(one.__name__ for one in type(tower).__mro__ if one.__module__.startswith("transformers."))
    config = json.loads(tower.config.to_json_string(use_diff=False))
    return {**{name: x for name, x in config.items() if name != "_name_or_path"}, "architectures": [named]}


def image_tower(tower: nn.Module, args) -> dict:
    """What MedSLIPConfig's `image_tower` takes. Raises InputError for a tower that is neither library's."""
    if config := held(tower):
        return config
    if not type(tower).__module__.startswith("timm."):
        other = ": use --to open_clip" if args.arch.startswith("open_clip:") else ""
        raise InputError(
            f"--to huggingface: takes image towers of transformers and timm, and that of --arch {args.arch} is a class "
            f"of its own{other}"
        )
    if not args.published:
        name, arguments = timm_call(args.arch, args.image_size)
        return {"timm": name, "arguments": arguments}
    kept = args.published["config"]  # of towers.timm_folders
    return {
        "timm": kept["name"],
        "arguments": kept["arguments"] | ({"img_size": args.image_size} if kept["fixed"] else {}),
    }


def text_tower(model, args) -> dict:
    """What MedSLIPConfig's `text_tower` takes. Raises InputError for another library's tower, or its own pooling."""
    config = held(model.text_encoder)
    if config is None or model.text_pooling not in modeling_medslip.POOLINGS:
        raise InputError(
            f"--to huggingface: takes text towers of transformers whose tokens are pooled, and that of --arch "
            f"{args.arch} pools by itself"
        )
    return config


def projection(head: nn.Module) -> dict | None:
    if isinstance(head, nn.Identity):
        return None
    if not isinstance(head, nn.Linear):
        raise InputError(f"--to huggingface: takes linear projections, and not a {type(head).__name__}")
    return {"in": head.in_features, "out": head.out_features, "bias": head.bias is not None}


def write_tokenizer(encoder, folder: Path) -> None:
    """The tokenizer's files; captions are cut to the run's context length."""
    encoder.tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    utils.write_json(path, {**json.loads(utils.read_text(path)), "model_max_length": encoder.args.context_length})
