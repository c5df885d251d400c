"""Tiny random towers, masks, a tokenizer of a few words, and rows of a split picture."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import CLIPVisionConfig, PreTrainedTokenizerFast, SiglipVisionConfig

from llava.model.multimodal_encoder.clip_encoder import ClipVisionTower
from llava.model.multimodal_encoder.siglip_encoder import SiglipVisionTower
from llava.model.multimodal_encoder.vision_encoder import VisionTower
from llava.model.multimodal_projector.base_projector import MultimodalProjector
from llava.model.multimodal_projector.builder import build_mm_projector

PATCH, WIDTH, LANGUAGE_WIDTH = 4, 16, 24
TOWERS = ("siglip", "clip")


def make_tower(kind: str = "siglip", *, grid: int = 4, seed: int = 0, **how: Any) -> VisionTower:
    """Random weights, grid x grid patches, three layers of width 16; weights so large that a leak shows."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": grid * PATCH,
        "patch_size": PATCH,
    }
    tower_class, config = {
        "siglip": (SiglipVisionTower, SiglipVisionConfig(**sizes, vision_use_head=False)),
        "clip": (ClipVisionTower, CLIPVisionConfig(**sizes)),
    }[kind]
    tower = tower_class(tower_class.model_class._from_config(config, attn_implementation="sdpa"), **how)
    with torch.no_grad():
        for parameter in tower.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return tower.eval()


def make_projector(kind: str = "mlp_downsample", order: str = "row") -> MultimodalProjector:
    torch.manual_seed(1)
    return build_mm_projector(kind, WIDTH, LANGUAGE_WIDTH, token_order=order).eval()


def pictures(count: int, grid: int = 4, seed: int = 0) -> Tensor:
    """uint8 [count, 3, grid * PATCH, grid * PATCH]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, grid * PATCH, grid * PATCH), dtype=torch.uint8, generator=generator)


def repaint(pixels: Tensor, chosen: Tensor, seed: int = 1) -> Tensor:
    """The same pictures with other pixels in the chosen patches [n, grid * grid]."""
    grid = round(chosen.shape[1] ** 0.5)
    where = chosen.view(-1, 1, grid, grid).repeat_interleave(PATCH, dim=2).repeat_interleave(PATCH, dim=3)
    return torch.where(where, pictures(len(pixels), grid, seed), pixels)


def mask_of(*rows: str) -> Tensor:
    """[n, patches] from one string per picture such as "..##", row by row; # = object."""
    return torch.tensor([[each == "#" for each in row if each in ".#"] for row in rows])


def worst(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference."""
    assert found.shape == expected.shape
    return (found - expected).abs().max().item() if found.numel() else 0.0


@st.composite
def box_masks(draw: Any, grid: int, cell: int = 1, most: int = 3) -> Tensor:
    """[n, grid * grid]: boxes of cells, from none to everything, for one to `most` pictures."""
    cells = -(-grid // cell)
    masks = torch.zeros(draw(st.integers(1, most)), cells, cells, dtype=torch.bool)
    for mask in masks:
        for _ in range(draw(st.integers(0, 2))):
            top, left = draw(st.integers(0, cells - 1)), draw(st.integers(0, cells - 1))
            height, width = draw(st.integers(0, cells)), draw(st.integers(0, cells))
            mask[top : top + height, left : left + width] = True
    fine = masks.repeat_interleave(cell, dim=1).repeat_interleave(cell, dim=2)
    return fine[:, :grid, :grid].flatten(1)


def make_tokenizer(num_words: int = 8) -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", *[f"w{index}" for index in range(num_words)]]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
