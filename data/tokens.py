"""Tokenizers, and captions tokenised once into packed arrays."""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerFast

from data import hub
from options import BIO_CLINICAL_BERT
from utils import InputError

CHUNKS, CHUNK_ROWS = 8, 8  # a batch's captions are split by length: the most chunks, the fewest captions in each
LAZY_FROM = 2_000_000  # with so many captions or more each batch is tokenised when it is loaded
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train_bpe(captions, vocab_size: int = 4096) -> str:
    """Train a byte-level BPE on captions -> the tokenizer as JSON. The same captions give the same tokenizer.

    Of more than 200,000 captions every n-th is taken, so that no more than those are read.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    stride = -(-len(captions) // 200_000)
    tokenizer.train_from_iterator((captions[i].lower() for i in range(0, len(captions), stride)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer.to_str()


def from_json(serialised: str):
    """The tokenizer that `train_bpe` returned as JSON. Raises InputError if it cannot be read."""
    try:
        tokenizer = Tokenizer.from_str(serialised)
    except Exception as error:
        raise InputError(f"the checkpoint's tokenizer cannot be read: {str(error).splitlines()[0]}") from None
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL_TOKENS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def pack(folder: Path) -> str:
    """The files of a folder, of which a tokenizer saved itself there, as one text that a checkpoint can keep."""
    return json.dumps({path.name: path.read_bytes().decode("latin-1") for path in sorted(folder.iterdir())})


def unpack(text: str, folder: Path) -> None:
    """Write the files that `pack` made a text of. Raises ValueError or AttributeError for another text."""
    for name, contents in json.loads(text).items():
        (folder / Path(name).name).write_bytes(contents.encode("latin-1"))


def load_tokenizer(text_model: str):
    """The tokenizer of a Hugging Face name, a folder, or a `vocab.txt`.

    Without a tokenizer_config.json text is lower-cased, as the hub's Bio_ClinicalBERT and so MedCLIP do. Raises
    InputError if no tokenizer can be had.
    """
    path = Path(text_model).expanduser()
    vocabulary = path if path.suffix == ".txt" else path / "vocab.txt"
    try:
        if vocabulary.is_file() and not (path / "tokenizer_config.json").exists():
            entries = vocabulary.read_text(encoding="utf-8").splitlines()
            absent = [token for token in SPECIAL_TOKENS[:4] if token not in entries]
            if absent:
                raise InputError(f"{vocabulary}: not a BERT vocabulary, it lacks {', '.join(absent)}")
            return BertTokenizerFast(vocab={token: number for number, token in enumerate(entries)})
        tokenizer = hub.load(AutoTokenizer.from_pretrained, text_model, trust_remote_code=False)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes such of a folder without vocabulary
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


class PaddingTokenizer:
    """A tokenizer that pads every text, as open_clip's do, with the interface that `Tokens` takes.

    `size` is what a text tower's vocabulary must have. Without `strip` the padding stays, for a tower that sees it.
    """

    lazy_from = 200_000  # captions: they are cleaned, and perhaps tokenised too, in Python

    def __init__(self, tokenizer, pad_token_id: int, size: int, strip: bool):
        self.tokenizer, self.pad_token_id, self.size, self.strip = tokenizer, pad_token_id, size, strip

    def __len__(self) -> int:
        return self.size

    def count(self, texts: list[str]) -> list[int]:
        """The tokens of each text, start and end included, were it neither cut nor padded."""
        own = self.tokenizer
        if hasattr(own, "tokenizer"):  # Hugging Face's
            return [len(ids) for ids in own.tokenizer([own.clean_fn(text) for text in texts])["input_ids"]]
        return [len(own.encode(text)) + 2 for text in texts]

    def __call__(self, texts: list[str], truncation: bool, max_length: int) -> dict:
        ids = self.tokenizer(texts, max_length).numpy()
        if not self.strip:
            return {"input_ids": list(ids)}
        lengths = ids.shape[1] - (ids[:, ::-1] != self.pad_token_id).argmax(axis=1)
        return {"input_ids": [row[:length] for row, length in zip(ids, lengths, strict=True)]}


class Tokens:
    """Token ids of N captions, start and end tokens included, in one array of 16 or 32 bits with N + 1 offsets.

    LAZY_FROM captions or more (of a slow tokenizer `lazy_from`) are not tokenised beforehand, but batch by batch.
    """

    def __init__(self, tokenizer, captions, context_length: int, pad_to: int | None = None, at_once: int = 8192):
        """Captions are cut to `context_length` tokens. A batch is padded to `pad_to` tokens, or (None) to the longest
        caption of each of its chunks. `at_once` captions are tokenised together."""
        self.pad_id, self.pad_to = tokenizer.pad_token_id, pad_to
        self.tokenizer, self.captions, self.context_length = tokenizer, captions, context_length
        self.lazy = len(captions) >= getattr(tokenizer, "lazy_from", LAZY_FROM)
        if self.lazy:
            return
        dtype = np.uint16 if len(tokenizer) <= 2**16 else np.int32
        lengths, parts = [np.zeros(1, np.int64)], []
        for start in range(0, len(captions), at_once):
            ids = self.tokenize(range(start, min(start + at_once, len(captions))))  # on all cores
            lengths.append(np.array([len(one) for one in ids], np.int64))
            parts.append(np.concatenate([np.asarray(one, dtype) for one in ids]))
        self.ids = np.concatenate(parts)
        self.offsets = np.cumsum(np.concatenate(lengths))

    def tokenize(self, indices) -> list[list[int]]:
        texts = [self.captions[i] for i in indices]
        return self.tokenizer(texts, truncation=True, max_length=self.context_length)["input_ids"]

    def rows(self, indices) -> list[np.ndarray]:
        """The token ids of the captions `indices`, an array for each."""
        if self.lazy:
            return [np.asarray(one) for one in self.tokenize(indices)]
        return [self.ids[self.offsets[i] : self.offsets[i + 1]] for i in indices]

    def batch(self, indices) -> dict:
        """The captions `indices` -> `input_ids` and `attention_mask`, lists of (b, t) int64, and `text_order` (B,).

        A batch is split into chunks of captions of like length, each padded to its longest caption: CHUNKS of them, or
        fewer where a chunk would have less than CHUNK_ROWS captions. With `pad_to` there is one chunk, padded to that.
        `text_order` puts the rows of the concatenated chunks back in the order of `indices`.
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
