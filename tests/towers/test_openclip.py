"""open_clip's models as MedSLIP's: the same embeddings, views, tokens and zero-shot as open_clip's own."""

import pytest
import torch
from conftest import picture
from openclip_layout import MODELS, TEXTS, opened_by_open_clip, publish

import models
from data import augment
from data.images import as_picture, to_gray_or_rgb
from data.tokens import Tokens
from data.views import WholeImages


def create(folder, objective="clip", **how):
    """-> the model with the folder's weights in eval mode, and what is known of it."""
    arch = f"open_clip:local-dir:{folder}"
    known = models.resolve(models.source(arch).published)(arch, None)
    size = how.pop("image_size", known.image_size)
    how.setdefault("pretrained", known.pretrained)
    return models.create_model(arch, objective, image_size=size, published=known._asdict(), **how).eval(), known


@torch.no_grad()
def text_embeddings(model, known, folder, texts, kept=None):
    tokenizer, kept = models.own_tokenizer(f"open_clip:local-dir:{folder}", known._asdict(), kept)
    batch = Tokens(tokenizer, texts, known.context_length).batch(range(len(texts)))
    chunks = [model.encode_text(*one) for one in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    return torch.cat(chunks)[batch["text_order"]], tokenizer, kept


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
def test_the_embeddings_are_open_clips(kind, tmp_path):
    folder = publish(kind, tmp_path / "model", safe=kind != "resnet")
    model, known = create(folder)
    reference, transform, tokenize = opened_by_open_clip(folder)
    pictures = [picture(i, size, colour) for i, (size, colour) in enumerate([((300, 201), False), ((90, 260), True)])]

    class Some:
        def __len__(self):
            return len(pictures)

        def __getitem__(self, i):
            return as_picture(to_gray_or_rgb(pictures[i]))

    batch = WholeImages(Some(), None, known.image_size, known.fit).__getitems__([0, 1])
    (pixels,) = augment.make_views(batch, known.mean, known.std, torch.device("cpu"))
    given = torch.stack([transform(one.convert("RGB")) for one in pictures])
    assert (pixels - given).abs().max() < 1e-5
    difference = {"image": (model.encode_image(pixels) - reference.encode_image(given)).abs().max().item()}
    found, _, kept = text_embeddings(model, known, folder, TEXTS)
    difference["text"] = (found - reference.encode_text(tokenize(TEXTS))).abs().max().item()
    print(kind, difference)
    assert max(difference.values()) < 1e-5
    assert model.logit_scale.item() == reference.logit_scale.item()
    assert (reference.logit_bias is None) == ("logit_bias" not in model.state_dict())
    again, *_ = text_embeddings(model, known, folder, TEXTS, kept)
    assert torch.equal(again, found)
