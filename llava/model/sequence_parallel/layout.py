"""How the ranks of a group attend together: what reaches every layer in the place of a `PackedLayout`."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from llava.model.attention import PackedLayout, attend_by_layout, build_layout
from llava.model.sequence_parallel.groups import SequenceGroup
from llava.model.sequence_parallel.ring import RingPlan, ring_attention
from llava.model.sequence_parallel.split import ColumnSplit
from llava.model.sequence_parallel.ulysses import columns_to_heads, heads_to_columns


@dataclass(frozen=True, kw_only=True)
class SplitLayout:
    """Segments of whole rows of which this rank holds some columns; `attend` is called by every layer, on every rank.

    Attributes:
        packed: the whole padded rows; read where no ring is.
        ring: what this rank takes from which part; None for Ulysses alone.
    """

    group: SequenceGroup
    packed: PackedLayout
    ring: RingPlan | None

    def attend(
        self,
        query: Float[Tensor, "b h l d"],
        key: Float[Tensor, "b k l d"],
        value: Float[Tensor, "b k l d"],
        *,
        dropout: float = 0.0,
        scaling: float | None = None,
        window: int | None = None,
    ) -> Float[Tensor, "b l h d"]:
        group = self.group
        exchanges_heads = group.config.ulysses_size > 1
        if exchanges_heads:
            query, key, value = heads_to_columns(query, key, value, group.ulysses)
        if self.ring is not None:
            if dropout > 0:
                raise ValueError(f"attention dropout is {dropout}, the ring computes none; set attention_dropout to 0")
            attended = ring_attention(query, key, value, self.ring, group.ring, scaling=scaling, window=window)
        else:
            attended = attend_by_layout(query, key, value, self.packed, dropout=dropout, scaling=scaling, window=window)
        return columns_to_heads(attended, group.ulysses) if exchanges_heads else attended


def build_split_layout(
    segment_ids: Int[Tensor, "b s"], branch_ids: Int[Tensor, "b s"] | None, split: ColumnSplit, group: SequenceGroup
) -> SplitLayout:
    """For whole rows that are padded as `split` says; branch_ids None = no branches."""
    if group.config.ring_size == 1:
        return SplitLayout(group=group, packed=build_layout(segment_ids, branch_ids), ring=None)
    bounds = build_layout(segment_ids, None)  # masks are made piece by piece
    ring = RingPlan(layout=bounds, branch_ids=branch_ids, split=split, rank=group.ring_rank)
    return SplitLayout(group=group, packed=bounds, ring=ring)
