"""A whole training step, ours against a SLIP-style one, from batches that are on the device.

python benchmarks/step.py                                                        # a small encoder, for a CPU
python benchmarks/step.py --arch medclip_vit --text-model emilyalsentzer/Bio_ClinicalBERT --batch-size 64

SLIP-style: views made beforehand, one forward a view, captions padded to 77, autocast, three losses read back each
step, AdamW as SLIP calls it. Ours: update.Update on packed bytes, colour and blur included. Also the share of the
views in our step, and all views in one forward against one after the other.
"""

import argparse
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image

import common
import distributed
import losses
import models
import utils
from captions import Padded, made_up
from data import augment, views
from data.images import as_picture
from data.tokens import Tokens, from_json, train_bpe
from training.update import Update
from training.verdicts import Verdicts

NORM = models.MEAN_STD["medclip"]


def make_batch(tokens, args, device) -> dict:
    """Packed views of made-up radiographs (gray, one in twenty coloured) and captions, on the device."""
    rng = np.random.default_rng(0)
    pictures = []
    for number in range(args.batch_size):
        small = rng.integers(0, 256, (12, 12, 3) if number % 20 == 0 else (12, 12), dtype=np.uint8)
        pictures.append(as_picture(Image.fromarray(small).resize((600, 512), Image.BICUBIC)))
    data = views.TrainViews(pictures, tokens, "slip", args.image_size, 0)
    batch = data.__getitems__([(0, i) for i in range(args.batch_size)])
    return {
        name: [one.to(device) for one in value] if isinstance(value, list) else value.to(device)
        for name, value in batch.items()
    }


def make_model(args, tokenizer, device):
    torch.manual_seed(0)
    model = models.create_model(
        args.arch, "slip", "none", args.text_model, vocab_size=len(tokenizer), image_size=args.image_size
    )
    return model.to(device).train()


def slip_step(model, batch, optimizer, loss_function, device, dtype, scaler):
    """What SLIP's main.py does in a step, with its views ready."""
    with utils.autocast(device, dtype):
        image, one, two = (model.encode_image(view, False) for view in batch["views"])
        features = {"image": image, "aug1": one, "aug2": two}
        features["text"] = model.encode_text(batch["input_ids"][0], batch["attention_mask"][0], False)
        parts = loss_function(model.project(features))
    if not np.isfinite(parts["loss"].item()):
        raise SystemExit("the loss is not finite")
    optimizer.zero_grad()
    scaler.scale(parts["loss"]).backward()
    scaler.step(optimizer)
    scaler.update()
    model.logit_scale.data.clamp_(0, 4.6052)
    return [parts[name].item() for name in ("clip_loss", "ssl_loss", "clip_acc")]


def wait(device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_rate(device, dtype) -> float:
    """FLOP/s of a large matrix product."""
    n = 8192 if device.type == "cuda" else 2048
    one = torch.randn(n, n, device=device, dtype=dtype or torch.float32)

    def product():
        for _ in range(4):
            one @ one
        wait(device)

    return 4 * 2 * n**3 / statistics.median(common.in_turn({"": product}, 5)[""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="vit_tiny_patch16_224")
    parser.add_argument("--text-model", default="tiny")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2, help="a repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--name", default="step", help="of the results")
    args = parser.parse_args()
    device = distributed.init_distributed(None, None, "env://")
    dtype = utils.amp_dtype(None, device)
    say = common.Record(args.name, "timm", "transformers")
    captions = made_up(2000)
    tokenizer = from_json(train_bpe(captions))
    tokens = Tokens(tokenizer, captions, 77)

    ours = make_batch(tokens, args, device)
    slip_dtype = torch.float16 if device.type == "cuda" else dtype
    theirs = {**make_batch(Padded(tokenizer, captions, 77), args, device)}
    theirs["views"] = augment.make_views(theirs, *NORM, device)

    settings = SimpleNamespace(
        objective="slip", update_freq=1, grad_cache=None, on_nonfinite="stop", clip_grad=None, seed=0,
        grad_checkpointing=False, amp=None, normalize="medclip", arch=args.arch,
    )  # fmt: skip
    model = make_model(args, tokenizer, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    train = Update(model, losses.SLIPLoss(), optimizer, settings, Verdicts((), Path(), "stop"))
    other = make_model(args, tokenizer, device)
    slip_optimizer = torch.optim.AdamW(other.parameters(), lr=1e-5)
    scaler = torch.amp.GradScaler(device.type, enabled=slip_dtype == torch.float16)

    def our_steps():
        for number in range(args.steps):
            train([ours], 0, number, 1e-5)
        wait(device)

    def slip_steps():
        for _ in range(args.steps):
            slip_step(other, theirs, slip_optimizer, losses.SLIPLoss(), device, slip_dtype, scaler)
        wait(device)

    def only_views():
        for _ in range(args.steps):
            augment.make_views(ours, *NORM, device)
        wait(device)

    def forward(together):
        for _ in range(args.steps):
            with utils.autocast(device, dtype):
                one = [torch.cat(theirs["views"])] if together else theirs["views"]
                sum(model.encode_image(view, False).float().square().mean() for view in one).backward()
            model.zero_grad()
        wait(device)

    sides = {"SLIP-style": slip_steps, "ours, views included": our_steps, "our views alone": only_views}
    sides |= {"one forward a view": lambda: forward(False), "one forward for all": lambda: forward(True)}
    seconds = common.in_turn(sides, args.repeats)
    say(
        f"{args.arch}, {args.text_model}, {args.image_size} px, batch {args.batch_size}, {dtype}; "
        f"{args.repeats} repeats in turn"
    )
    for name, values in seconds.items():
        base = seconds["one forward a view" if "forward" in name else "SLIP-style"]
        each = statistics.median(values) / args.steps
        against = common.spread(common.ratios(base, values))
        say(f"  {name:22s} {1e3 * each:8.1f} ms   {against} times as fast as the first of its kind")
    share = [
        one / other for one, other in zip(seconds["our views alone"], seconds["ours, views included"], strict=True)
    ]
    say(f"  views' share of our step: {common.spread(share)}")
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        train([ours], 0, 0, 1e-5)
    achieved = counter.get_total_flops() / (statistics.median(seconds["ours, views included"]) / args.steps)
    say(f"  achieved {achieved / 1e9:.0f} GFLOP/s, {achieved / matrix_rate(device, dtype):.2f} of a matrix product's")
    say.save()


if __name__ == "__main__":
    main()
