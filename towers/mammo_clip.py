"""Mammo-CLIP's models (Ghosh et al., MICCAI 2024; batmanlab/Mammo-CLIP): EfficientNet-B5 or B2 and Bio_ClinicalBERT.

Its EfficientNet (Tan and Le, ICML 2019) is lukemelas/EfficientNet-PyTorch's, whose convolutions are padded for images
of one size whatever the image's own is: timm's pads by the image. Text is the last state of a caption's end token.
"""

import math
from pathlib import Path

from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import stochastic_depth

from data import hub
from towers.parts import Published, Towers
from utils import InputError, one_line

# Width, depth, the side of the images that it is padded for, dropout; the epoch of the published weights.
SIZES = {"mammo_clip_b2": (1.1, 1.2, 260, 0.3, 10), "mammo_clip_b5": (1.6, 2.2, 456, 0.4, 7)}
STAGES = (  # of EfficientNet-B0: blocks, kernel, stride, expansion, channels out
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
NORM = {"eps": 1e-3, "momentum": 0.01}
STOCHASTIC_DEPTH = 0.2  # of the last block; less before it, in proportion
MEAN, STD = 0.3089279, 0.25053555408335154
REPOSITORY, FILE = "shawn24/Mammo-CLIP", "Pre-trained-checkpoints/{}-model-best-epoch-{}.tar"


class Conv(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME" pads an image of `side` pixels."""

    def __init__(self, ins: int, outs: int, kernel: int, stride: int = 1, side: int = 1, **more):
        super().__init__(ins, outs, kernel, stride, **more)
        total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        self.around = [total // 2, total - total // 2] * 2

    def forward(self, x):
        return super().forward(F.pad(x, self.around))


class Block(nn.Module):
    """Inverted bottleneck with squeeze and excitation; `drop` is its chance to be left out of a sample."""

    def __init__(self, ins: int, outs: int, kernel: int, stride: int, expansion: int, side: int, drop: float):
        super().__init__()
        middle, squeezed = ins * expansion, max(1, ins // 4)
        self.skips, self.drop, self.expands = stride == 1 and ins == outs, drop, expansion > 1
        if self.expands:
            self.expand_conv, self.bn0 = Conv(ins, middle, 1, bias=False), nn.BatchNorm2d(middle, **NORM)
        self.depthwise_conv = Conv(middle, middle, kernel, stride, side, groups=middle, bias=False)
        self.bn1 = nn.BatchNorm2d(middle, **NORM)
        self.se_reduce, self.se_expand = Conv(middle, squeezed, 1), Conv(squeezed, middle, 1)
        self.project_conv, self.bn2 = Conv(middle, outs, 1, bias=False), nn.BatchNorm2d(outs, **NORM)

    def forward(self, x):
        y = F.silu(self.bn0(self.expand_conv(x))) if self.expands else x
        y = F.silu(self.bn1(self.depthwise_conv(y)))
        y = y * self.se_expand(F.silu(self.se_reduce(y.mean((2, 3), keepdim=True)))).sigmoid()
        y = self.bn2(self.project_conv(y))
        return x + stochastic_depth(y, self.drop, "row", self.training) if self.skips else y


class EfficientNet(nn.Module):
    """(B, 3, H, W) -> (B, width)"""

    def __init__(self, wide: float, deep: float, side: int, dropout: float):
        super().__init__()

        def channels(number):  # of B0 -> of this one, in eighths
            number *= wide
            rounded = max(8, int(number + 4) // 8 * 8)
            return rounded + 8 if rounded < 0.9 * number else rounded

        ins, self.width = channels(32), channels(1280)
        self.conv_stem = Conv(3, ins, 3, 2, side, bias=False)
        self.bn0, side = nn.BatchNorm2d(ins, **NORM), math.ceil(side / 2)
        self.blocks = nn.ModuleList()
        repeats = [math.ceil(deep * stage[0]) for stage in STAGES]
        for count, (_, kernel, stride, expansion, outs) in zip(repeats, STAGES, strict=True):
            for number in range(count):
                drop = STOCHASTIC_DEPTH * len(self.blocks) / sum(repeats)
                step = stride if number == 0 else 1
                self.blocks.append(Block(ins, channels(outs), kernel, step, expansion, side, drop))
                ins, side = channels(outs), math.ceil(side / step)
        self.conv_head, self.bn1 = Conv(ins, self.width, 1, bias=False), nn.BatchNorm2d(self.width, **NORM)
        self.dropout, self.recomputes = nn.Dropout(dropout), False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.recomputes = enable

    def forward(self, pixels):
        x = F.silu(self.bn0(self.conv_stem(pixels)))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recomputes and self.training else block(x)
        return self.dropout(F.silu(self.bn1(self.conv_head(x))).mean((2, 3)))


def size_of(arch: str) -> tuple:
    if arch not in SIZES:
        raise InputError(f"--arch {arch}: there are {' and '.join(SIZES)}")
    return SIZES[arch]


def published(arch: str, pretrained: str | None) -> Published:
    """Its images were 912 pixels wide and 1,520 high; here they are square, of 912 pixels."""
    size_of(arch)
    return Published({}, [MEAN] * 3, [STD] * 3, 912, "squash bilinear", "published")


def weights(arch: str, pretrained: str, known: Published) -> Path:
    file = FILE.format(arch[-2:], size_of(arch)[-1])
    try:
        return hub.file(REPOSITORY, file)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--arch {arch}: no weights: {one_line(error)}: download {file} of {REPOSITORY} elsewhere, and give its "
            "path as --pretrained"
        ) from None


def towers(arch: str, known: Published, with_text: bool, state: dict | None) -> Towers:
    image = EfficientNet(*size_of(arch)[:4])
    return Towers(image, image.width, text_pooling="end", bias=True)
