"""Tokenizers, and captions tokenised once into packed arrays."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerFast

from data import hub
from options import BIO_CLINICAL_BERT
from utils import InputError

CHUNKS, CHUNK_ROWS = 8, 8  # of a batch's captions, by length: most chunks, and rows that each should have
LAZY_FROM = 2_000_000  # captions: from there on each batch is tokenised in the loader's worker
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train_bpe(captions, vocab_size: int = 4096) -> str:
    """Train a byte-level BPE on captions; returns the tokenizer as JSON. The same captions give the same tokenizer.

    Of more than 200,000 captions every k-th is taken.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    step = -(-len(captions) // 200_000)
    tokenizer.train_from_iterator((captions[i].lower() for i in range(0, len(captions), step)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer.to_str()


def from_json(serialised: str):
    """The tokenizer that `train_bpe` returned. Raises InputError if the text is something else."""
    try:
        tokenizer = Tokenizer.from_str(serialised)
    except Exception as error:
        raise InputError(f"the checkpoint's tokenizer cannot be read: {str(error).splitlines()[0]}") from None
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def load_tokenizer(text_model: str):
    """The tokenizer of a Hugging Face name, a folder, or a `vocab.txt`.

    A bare vocabulary is read lower-cased, as the hub's Bio_ClinicalBERT (and so MedCLIP) reads its own. Raises
    InputError if there is none.
    """
    path = Path(text_model).expanduser()
    vocabulary = path if path.suffix == ".txt" else path / "vocab.txt"
    try:
        if vocabulary.is_file() and not (path / "tokenizer_config.json").exists():
            entries = vocabulary.read_text(encoding="utf-8").splitlines()
            absent = [token for token in SPECIAL[:4] if token not in entries]
            if absent:
                raise InputError(f"{vocabulary}: not a BERT vocabulary, it lacks {', '.join(absent)}")
            return BertTokenizerFast(vocab={token: number for number, token in enumerate(entries)})
        tokenizer = hub.load(AutoTokenizer.from_pretrained, text_model)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of a configuration alone
            raise OSError("there is a configuration, and no vocabulary")
        return tokenizer
    except InputError:
        raise
    except Exception as error:
        cure = "give --text-model a folder or a vocab.txt, or use --text-model tiny"
        if text_model == BIO_CLINICAL_BERT:
            cure = f"download {BIO_CLINICAL_BERT}'s vocab.txt elsewhere and pass its path as --text-model, or use tiny"
        raise InputError(
            f"--text-model {text_model}: its tokenizer is neither a local folder nor to be had from the Hugging Face "
            f"hub ({str(error).splitlines()[0][:160]}): {cure}"
        ) from None


class Tokens:
    """Token ids of N captions, each with its start and end token, as one array of 16 or 32 bits and N + 1 offsets.

    From LAZY_FROM captions on none are kept.
    """

    def __init__(self, tokenizer, captions, context_length: int, pad_to: int | None = None, chunk: int = 8192):
        """Captions are cut to `context_length` tokens. `pad_to` fixes the batch's width, None takes the longest."""
        self.pad_id, self.pad_to = tokenizer.pad_token_id, pad_to
        self.tokenizer, self.captions, self.context_length = tokenizer, captions, context_length
        self.lazy = len(captions) >= LAZY_FROM
        if self.lazy:
            return
        dtype = np.uint16 if len(tokenizer) <= 2**16 else np.int32
        lengths, parts = [np.zeros(1, np.int64)], []
        for start in range(0, len(captions), chunk):
            ids = self.tokenize(range(start, min(start + chunk, len(captions))))  # on all cores
            lengths.append(np.array([len(one) for one in ids], np.int64))
            parts.append(np.concatenate([np.asarray(one, dtype) for one in ids]))
        self.ids = np.concatenate(parts)
        self.offsets = np.cumsum(np.concatenate(lengths))

    def tokenize(self, indices) -> list[list[int]]:
        texts = [self.captions[i] for i in indices]
        return self.tokenizer(texts, truncation=True, max_length=self.context_length)["input_ids"]

    def rows(self, indices) -> list[np.ndarray]:
        """The token ids of each of some captions."""
        if self.lazy:
            return [np.asarray(one) for one in self.tokenize(indices)]
        return [self.ids[self.offsets[i] : self.offsets[i + 1]] for i in indices]

    def batch(self, indices) -> dict:
        """-> `input_ids` and `attention_mask`, lists of (b, t) int64, and `text_order` (B,).

        Captions of like length share a chunk and are padded to its longest: CHUNKS of them, or fewer for a batch of
        less than CHUNK_ROWS rows each; one, of `pad_to` tokens, if that is given. `text_order` puts the
        concatenated chunks back in order.
        """
        rows = self.rows(indices)
        lengths = np.array([len(row) for row in rows])
        order = np.argsort(lengths, kind="stable")
        count = 1 if self.pad_to else min(CHUNKS, -(-len(rows) // CHUNK_ROWS))
        batch = {"input_ids": [], "attention_mask": [], "text_order": torch.from_numpy(np.argsort(order))}
        for chunk in np.array_split(order, count):
            width = self.pad_to or lengths[chunk].max()
            mask = np.arange(width) < lengths[chunk][:, None]
            ids = np.full(mask.shape, self.pad_id, np.int64)
            ids[mask] = np.concatenate([rows[i] for i in chunk])
            batch["input_ids"].append(torch.from_numpy(ids))
            batch["attention_mask"].append(torch.from_numpy(mask.astype(np.int64)))
        return batch
