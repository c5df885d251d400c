"""Tiny random models and streaming sequences for the numerical tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llava.constants import IGNORE_INDEX
from llava.model.builder import build_model

VOCAB = 60
IMAGE = VOCAB + 3  # beyond the embedding rows, as with a tokenizer that is longer than the table
LLMS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    # windows shorter than the sequences of the tests, so that they matter
    "mistral": {"num_key_value_heads": 2, "sliding_window": 6},
    "mixtral": {"num_key_value_heads": 2, "sliding_window": 6, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma": {"num_key_value_heads": 2, "head_dim": 8},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6},
    "gemma3_text": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": {"num_key_value_heads": 2, "sliding_window": 6},
}
TOWERS: dict[str, dict[str, Any]] = {
    "siglip_vision_model": {"patch_size": 8},
    "clip_vision_model": {"patch_size": 8},
    "siglip_stem": {"patch_size": 8, "stem_strides": (4, 2)},
    "dinov2": {"patch_size": 8, "mlp_ratio": 2},
    "dinov2_with_registers": {"patch_size": 8, "mlp_ratio": 2, "num_register_tokens": 3},
    "internvl_vision": {"patch_size": 8},
    "radio": {"patch_size": 8, "mlp_ratio": 2.0, "max_img_size": 96, "num_cls_tokens": 2, "num_registers": 3},
}


def tiny_config(
    llm: str = "llama", tower: str = "siglip_stem", projector: Any = "mlp_downsample", **kw: Any
) -> dict[str, Any]:
    width = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {
        "llm_cfg": {
            "model_type": llm,
            "vocab_size": VOCAB,
            "max_position_embeddings": 512,
            **width,
            **LLMS[llm],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        "vision_tower_cfg": {
            "model_type": tower,
            "image_size": 32,
            **width,
            **TOWERS[tower],
            "hidden_size": 24,
            "num_attention_heads": 2,
        },
        "mm_projector_cfg": "mlp_downsample",
        "image_token_id": IMAGE,
        **kw,
    }


def tiny_model(
    llm: str = "llama", tower: str = "siglip_stem", seed: int = 0, attn: str | None = None, **kw: Any
) -> Any:
    torch.manual_seed(seed)
    model = build_model(tiny_config(llm, tower, **kw), attn_implementation=attn)
    with torch.no_grad():  # large enough weights that a leak would show
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    return model.eval()


def pictures(count: int, seed: int = 0, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def worst(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference."""
    assert found.shape == expected.shape
    return (found - expected).abs().max().item()


def worst_gradient(found: Tensor, expected: Tensor) -> float:
    """Largest difference by the largest entry; tensors whose gradient is zero in theory hold only rounding."""
    return worst(found, expected) / expected.abs().max().clamp(min=1e-2).item()


@dataclass
class Episode:
    """A streaming episode: task text, then per decision a picture and branches that hang there."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)

    def add(self, ids: list[int], branch: int = 0, supervised: bool = False) -> Episode:
        self.ids += ids
        self.labels += ids if supervised else [IGNORE_INDEX] * len(ids)
        self.branches += [branch] * len(ids)
        return self

    def tensors(self) -> dict[str, Tensor]:
        return {
            "input_ids": torch.tensor([self.ids]),
            "labels": torch.tensor([self.labels]),
            "branch_ids": torch.tensor([self.branches]),
        }
