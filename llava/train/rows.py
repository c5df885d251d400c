"""Padded or packed rows: what `--packing` means for a model and its data."""

from __future__ import annotations

import logging
from typing import Any

import torch

from llava.model.attention import PACKED_ATTENTION, resolve_implementation
from llava.train.parse import RunArguments

logger = logging.getLogger(__name__)

WITHOUT_MASK = (PACKED_ATTENTION, "flex_attention")
"""Attention that keeps packed samples apart without a mask over the whole row; every flash kernel does, too."""


def packs_rows(args: RunArguments, model: Any, *, has_branches: bool) -> bool:
    """True where the samples of a batch are laid end to end in one row, False where each has a padded row.

    Both train the same: packed samples do not see each other. `auto` packs wherever that costs less.

    Args:
        has_branches: the data hide tokens inside a sample (streaming decisions, asides).
    """
    training = args.training
    if training.packing != "auto":
        return training.packing == "True"
    if training.tokens_per_batch > 0:
        return True
    half = training.bf16 or training.fp16 or model.dtype in (torch.bfloat16, torch.float16)
    obstacle = obstacle_to_packing(model.llm.config, training.device.type, half=half, has_branches=has_branches)
    if obstacle:
        logger.info("rows are padded, because %s; --packing True packs them anyway", obstacle)
    return obstacle is None


def obstacle_to_packing(llm_config: Any, device: str, *, half: bool, has_branches: bool) -> str | None:
    """Why packed rows would cost more than padded ones: a mask, and its work, over the square of the whole row."""
    implementation = resolve_implementation(llm_config._attn_implementation)
    if implementation not in WITHOUT_MASK and not implementation.startswith("flash_attention"):
        return f"attn_implementation '{implementation}' needs a dense mask to keep samples of a row apart"
    if implementation != PACKED_ATTENTION or device == "cpu":
        return None
    if has_branches:
        return "samples that hide some of their own tokens need a dense mask on a GPU"
    return None if half else "the kernel for packed rows needs --bf16 True on a GPU"
