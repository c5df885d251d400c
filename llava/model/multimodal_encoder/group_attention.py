"""Attention among the patches of one group: groups lie end to end in one row, none sees another, no dense mask.

The layout travels in the place of the attention mask, because transformers' SigLIP hands nothing else down to its
attention function. With a plain mask, or none, our key is transformers' `sdpa`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None

GROUPED_ATTENTION = "llava_patch_groups"


@dataclass(frozen=True, kw_only=True)
class GroupLayout:
    """Lengths of the groups of a row; bounds [groups + 1] are their ends as a kernel reads them."""

    lengths: tuple[int, ...]
    bounds: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: Any) -> GroupLayout:
        if not lengths or min(lengths) < 1:
            raise ValueError(f"group lengths are {list(lengths)}, expected at least one group and no empty one")
        ends = list(accumulate(lengths, initial=0))
        return cls(lengths=tuple(lengths), bounds=torch.tensor(ends, dtype=torch.int32, device=device))


def grouped_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention function of our key: query, key, value [B, H, S, D] -> [B, S, H, D]."""
    if not isinstance(attention_mask, GroupLayout):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if query.is_cuda and varlen_attn is not None and query.dtype != torch.float32 and not dropout:
        return _attend_varlen(query, key, value, attention_mask, scaling), None
    lengths = list(attention_mask.lengths)
    parts = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    attended = [F.scaled_dot_product_attention(*qkv, dropout_p=dropout, scale=scaling) for qkv in parts]
    return torch.cat(attended, dim=2).transpose(1, 2).contiguous(), None


def _attend_varlen(query: Tensor, key: Tensor, value: Tensor, layout: GroupLayout, scaling: float | None) -> Tensor:
    """One variable-length kernel for all groups, on CUDA in half precision."""
    assert varlen_attn is not None
    q, k, v = (states.transpose(1, 2).flatten(0, 1).contiguous() for states in (query, key, value))  # [S, H, D]
    bounds, longest = layout.bounds, max(layout.lengths)
    out = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling, window_size=(-1, -1))
    return out[None]  # pyright: ignore[reportReturnType, reportCallIssue, reportArgumentType, reportIndexIssue]


def register_grouped_attention() -> None:
    """Adds our key to transformers' tables through its public interface; harmless when called again."""
    AttentionInterface.register(GROUPED_ATTENTION, grouped_attention_forward)
    AttentionMaskInterface.register(GROUPED_ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


register_grouped_attention()
