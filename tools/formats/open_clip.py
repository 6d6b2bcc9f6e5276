"""open_clip's folder: open_clip_config.json, open_clip_model.safetensors and the tokenizer's files."""

import copy
from pathlib import Path

import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file

import checkpoints
import utils
from towers.openclip import POOLERS
from towers.openclip_files import CONFIG, WEIGHTS
from utils import InputError, logger, one_line


def write(encoder, folder):
    """See tools/export.py. A Hugging Face text tower is named in the configuration as it was, and its own config.json
    is written too, so that `hf_model_name` can be the folder itself where there is no network."""
    model, arch = encoder.model, encoder.args.arch
    if encoder.load_tokenizer is None:
        raise InputError(f"--to open_clip: needs a text tower, and --objective {encoder.args.objective} trains none")
    if not arch.startswith("open_clip:"):
        raise InputError(
            f"--to open_clip: its classes pool texts by {', '.join(POOLERS)} or a text tower of its own, and "
            f"--arch {arch} with the pooling '{model.text_pooling}' does not: use huggingface, onnx or torch"
        )
    config = configuration(encoder)
    own, text = encoder.tokenizer.tokenizer, config["model_cfg"]["text_cfg"]
    utils.write_json(folder / CONFIG, config)
    if hasattr(own, "save_pretrained"):  # not open_clip's own, which is a part of it
        own.save_pretrained(folder)
    offline = {}
    if "hf_model_name" in text:
        utils.write_text(folder / "config.json", model.text_encoder.config.to_json_string())
        offline = {"text_cfg": {**text, "hf_model_name": str(folder)}}
    try:
        save_file(weights(model, config["model_cfg"], offline), folder / WEIGHTS[0])
        again, view = open_clip.create_model_from_pretrained(f"local-dir:{folder}", **offline)
    except Exception as error:  # open_clip, timm and transformers raise many kinds
        raise InputError(f"--to open_clip: {arch}: open_clip cannot hold it: {one_line(error)}") from None
    again.eval()
    pad, length = encoder.tokenizer.pad_token_id, text.get("context_length", 77)

    def read_back(given):  # its towers take ids as its tokenizers give them: of one length, without a mask
        ids = given["input_ids"].masked_fill(given["attention_mask"] == 0, pad)
        ids = torch.nn.functional.pad(ids, (0, length - ids.shape[1]), value=pad)
        found = {"image": again.encode_image(given["pixels"]), "text": again.encode_text(ids)}
        if "images" in given:
            found["pixels"] = torch.stack([view(image) for image in given["images"]])
        return found

    return read_back, {"weights": WEIGHTS[0], "arch": "open_clip:local-dir:"}


def configuration(encoder) -> dict:
    """The contents of open_clip_config.json: the published model's, with the run's own view of images and texts."""
    args = encoder.args
    model = copy.deepcopy(args.published["config"]["model_cfg"])
    model["vision_cfg"]["image_size"] = args.image_size
    text = model["text_cfg"]
    if "hf_model_name" in text:
        text["context_length"], text["hf_model_pretrained"] = args.context_length, False
        if Path(text["hf_model_name"]).exists():
            logger.warning(
                f"open_clip_config.json names the text model {text['hf_model_name']}, which is a folder of this machine"
            )
    elif text.get("context_length", 77) != args.context_length:
        logger.warning(f"open_clip cuts captions to {text.get('context_length', 77)} tokens, not {args.context_length}")
    mode, how, *more = encoder.fit.split()
    mean, std = (list(one) for one in encoder.mean_std)
    shown = {"mean": mean, "std": std, "interpolation": how, "resize_mode": mode, "fill_color": int((more or "0")[0])}
    return {"model_cfg": model, "preprocess_cfg": shown}


def weights(model, config: dict, offline: dict) -> dict[str, torch.Tensor]:
    """The state dict of models.MedSLIP by open_clip's names: the inverse of checkpoints.translate."""
    config = {**copy.deepcopy(config), **offline}
    kind = CustomTextCLIP if config.pop("custom_text", False) or offline else CLIP
    names = kind(**config).state_dict()
    own = {checkpoints.canonical(key): value for key, value in model.state_dict().items()}
    layout, translated = checkpoints.translate(names, CONFIG)
    found = {}
    for theirs, ours in zip(names, translated, strict=True):
        value = own[checkpoints.canonical(ours)]
        found[theirs] = (value.T if theirs in layout.turned else value).contiguous()
    return found
