"""Small facts shared by the parts of a model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import nn


def count_visual_tokens(image_size: int, patch_size: int, downsample_rate: int) -> int:
    """Language-model positions of one square picture; a grid that does not divide grows (27 at rate 2 -> 14)."""
    from llava.mm_utils import visual_tokens_per_image

    return visual_tokens_per_image(image_size, patch_size, downsample_rate)


def is_trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def is_partitioned(parameters: Iterable[nn.Parameter]) -> bool:
    """True under ZeRO-3, where every rank must run every module although its weights may be frozen."""
    first = next(iter(parameters), None)
    return first is not None and hasattr(first, "ds_id")


def is_checkpoint_folder(path: str | Path) -> bool:
    return (Path(path) / "config.json").is_file()
