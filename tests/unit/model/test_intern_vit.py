"""InternViT-6B is the InternVL tower with other settings: RMSNorm, normalised queries and keys, no attention bias."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import llava
from llava.model.builder import build_model
from tests.numerics.models import pictures, tiny_config, worst

TOLERANCE = 1e-6  # measured worst: 4.8e-7, against the formula; 0 against transformers' class
SHAPE = {"norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": False, "layer_norm_eps": 1e-6}
"""What tells the 6B model (width 3200, 45 layers, 25 heads, 12800 inside) from the 300M one."""


def tiny_intern_vit(**kw: Any) -> Any:
    config = tiny_config("llama", "internvl_vision", **kw)
    config["vision_tower_cfg"] |= SHAPE
    torch.manual_seed(0)
    model = build_model(config)
    with torch.no_grad():  # norms and scales that start at one or at 0.1 must matter
        for parameter in model.vision_tower.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


def floats(side: int = 32) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + SHAPE["layer_norm_eps"])


def layer_by_formula(x: Tensor, w: dict[str, Tensor], heads: int) -> Tensor:
    """x + s1 * attention(norm(x)), then + s2 * mlp(norm(.)); queries and keys are normed over all heads at once."""

    def split(t: Tensor) -> Tensor:
        return t.unflatten(-1, (heads, -1)).transpose(1, 2)

    inside = rms(x, w["layernorm_before.weight"])
    q, k, v = (inside @ w[f"attention.{name}_proj.weight"].T for name in "qkv")
    q, k = rms(q, w["attention.q_norm.weight"]), rms(k, w["attention.k_norm.weight"])
    scores = split(q) @ split(k).transpose(-1, -2) * split(q).shape[-1] ** -0.5
    mixed = (scores.softmax(dim=-1) @ split(v)).transpose(1, 2).flatten(2)
    x = x + w["lambda_1"] * F.linear(
        mixed, w["attention.projection_layer.weight"], w["attention.projection_layer.bias"]
    )
    inside = F.gelu(F.linear(rms(x, w["layernorm_after.weight"]), w["mlp.fc1.weight"], w["mlp.fc1.bias"]))
    return x + w["lambda_2"] * F.linear(inside, w["mlp.fc2.weight"], w["mlp.fc2.bias"])


def test_features_are_those_of_the_formula_and_of_transformers():
    tower = tiny_intern_vit(mm_vision_select_feature="cls_patch").vision_tower
    with torch.no_grad():
        found = tower(floats())
        states = tower.vision_tower(floats(), output_hidden_states=True).hidden_states
        expected = tower.vision_tower.embeddings(floats())
        for layer in tower.encoder_layers:
            expected = layer_by_formula(expected, layer.state_dict(), heads=2)
    assert expected.abs().max() > 0.5
    assert worst(found, states[-1]) == 0
    assert worst(found, expected) <= TOLERANCE * expected.abs().max().item()


def test_no_weight_of_the_other_shape_is_there():
    names = {name for name, _ in tiny_intern_vit().vision_tower.vision_tower.named_parameters()}
    assert not any("norm" in name and name.endswith("bias") and name.startswith("encoder") for name in names)
    assert not any(name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")) for name in names)
    assert any(name.endswith("attention.q_norm.weight") for name in names)


def test_a_gradient_reaches_every_trained_weight():
    model = tiny_intern_vit().train()
    ids = torch.tensor([[1, -200, 5, 6, 7]])
    model(ids, pictures(1), labels=ids.masked_fill(ids < 0, -100)).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("extra", [{}, {"vision_resolution": 48}, {"s2": True, "s2_scales": "32,64"}])
def test_it_survives_saving(tmp_path: Path, extra: dict[str, Any]):
    model = tiny_intern_vit(**extra)
    model.save_pretrained(tmp_path)
    again = llava.load(tmp_path)
    expected, found = model.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    shown = pictures(1, size=model.visual_spec.image_size)
    with torch.no_grad():
        assert torch.equal(model.encode_images(shown), again.encode_images(shown))
    assert (again.vision_tower.config.norm_type, again.vision_tower.config.use_qk_norm) == ("rms_norm", True)
