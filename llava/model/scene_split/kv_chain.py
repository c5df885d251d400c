"""Prefixes that are kept in stretches: system and background, objects, text and next background, and so on.

A request takes the stretches as they lie in the cache. Nothing is copied before the language model runs, and then once:
its first `update` joins them with the new keys and values, as every prefill joins what it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from llava.model.scene_split.prefix import KvPrefix, join_prefixes, stack_prefixes

Chain = Sequence[KvPrefix]


class ChainLayer(DynamicLayer):
    """A cache layer that begins with several stretches of somebody else's tensors, and never writes to them."""

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        super().__init__()
        self._stretches: tuple[list[Tensor], list[Tensor]] | None = list(keys), list(values)
        self.dtype, self.device = keys[0].dtype, keys[0].device
        self.is_initialized = True

    def update(
        self, key_states: Float[Tensor, "b h n w"], value_states: Float[Tensor, "b h n v"], *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self._stretches is None:
            return super().update(key_states, value_states, *args, **kwargs)
        keys, values = self._stretches
        self._stretches = None
        self.keys = torch.cat([*keys, key_states], dim=-2)
        self.values = torch.cat([*values, value_states], dim=-2)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        if self._stretches is None:
            return super().get_seq_length()
        return sum(each.shape[-2] for each in self._stretches[0])

    def reset(self) -> None:
        """Lets go of the tensors."""
        self._stretches = self.keys = self.values = None
        self.is_initialized = False


def share_chains(
    chains: Sequence[Chain], copies: int, device: torch.device
) -> tuple[DynamicCache, Bool[Tensor, "b n"]]:
    """One cache for a batch of requests, and which of its columns are real for each request.

    A chain that all rows share, or that is alone, is not copied; different ones are joined and stacked, one copy.

    Args:
        chains: one per request; an empty one begins with nothing.
        copies: rows of the cache per request, for beams and several answers.
    """
    first = list(chains[0])
    if all(list(map(id, chain)) == list(map(id, first)) for chain in chains):
        if not first:
            return DynamicCache(), torch.zeros(len(chains), 0, dtype=torch.bool, device=device)
        length = sum(stretch.length for stretch in first)
        is_real = torch.ones(len(chains), length, dtype=torch.bool, device=device)
        return _share(first, len(chains) * copies), is_real
    like = next(chain[0] for chain in chains if chain)
    nothing = like.cut(0, 0)
    joined = [join_prefixes(chain) if chain else nothing for chain in chains]
    cache, is_real = stack_prefixes([each for each in joined for _ in range(copies)])
    return cache, is_real[::copies]


def _share(chain: Chain, rows: int) -> DynamicCache:
    if len(chain) == 1:
        return chain[0].share(rows)
    cache = DynamicCache()
    for layer in range(len(chain[0].keys)):
        keys = [stretch.keys[layer].expand(rows, -1, -1, -1) for stretch in chain]
        values = [stretch.values[layer].expand(rows, -1, -1, -1) for stretch in chain]
        cache.layers.append(ChainLayer(keys, values))
    return cache


def stretch_of(cache: Any, row: int, start: int, stop: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """Keys and values [1, heads, stop - start, width] of some columns of one row of a cache, layer by layer; views."""
    kept = slice(row, row + 1), slice(None), slice(start, stop)
    return tuple((layer.keys[kept], layer.values[kept]) for layer in cache.layers)
