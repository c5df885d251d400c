"""Ulysses: ranks give away attention heads and receive columns, so that each attends with some heads over all columns.

Method: Jacobs et al., DeepSpeed-Ulysses (arXiv 2309.14509). Keys and values with fewer heads than ranks are repeated.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from llava.model.sequence_parallel.collectives import all_to_all


def check_heads(num_heads: int, ulysses_size: int) -> None:
    """Raises ValueError where heads cannot be dealt evenly."""
    if num_heads % ulysses_size:
        raise ValueError(
            f"the language model has {num_heads} attention heads and the Ulysses degree is {ulysses_size}, expected a "
            f"divisor of {num_heads}; give the rest to the ring: --seq_parallel_ring_size R makes the Ulysses degree "
            "seq_parallel_size / R"
        )


def key_value_copies(num_heads: int, num_kv_heads: int, ulysses_size: int) -> int:
    """How often each key/value head is repeated so that every rank gets the ones that its query heads read."""
    groups = num_heads // num_kv_heads
    copies = (n for n in range(1, groups + 1) if groups % n == 0 and num_kv_heads * n % ulysses_size == 0)
    return next(copies)


def heads_to_columns(
    query: Float[Tensor, "b h l d"], key: Float[Tensor, "b k l d"], value: Float[Tensor, "b k l d"], group: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """This rank's columns of all heads -> all columns of the Ulysses group for this rank's heads, in one exchange."""
    size = dist.get_world_size(group)
    copies = key_value_copies(query.shape[1], key.shape[1], size)
    if copies > 1:
        key, value = key.repeat_interleave(copies, dim=1), value.repeat_interleave(copies, dim=1)
    dealt = [t.unflatten(1, (size, t.shape[1] // size)) for t in (query, key, value)]  # [B, ranks, heads, L, D]
    sent = torch.cat(dealt, dim=2).movedim(1, 0)
    received = all_to_all(sent, group)  # [ranks, B, heads, L, D], from which rank the columns come
    columns = received.permute(1, 2, 0, 3, 4).flatten(2, 3)  # [B, heads, S, D]
    return columns.split([t.shape[2] for t in dealt], dim=1)  # pyright: ignore[reportReturnType]


def columns_to_heads(attended: Float[Tensor, "b s h d"], group: Any) -> Float[Tensor, "b l n d"]:
    """The way back: all columns of this rank's heads -> this rank's columns of all heads."""
    size = dist.get_world_size(group)
    sent = attended.unflatten(1, (size, attended.shape[1] // size)).movedim(1, 0)  # [ranks, B, L, heads, D]
    received = all_to_all(sent, group)
    return received.permute(1, 2, 0, 3, 4).flatten(2, 3)
