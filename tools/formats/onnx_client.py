"""Embeds images and texts with what lies beside this file; needs numpy, Pillow, onnxruntime and tokenizers.

python onnx_client.py "a mass in the left breast" scan.jpg other.png

prints the logits of each image with the text. preprocessing.json has the steps and numbers; of a model of open_clip's
it may name a function of open_clip's that cleans texts first, which is not done here.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
WHOLE = {"round": round, "floor": int}  # from a number of pixels to a whole one


def pixels(image: Image.Image, how: dict) -> np.ndarray:
    """An image of 8 bits -> (1, 3, S, S) float32; `how` is what preprocessing.json says of images."""
    target, resize, cut = how["resize"]["pixels"], how["resize"], how["crop"]
    image = image.convert("RGB")
    if resize["side"] == "both":
        size = (target, target)
    else:
        side = (min if resize["side"] == "shorter" else max)(image.size)
        size = [max(1, WHOLE[resize["other_side"]](one * target / side)) for one in image.size]
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    image = image.resize(size, filters[resize["interpolation"]])
    if how["pad"]:
        square = Image.new("RGB", (target, target), (how["pad"]["gray_level"],) * 3)
        square.paste(image, ((target - image.width) // 2, (target - image.height) // 2))
        image = square
    left, top = (WHOLE[cut["offset"]]((one - cut["pixels"]) / 2) for one in image.size)
    image = image.crop((left, top, left + cut["pixels"], top + cut["pixels"]))
    levels = np.asarray(image, np.float32) * how["scale"]
    return ((levels - how["mean"]) / how["std"]).transpose(2, 0, 1)[None].astype(np.float32)


def tokens(texts: list[str], tokenizer, how: dict) -> dict[str, np.ndarray]:
    """Texts -> `input_ids` and `attention_mask` (C, T); `how` is what preprocessing.json says of texts."""
    tokenizer.enable_truncation(how["context_length"])
    tokenizer.enable_padding(pad_id=how["pad_id"], length=how["pad_to"])
    found = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([one.ids for one in found], np.int64),
        "attention_mask": np.array([one.attention_mask for one in found], np.int64),
    }


def run(tower: str, **given) -> np.ndarray:
    """Ask "image" or "text" -> (N, D) float32, not L2-normalised."""
    import onnxruntime

    session = onnxruntime.InferenceSession(HERE / f"{tower}.onnx")
    return session.run(None, {one.name: given[one.name] for one in session.get_inputs()})[0]


if __name__ == "__main__":
    from tokenizers import Tokenizer

    how = json.loads((HERE / "preprocessing.json").read_text(encoding="utf-8"))
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    if not (HERE / "tokenizer.json").is_file():
        sys.exit("no tokenizer.json lies here: use `pixels` and `run` of this file, which need none")
    tokenizer = Tokenizer.from_file(str(HERE / how["text"]["tokenizer"]))
    shown = [pixels(Image.open(path), how["image"]) for path in sys.argv[2:]]
    image = run("image", pixels=np.concatenate(shown))
    text = run("text", **tokens(sys.argv[1:2], tokenizer, how["text"]))
    image, text = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (image, text))
    logits = how["similarity"]["logit_scale"] * image @ text.T + how["similarity"]["logit_bias"]
    print(*(f"{path}: {row[0]:.4f}" for path, row in zip(sys.argv[2:], logits, strict=True)), sep="\n")
