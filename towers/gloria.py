"""GLoRIA's model (Huang et al., ICCV 2021; marshuang80/gloria), its global branch: a ResNet-50 and Bio_ClinicalBERT.

Whatever the size of the image, the ResNet sees it at 299 pixels. Text is the mean over the tokens of the sum of the
last four layers, without a projection. Its own mean also counts the padding, which changes an embedding's length alone,
and no cosine. The local branch, of regions and words, is left out.
"""

import math

from timm.models.resnet import Bottleneck, ResNet
from torch import nn
from torch.nn import functional as F

from towers.parts import Published, Towers
from utils import InputError

SEEN = 299  # pixels
BERT_WIDTH = 768
PAGE = "https://stanfordmedicine.box.com/s/j5h7q99f3pfi7enc0dom73m4nsm6yzvh"


class ResNet50(ResNet):
    """(B, 3, H, W) -> (B, 2048)"""

    def __init__(self):
        super().__init__(Bottleneck, [3, 4, 6, 3], num_classes=0)

    def forward(self, pixels):
        return super().forward(F.interpolate(pixels, (SEEN, SEEN), mode="bilinear", align_corners=True))


def published(arch: str, pretrained: str | None) -> Published:
    # The longer side is brought to 256 pixels, black is put around the rest, and the middle 224 are shown.
    return Published({}, [0.5] * 3, [0.5] * 3, 224, f"longest bilinear 0 {224 / 256}", "published")


def weights(arch: str, pretrained: str, known: Published):
    raise InputError(f"--arch {arch}: fetch chexpert_resnet50.ckpt from {PAGE}, and give its path as --pretrained")


def towers(arch: str, known: Published, with_text: bool, state: dict | None) -> Towers:
    return Towers(
        ResNet50(), 2048, text_pooling="last_four", embed_dim=BERT_WIDTH, bias=True, text_projection=nn.Identity(),
        logit_scale=math.log(10),
    )  # fmt: skip
