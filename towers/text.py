"""Hugging Face's text encoders: Bio_ClinicalBERT, which MedCLIP has, or another."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig
from transformers import logging as transformers_logging

from data import hub
from options import BIO_CLINICAL_BERT
from utils import InputError

BERT_CONFIGS = {  # built in: no network is needed for the architecture
    BIO_CLINICAL_BERT: BertConfig(vocab_size=28996),
    "tiny": BertConfig(
        vocab_size=4096, hidden_size=256, num_hidden_layers=3, num_attention_heads=4, intermediate_size=1024
    ),
}

transformers_logging.set_verbosity_error()


def text_encoder(text_model: str, vocab_size: int | None = None, pretrained: bool = False) -> nn.Module:
    """A Hugging Face encoder without pooler. `text_model`: a name, a folder, a `vocab.txt`, or "tiny".

    `vocab_size` replaces the built-in configuration's. Raises InputError if the architecture or the weights cannot
    be had.
    """
    path = Path(text_model)
    vocabulary_only = path.suffix == ".txt" or (path.is_dir() and not (path / "config.json").exists())
    name = BIO_CLINICAL_BERT if vocabulary_only else text_model
    if pretrained and name != "tiny" and not vocabulary_only:
        try:
            return hub.load(AutoModel.from_pretrained, text_model, add_pooling_layer=False, dtype=torch.float32)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"--text-model {text_model}: no weights: {str(error).splitlines()[0]}: give a folder that has them"
            ) from None
    if name in BERT_CONFIGS:
        config = BertConfig.from_dict(BERT_CONFIGS[name].to_dict())
        if name == "tiny" and vocab_size is not None:
            config.vocab_size = vocab_size
    else:
        try:
            config = hub.load(AutoConfig.from_pretrained, text_model)
        except (OSError, ValueError) as error:
            raise InputError(
                f"--text-model {text_model}: no such folder, and no configuration of that name on the Hugging Face hub "
                f"({str(error).splitlines()[0]}): give a folder"
            ) from None
    if vocab_size is not None and vocab_size > config.vocab_size:
        raise InputError(
            f"--text-model {text_model}: its vocabulary has {vocab_size} entries, the model {config.vocab_size}"
        )
    try:
        return AutoModel.from_config(config, add_pooling_layer=False)
    except TypeError:  # not every architecture has a pooler to leave out
        return AutoModel.from_config(config)
