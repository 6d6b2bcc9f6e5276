"""MedCLIP's pytorch_model.bin, with the keys that its MedCLIPModel.from_pretrained expects (medclip 0.0.3)."""

import torch

import checkpoints
import models
from data.weights import WEIGHTS
from options import BIO_CLINICAL_BERT
from towers.text import BERT_CONFIGS
from utils import InputError, logger, save_tensors

SPELLING = (  # what checkpoints.canonical calls a layer, and transformers 4.24 did
    (".attention.q_proj.", ".attention.self.query."),
    (".attention.k_proj.", ".attention.self.key."),
    (".attention.v_proj.", ".attention.self.value."),
    (".attention.o_proj.", ".attention.output.dense."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
    (".relative_position_bias_table", ".self.relative_position_bias_table"),
)


def write(encoder, folder):
    """Both towers, their projections and the logit scale. See tools/export.py for the arguments."""
    model, saved = encoder.model, vars(encoder.args)
    arch, text = saved["arch"], BERT_CONFIGS[BIO_CLINICAL_BERT]
    if arch not in checkpoints.MEDCLIP_ZIPS:
        raise InputError(f"--to medclip: MedCLIP has {' and '.join(checkpoints.MEDCLIP_ZIPS)}, not {arch}")
    if not hasattr(model, "text_encoder"):
        raise InputError(f"--to medclip: needs a text tower, and --objective {saved['objective']} trains none")
    shapes = "model_type vocab_size hidden_size num_hidden_layers intermediate_size".split()
    if any(getattr(model.text_encoder.config, name) != getattr(text, name) for name in shapes):
        raise InputError(f"--to medclip: its text tower is Bio_ClinicalBERT, not --text-model {saved['text_model']}")
    if saved["text_pooling"] == "masked":
        logger.warning("MedCLIP's own mean over a caption counts its padding, which this run did not: leave none there")
    save_tensors(published(model.state_dict(), arch), folder / WEIGHTS)
    again = models.create_model(arch, "clip", str(folder), None, saved["text_pooling"], image_size=saved["image_size"])
    again.eval()
    return lambda given: {
        "image": again.encode_image(given["pixels"]),
        "text": again.encode_text(given["input_ids"], given["attention_mask"]),
    }, {"weights": WEIGHTS}


def published(state: dict, arch: str) -> dict[str, torch.Tensor]:
    """A state dict of models.MedSLIP in MedCLIP's keys: the inverse of checkpoints.MEDCLIP_RENAMES."""
    parts = {new: pattern[1:].replace("\\", "") for pattern, new in checkpoints.MEDCLIP_RENAMES}
    if arch == "medclip_resnet":
        parts["image_projection."] = "vision_model.model.fc."
    found = {"logit_scale": state["logit_scale"]}
    for key, value in state.items():
        part, _, rest = checkpoints.canonical(key).partition(".")
        if part + "." in parts:
            for new, old in SPELLING:
                rest = f".{rest}".replace(new, old)[1:]
            found[parts[part + "."] + rest] = value.contiguous()
            if rest.endswith("relative_position_bias_table"):
                found[parts[part + "."] + rest.replace("bias_table", "index")] = relative_positions(window=7)
    # Saved by that release, and used by neither.
    found["text_model.model.embeddings.position_ids"] = torch.arange(512)[None]
    width = state["text_projection.weight"].shape[1]
    for name, shape in (("weight", (width, width)), ("bias", (width,))):
        found[f"text_model.model.pooler.dense.{name}"] = torch.zeros(shape)
    return found


def relative_positions(window: int) -> torch.Tensor:
    """Swin's index into a table of relative positions, (window^2, window^2) int64 (Liu et al., ICCV 2021)."""
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    down, right = (x.flatten()[:, None] - x.flatten() + window - 1 for x in (rows, columns))
    return down * (2 * window - 1) + right
