"""A model of MedSLIP's for transformers: an image tower, perhaps a text tower, and their projections.

AutoModel.from_pretrained(FOLDER, trust_remote_code=True) opens it, and AutoImageProcessor.from_pretrained likewise.
Needs torch, transformers, Pillow and, for image towers of timm's, timm; MedSLIP's own code is not needed. This file
goes along with an export and is complete in itself.
"""

import math

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput


class MedSLIPConfig(PretrainedConfig):
    """`image_tower` is {"timm": name, "arguments": of its function} or the configuration of a model of transformers',
    `text_tower` such a configuration or None, `text_pooling` a name of POOLINGS. The projections are {"in", "out",
    "bias"}, or None where there is none."""

    model_type = "medslip"

    def __init__(
        self, image_tower=None, image_projection=None, text_tower=None, text_projection=None, text_pooling="masked",
        image_size=224, context_length=None, logit_bias=False, **kwargs,
    ):  # fmt: skip
        self.image_tower, self.image_projection = image_tower, image_projection
        self.text_tower, self.text_projection, self.text_pooling = text_tower, text_projection, text_pooling
        self.image_size, self.context_length, self.logit_bias = image_size, context_length, logit_bias
        super().__init__(**kwargs)


def mean_over(tokens, counted):
    counted = counted.unsqueeze(-1).to(tokens.dtype)
    return (tokens * counted).sum(dim=1) / counted.sum(dim=1)


def three_layers(found):
    """The mean of the hidden states 1, 2 and last, as MedCLIP has it."""
    return (found.hidden_states[1] + found.hidden_states[2] + found.hidden_states[-1]) / 3


def last_four(found):
    states = found.hidden_states
    return states[-4] + states[-3] + states[-2] + states[-1]


POOLINGS = {  # name: (what the text tower gives, attention_mask (B, T)) -> (B, hidden)
    "masked": lambda found, mask: mean_over(three_layers(found), mask),  # of the caption's own tokens
    "padded": lambda found, mask: three_layers(found).mean(dim=1),  # MedCLIP's own, padding included
    "cls": lambda found, mask: found.last_hidden_state[:, 0],
    "mean": lambda found, mask: mean_over(found.last_hidden_state, mask),
    "end": lambda found, mask: found.last_hidden_state[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1],
    "last_four": lambda found, mask: mean_over(last_four(found), mask),
    "pooler": lambda found, mask: found.pooler_output,
}


def projection(given) -> nn.Module:
    return nn.Linear(given["in"], given["out"], given["bias"]) if given else nn.Identity()


class MedSLIPModel(PreTrainedModel):
    config_class = MedSLIPConfig
    base_model_prefix = "medslip"
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        if "timm" in config.image_tower:
            import timm

            build = timm.models.model_entrypoint(config.image_tower["timm"])
            self.image_encoder = build(**config.image_tower["arguments"], num_classes=0)
        else:
            self.image_encoder = AutoModel.from_config(AutoConfig.for_model(**config.image_tower))
        self.image_projection = projection(config.image_projection)
        if config.text_tower:
            text = AutoConfig.for_model(**config.text_tower)
            try:
                self.text_encoder = AutoModel.from_config(text, add_pooling_layer=False)
            except TypeError:  # not every architecture has a pooler to leave out
                self.text_encoder = AutoModel.from_config(text)
            self.text_projection = projection(config.text_projection)
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
            if config.logit_bias:
                self.register_buffer("logit_bias", torch.tensor(0.0))
        self.post_init()

    def _init_weights(self, module):
        """Weights come from the file; timm's buffers that no file holds are computed again."""
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()

    def get_image_features(self, pixel_values, **kwargs) -> BaseModelOutputWithPooling:
        """(B, 3, H, W) as the image processor gives them -> `pooler_output` (B, D), projected, not L2-normalised."""
        found = self.image_encoder(pixel_values)
        found = found if torch.is_tensor(found) else found.pooler_output
        return BaseModelOutputWithPooling(pooler_output=self.image_projection(found))

    def get_text_features(self, input_ids, attention_mask=None, **kwargs) -> BaseModelOutputWithPooling:
        """(B, T) as the tokenizer gives them -> `pooler_output` (B, D), projected, not L2-normalised."""
        if not self.config.text_tower:
            raise ValueError("this model was trained without captions: it has no text tower")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = self.config.text_pooling in ("masked", "padded", "last_four")
        found = self.text_encoder(input_ids=input_ids, attention_mask=mask, output_hidden_states=states)
        pooled = POOLINGS[self.config.text_pooling](found, mask)
        return BaseModelOutputWithPooling(pooler_output=self.text_projection(pooled))

    def forward(self, input_ids=None, pixel_values=None, attention_mask=None, return_loss=False, **kwargs):
        """CLIP's outputs: `image_embeds` (B, D) and `text_embeds` (C, D), L2-normalised, `logits_per_image` (B, C) and
        `logits_per_text` (C, B), and with `return_loss` CLIP's loss. What is not given is None."""
        image = text = per_text = loss = None
        if pixel_values is not None:
            image = nn.functional.normalize(self.get_image_features(pixel_values).pooler_output, dim=-1)
        if input_ids is not None:
            text = nn.functional.normalize(self.get_text_features(input_ids, attention_mask).pooler_output, dim=-1)
        if image is not None and text is not None:
            per_text = text @ image.T * self.logit_scale.exp() + getattr(self, "logit_bias", 0)
            if return_loss:
                own = torch.arange(len(per_text), device=per_text.device)
                loss = (nn.functional.cross_entropy(per_text, own) + nn.functional.cross_entropy(per_text.T, own)) / 2
        return CLIPOutput(
            loss=loss, logits_per_image=None if per_text is None else per_text.T, logits_per_text=per_text,
            text_embeds=text, image_embeds=image,
        )  # fmt: skip


class MedSLIPImageProcessor(BaseImageProcessor):
    """Images -> `pixel_values` (B, 3, S, S) as the evaluation of the training saw them.

    `fit` says how an image becomes square. "squash": its sides are changed to `image_size`. "center": the shorter side
    is brought to it, and the middle is cut out. "center256": the same after the shorter side is brought to 8/7 of it.
    "MODE FILTER FILL SHARE" are those of published models: mode shortest, middle, squash or longest.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(self, image_size=224, fit="center", image_mean=(0.5,) * 3, image_std=(0.5,) * 3, **kwargs):
        super().__init__(**kwargs)
        self.image_size, self.fit = image_size, fit
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    def preprocess(self, images, return_tensors="pt", **kwargs) -> BatchFeature:
        """One or a list of PIL images, or of arrays (H, W) or (H, W, 3) of uint8 or uint16."""
        images = images if isinstance(images, (list, tuple)) else [images]
        pixels = np.stack([np.asarray(self.square(as_rgb(image)), np.float32) for image in images]) / 255
        pixels = (pixels - np.float32(self.image_mean)) / np.float32(self.image_std)
        return BatchFeature({"pixel_values": pixels.transpose(0, 3, 1, 2)}, tensor_type=return_tensors)

    def square(self, image: Image.Image) -> Image.Image:
        size, fit = self.image_size, self.fit
        if " " not in fit:  # MedSLIP's own
            if fit == "squash":
                return image.resize((size, size), Image.BILINEAR)
            short = round(size * 8 / 7) if fit == "center256" else size
            scale = short / min(image.size)
            image = image.resize([max(short, round(side * scale)) for side in image.size], Image.BILINEAR)
            left, top = (image.width - size) // 2, (image.height - size) // 2
            return image.crop((left, top, left + size, top + size))
        words = fit.split()
        mode, interpolation, fill, share = words + ["0", "1"][len(words) - 2 :]
        how = Image.BILINEAR if interpolation == "bilinear" else Image.BICUBIC
        target = math.floor(size / float(share) + 1e-6)
        if mode == "longest":
            ratio = max(image.size) / target
            image = image.resize([max(1, round(side / ratio)) for side in image.size], how)
            square = Image.new("RGB", (target, target), (int(fill),) * 3)
            square.paste(image, ((target - image.width) // 2, (target - image.height) // 2))
            image = square
        else:
            sides = [target] * 2 if mode == "squash" else [int(target * side / min(image.size)) for side in image.size]
            image = image.resize(sides, how)
        left, top = ((int if mode == "middle" else round)((side - size) / 2) for side in image.size)
        return image.crop((left, top, left + size, top + size))


def as_rgb(image) -> Image.Image:
    """16 bits keep their high byte, transparent pixels become black."""
    if not isinstance(image, Image.Image):
        image = np.asarray(image)
        image = Image.fromarray(image if image.dtype == np.uint8 else (image // 257).astype(np.uint8))
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I", "F"):
        pixels = np.asarray(image).astype(np.float32)
        if image.mode != "F" and pixels.max(initial=0) > 255:
            pixels = pixels / 257
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert("RGB")
