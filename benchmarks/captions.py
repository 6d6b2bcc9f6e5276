"""The text tower's training step with a batch's captions in length chunks, against padding to 77 and to the longest.

python benchmarks/captions.py --captions captions.txt        # lines of "<id> <caption>"; without it made-up ones

Bio_ClinicalBERT's architecture with random weights and a vocabulary trained on the captions (WordPiece, up to 28,996),
forward and backward at batch 64. Also the share of padding over the whole file, and the loss of both against random
images, without dropout.
"""

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common
import numpy as np
import torch

import losses
import models
from data import buffers
from data.tokens import Tokens, from_json, train_bpe
import utils

LENGTH = 77


class Padded(Tokens):
    """The same captions in one chunk: padded to 77 (as SLIP and MedCLIP do), or to the batch's longest."""

    width = LENGTH

    def batch(self, indices) -> dict:
        rows = self.rows(indices)
        width = self.width or max(len(row) for row in rows)
        ids, mask = (torch.zeros(len(rows), width, dtype=torch.int64) for _ in range(2))
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.from_numpy(row.astype(np.int64))
            mask[number, : len(row)] = 1
        return {"input_ids": [ids], "attention_mask": [mask], "text_order": torch.arange(len(rows))}


class Longest(Padded):
    width = None


def waste(tokens, batches) -> float:
    """Percent of the positions that are padding."""
    masks = [mask for indices in batches for mask in tokens.batch(indices)["attention_mask"]]
    return 100 * (1 - sum(mask.sum().item() for mask in masks) / sum(mask.numel() for mask in masks))


def made_up(count: int) -> list[str]:
    """Captions whose lengths are spread as ROCO's: half have under 20 words, one in twenty over 55."""
    rng = np.random.default_rng(0)
    words = np.array("axial ct image of the chest showing a large mass in left lobe with arrow and contrast".split())
    return [" ".join(rng.choice(words, max(3, int(n)))) for n in rng.lognormal(np.log(20), 0.62, count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", default=None, metavar="FILE")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", type=int, default=2, help="a repeat")
    args = parser.parse_args()
    say = common.Record("captions", "transformers")
    captions = list(buffers.read_lines(Path(args.captions))[1]) if args.captions else made_up(4000)
    tokenizer = from_json(train_bpe(captions, 28_996))
    kinds = {"77": Padded, "the longest": Longest, "chunks": Tokens}
    tokens = {name: kind(tokenizer, captions, LENGTH) for name, kind in kinds.items()}
    order = np.random.default_rng(0).permutation(len(captions))
    batches = np.array_split(order[: len(order) // 64 * 64], len(order) // 64)
    say(f"{len(captions):,} captions, batches of 64; padding, percent of all positions:")
    for name, one in tokens.items():
        say(f"  {name:12s} {waste(one, batches):5.1f}")

    torch.manual_seed(0)
    text = models.text_encoder(models.BIO_CLINICAL_BERT)
    model = models.MedSLIP(models.Towers(torch.nn.Identity(), 1, text, text.config.hidden_size))
    dtype = utils.amp_dtype(None, torch.device("cpu"))

    def embed(name, indices):
        inputs = tokens[name].batch(indices)
        order = inputs.pop("text_order")
        chunks = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        return torch.cat([model.encode_text(*chunk) for chunk in chunks])[order]

    def train(name):
        for indices in batches[: args.batches]:
            with utils.autocast(torch.device("cpu"), dtype):
                found = embed(name, indices)
            found.float().square().mean().backward()
            model.zero_grad()

    seconds = common.in_turn({name: lambda name=name: train(name) for name in tokens}, args.repeats)
    say(f"forward and backward of BERT-base, {dtype or 'float32'}, {args.repeats} repeats in turn")
    for name, values in seconds.items():
        each = 1e3 * statistics.median(values) / args.batches
        against = common.spread(common.ratios(seconds["77"], values))
        say(f"  {name:12s} {each:7.0f} ms a batch   {against} times as fast as 77")

    model.eval()
    image = torch.randn(64, 512)
    with torch.no_grad():
        found = [
            losses.CLIPLoss()(
                {"image_embed": image, "text_embed": embed(name, batches[0]), "logit_scale": torch.tensor(14.0)}
            )["loss"].item()
            for name in tokens
        ]
    say(f"loss of one batch, float32: {', '.join(f'{name} {x:.7f}' for name, x in zip(tokens, found, strict=True))}")
    say.save()


if __name__ == "__main__":
    main()
