"""Small models of open_clip's, made by open_clip, in the layouts in which such models are published."""

import json
from pathlib import Path

import open_clip
import torch
from open_clip import model as builders
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertTokenizerFast, PreTrainedTokenizerFast

WORDS = "a an the of mass benign malignant mammogram chest x ray showing dark picture number axial ct is ##s".split()
OPENAI = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
BERT = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
TEXTS = [
    "A mammogram showing a MASS &amp; nothing,  else.", "", "benign",
    "the chest x-ray of the dark picture is number 7 " * 12,
]  # fmt: skip


def bert_tokenizer() -> BertTokenizerFast:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(97, 123)), *WORDS]
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(dict.fromkeys(words))})


def siglip_tokenizer() -> PreTrainedTokenizerFast:
    """Like T5's: a unigram model, "</s>" at the end, and the same id as the padding."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -2.0) for word in WORDS)]
    pieces += [(letter, -5.0) for letter in "▁abcdefghijklmnopqrstuvwxyz0123456789"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


VIT = {"image_size": 160, "timm_model_name": "test_vit"}
TEXT = {"width": 64, "heads": 2, "layers": 2}
MODELS = {  # kind: (model_cfg, preprocess_cfg, tokenizer)
    "biomedclip": (
        {
            "embed_dim": 48,
            "vision_cfg": {**VIT, "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"},
            "text_cfg": {
                "hf_model_name": "text", "hf_tokenizer_name": "text", "hf_proj_type": "mlp",
                "hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": 256,
            },
        },
        OPENAI,
        bert_tokenizer,
    ),
    "mean": (  # what else Hugging Face's towers have
        {
            "embed_dim": 48,
            "vision_cfg": {**VIT, "timm_proj": "mlp"},
            "text_cfg": {
                "hf_model_name": "text", "hf_tokenizer_name": "text", "hf_proj_type": "linear",
                "hf_pooler_type": "mean_pooler", "context_length": 32, "tokenizer_kwargs": {"strip_sep_token": True},
            },
        },
        {**OPENAI, "resize_mode": "longest", "interpolation": "bilinear"},
        bert_tokenizer,
    ),
    "pooler": (
        {
            "embed_dim": 48,
            "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32},
            "text_cfg": {
                "hf_model_name": "text", "hf_tokenizer_name": "text", "hf_proj_type": "linear",
                "hf_pooler_type": "cls_pooler", "context_length": 32,
            },
        },
        OPENAI,
        bert_tokenizer,
    ),
    "native": (
        {
            "embed_dim": 40,
            "quick_gelu": True,
            "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, **TEXT},
        },
        OPENAI,
        None,
    ),
    "resnet": (
        {
            "embed_dim": 40,
            "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, **TEXT},
        },
        OPENAI,
        None,
    ),
    "siglip": (
        {
            "embed_dim": 64,
            "init_logit_scale": 2.3,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": {**VIT, "timm_pool": "map", "timm_proj": "none"},
            "text_cfg": {
                "context_length": 24, "vocab_size": 70, "hf_tokenizer_name": "text", **TEXT, "no_causal_mask": True,
                "tokenizer_kwargs": {"clean": "canonicalize"}, "proj_bias": True, "pool_type": "last",
                "norm_kwargs": {"eps": 1e-6},
            },
        },
        {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"},
        siglip_tokenizer,
    ),
}  # fmt: skip


def publish(kind: str, folder: Path, safe: bool = True, text: str | None = None, seed: int = 1) -> Path:
    """Write a model with random weights as it would be published.

    `text` names its Hugging Face text model; without a name it is a folder beside it, which open_clip can read too.
    """
    config, shown, tokenizer = json.loads(json.dumps(MODELS[kind][:2])) + [MODELS[kind][2]]
    folder.mkdir(parents=True)
    if tokenizer is not None:
        made = tokenizer()
        made.save_pretrained(folder)
        beside = folder.with_name(f"{folder.name}-text")
        made.save_pretrained(beside)
        if "hf_model_name" in config["text_cfg"]:
            BertConfig(vocab_size=len(made), **BERT).save_pretrained(beside)
            config["text_cfg"]["hf_model_name"] = str(beside)
            config["text_cfg"]["hf_model_pretrained"] = False
        config["text_cfg"]["hf_tokenizer_name"] = str(beside)
    torch.manual_seed(seed)
    custom = config.get("custom_text") or "hf_model_name" in config["text_cfg"]
    kwargs = {key: value for key, value in config.items() if key != "custom_text"}
    model = (builders.CustomTextCLIP if custom else builders.CLIP)(**kwargs)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # so that no bias and no norm is at its neutral value
            if parameter.ndim < 2 and "logit" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.logit_scale.fill_(3.1)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    if safe:
        save_file(state, folder / "open_clip_model.safetensors")
    else:
        torch.save(state, folder / "open_clip_pytorch_model.bin")
    if text is not None:
        config["text_cfg"].update(hf_model_name=text, hf_tokenizer_name=text)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": shown}))
    return folder


def opened_by_open_clip(folder: Path, **how):
    """-> open_clip's model in eval mode, its transform for evaluation and its tokenizer."""
    name = f"local-dir:{folder}"
    model = open_clip.create_model(name, **how).eval()
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    return model, transform, open_clip.get_tokenizer(name)
