"""MedCLIP's encoders against what the reference code returned; composition, locking and text pooling."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from medclip_layout import FIXTURES, medclip_state

import models
from utils import InputError


def relative_error(value, reference):
    reference = torch.from_numpy(reference)
    return ((value - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize(("kind", "arch"), [("vit", "medclip_vit"), ("resnet", "medclip_resnet")])
def test_medclip_parity(kind, arch, tmp_path):
    torch.save(medclip_state(kind), tmp_path / "pytorch_model.bin")
    model = models.create_model(arch, "clip", str(tmp_path)).eval()
    golden = np.load(FIXTURES / f"golden_{kind}_seed1.npz")
    given = {name: torch.from_numpy(golden[name]) for name in ("pixel_values", "gray_pixel_values")}
    ids, mask = torch.from_numpy(golden["input_ids"]), torch.from_numpy(golden["attention_mask"])
    with torch.no_grad():
        image = model.encode_image(given["pixel_values"])
        assert relative_error(image, golden["vision_projected"]) < 1e-4
        assert relative_error(model.encode_image(given["gray_pixel_values"]), golden["vision_gray"]) < 1e-4
        if "vision_pooled" in golden:
            pooled = model.encode_image(given["pixel_values"], projected=False)
            assert relative_error(pooled, golden["vision_pooled"]) < 1e-4
        masked = F.normalize(model.encode_text(ids, mask), dim=-1)
        assert relative_error(masked, golden["text_embed_unpadded"]) < 1e-4
        model.text_pooling = "padded"
        padded = F.normalize(model.encode_text(ids, mask), dim=-1)
        assert relative_error(padded, golden["text_embed"]) < 1e-4
        logits = model.logit_scale.exp() * F.normalize(image, dim=-1) @ padded[:2].T
    assert relative_error(logits, golden["logits"]) < 1e-4


def test_masked_pooling_ignores_padding():
    torch.manual_seed(0)
    model = models.create_model("resnet10t", "clip", text_model="tiny").eval()
    ids, mask = torch.randint(5, 100, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    with torch.no_grad():
        short = model.encode_text(ids, mask)
        long = model.encode_text(F.pad(ids, (0, 20)), F.pad(mask, (0, 20)))
    assert torch.allclose(short, long, atol=1e-5)


@pytest.mark.parametrize("arch", ["resnet10t", "vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_any_timm_encoder(arch):
    model = models.create_model(arch, "simclr", ssl_mlp_dim=16, ssl_emb_dim=8, image_size=64).eval()
    assert not hasattr(model, "text_encoder") and not hasattr(model, "logit_scale")
    pixels = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert model.encode_image(pixels).shape == (2, 512)
        assert model.encode_image(pixels, projected=False).shape == (2, model.image_projection.in_features)
        assert model(aug1=pixels, aug2=pixels)["aug1_embed"].shape == (2, 8)


def test_swin_takes_larger_images():
    model = models.create_model("medclip_vit", None).eval()
    with torch.no_grad():
        assert model.encode_image(torch.randn(1, 3, 384, 384)).shape == (1, 512)


def test_unknown_arch_is_named():
    with pytest.raises(InputError, match="--arch resnet10x: neither"):
        models.create_model("resnet10x", None)


def test_every_parameter_gets_a_gradient():
    """DistributedDataParallel waits for the gradient of every parameter, so that all must be used."""
    model = models.create_model("resnet10t", "slip", text_model="tiny", ssl_mlp_dim=16, ssl_emb_dim=8)
    ids = torch.randint(5, 100, (2, 9))
    out = model(
        torch.randn(2, 3, 32, 32), ids, torch.ones_like(ids), torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    )
    sum(value.sum() for value in out.values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_locked_tower_stays_as_it_is():
    model = models.create_model("resnet10t", "simclr", ssl_mlp_dim=16, ssl_emb_dim=8)
    model.lock("image_encoder")
    model.train()
    before = {key: value.clone() for key, value in model.image_encoder.state_dict().items()}
    model(aug1=torch.randn(4, 3, 32, 32), aug2=torch.randn(4, 3, 32, 32))["aug1_embed"].sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in model.image_encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in model.image_encoder.parameters())
    assert model.image_projection.weight.grad is not None


@pytest.mark.parametrize(("arch", "size"), [("medclip_vit", 224), ("resnet10t", 64)])
def test_gradient_checkpointing_changes_no_gradient(arch, size):
    torch.manual_seed(0)
    model = models.create_model(arch, "clip", text_model="tiny", image_size=size).train()
    ids = torch.randint(5, 100, (2, 9))
    inputs = (torch.randn(2, 3, size, size), ids, torch.ones_like(ids))

    def gradients():
        model.zero_grad()
        torch.manual_seed(1)  # dropout and stochastic depth: the recomputation must replay them
        out = model(*inputs)
        (out["image_embed"].square().sum() + out["text_embed"].square().sum()).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    plain = gradients()
    model.checkpoint_gradients()
    assert torch.allclose(gradients(), plain, rtol=1e-4, atol=1e-5 * plain.abs().max().item())


def test_an_encoder_that_cannot_recompute_its_activations():
    model = models.create_model("resnet10t", None)
    model.image_encoder = torch.nn.Flatten()
    with pytest.raises(InputError, match="--grad-checkpointing: Flatten cannot"):
        model.checkpoint_gradients()
