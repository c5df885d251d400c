"""Ring attention: keys and values go round, each rank adds what its own queries take from every part.

Method: Liu et al., Ring Attention (arXiv 2310.01889). A row is looked at segment by segment, so packed samples cost
nothing beyond their own attention, and parts that no query of this rank may see are passed on without being read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from llava.model.attention import PackedLayout, position_ids_of
from llava.model.sequence_parallel.block_attention import attend_block, attend_block_backward, merge_
from llava.model.sequence_parallel.collectives import Passing
from llava.model.sequence_parallel.split import Chunk, ColumnSplit


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Queries and keys of one segment, as places in this rank's and in another rank's part of a row."""

    row: int
    queries: slice
    keys: slice
    is_causal: bool
    visible: Tensor | None  # bool [queries, keys]; None = all, or all that are not later


@dataclass(kw_only=True)
class RingPlan:
    """What the queries of one ring rank take from the part of each rank; made once per batch, for all layers.

    Args:
        layout: segments of the whole padded rows; branch_ids: of the same rows, None = no branches.
    """

    layout: PackedLayout
    branch_ids: Tensor | None
    split: ColumnSplit
    rank: int
    _pieces: dict[tuple[int, int | None], list[Piece]] = field(default_factory=dict)
    _positions: Tensor | None = None

    @property
    def num_ranks(self) -> int:
        return self.split.config.ring_size

    def pieces(self, source: int, window: int | None) -> list[Piece]:
        """What is taken from the part that came from a ring rank, under a sliding window or none."""
        key = source, window
        if key not in self._pieces:
            self._pieces[key] = list(self._find(source, window))
        return self._pieces[key]

    def _find(self, source: int, window: int | None) -> Iterator[Piece]:
        for own in self.split.chunks(self.rank):
            for other in self.split.chunks(source):
                if other.start > own.start:
                    continue
                for segment in self.layout.segments:
                    queries, keys = (_overlap(c, segment.start, segment.stop) for c in (own, other))
                    if segment.is_padding or queries is None or keys is None:
                        continue
                    if self._is_out_of_reach(queries, keys, window):
                        continue
                    visible = self._visible(segment.row, queries, keys, window)
                    if visible is not None and not bool(visible.any()):
                        continue
                    yield Piece(
                        row=segment.row,
                        queries=_within(own, queries),
                        keys=_within(other, keys),
                        is_causal=own.start == other.start and visible is None,
                        visible=visible,
                    )

    def _is_out_of_reach(self, queries: range, keys: range, window: int | None) -> bool:
        """Where the window alone hides all keys, which without branches the columns tell."""
        return window is not None and self.branch_ids is None and queries.start - keys[-1] >= window

    def _visible(self, row: int, queries: range, keys: range, window: int | None) -> Tensor | None:
        """None where the order alone decides."""
        if window is not None and queries.stop - keys.start <= window:
            window = None  # positions are never further apart than columns
        if self.branch_ids is None and window is None:
            return None
        device = self.layout.segment_ids.device
        query_index = torch.arange(queries.start, queries.stop, device=device)[:, None]
        key_index = torch.arange(keys.start, keys.stop, device=device)[None, :]
        visible = key_index <= query_index
        if self.branch_ids is not None:
            branch = self.branch_ids[row]
            visible = visible & ((branch[key_index] == 0) | (branch[key_index] == branch[query_index]))
        if window is not None:
            if self._positions is None:
                branches = torch.zeros_like(self.layout.segment_ids) if self.branch_ids is None else self.branch_ids
                self._positions = position_ids_of(self.layout.segment_ids, branches)
            position = self._positions[row]
            visible = visible & (position[query_index] - position[key_index] < window)
        return visible


def _overlap(chunk: Chunk, start: int, stop: int) -> range | None:
    found = range(max(chunk.start, start), min(chunk.stop, stop))
    return found if len(found) else None


def _within(chunk: Chunk, columns: range) -> slice:
    offset = chunk.place - chunk.start
    return slice(columns.start + offset, columns.stop + offset)


class _RingAttention(torch.autograd.Function):
    """The backward pass sends keys and values round once more, with their gradients, instead of keeping every part."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: RingPlan,
        scale: float,
        window: int | None,
        group: Any,
    ) -> Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        out = query.new_zeros(query.shape, dtype=wide)
        log_sum = out.new_full(query.shape[:3], -torch.inf)
        for source, (keys, values) in _round(plan, (key, value), group):
            for piece in plan.pieces(source, window):
                own, theirs = (piece.row, slice(None), piece.queries), (piece.row, slice(None), piece.keys)
                rule = {"visible": piece.visible, "is_causal": piece.is_causal}
                merge_(out[own], log_sum[own], *attend_block(query[own], keys[theirs], values[theirs], scale, **rule))
        ctx.save_for_backward(query, key, value, out, log_sum)
        ctx.plan, ctx.scale, ctx.window, ctx.group = plan, scale, window, group
        return out.to(query.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, log_sum = ctx.saved_tensors
        grad_out = grads[0].to(out.dtype)
        grad_dot_out = (grad_out * out).sum(dim=-1)
        grad_query = torch.zeros_like(out)
        grad_kv = tuple(torch.zeros_like(t, dtype=out.dtype) for t in (key, value))
        for source, (keys, values) in _round(ctx.plan, (key, value), ctx.group):
            for piece in ctx.plan.pieces(source, ctx.window):
                own, theirs = (piece.row, slice(None), piece.queries), (piece.row, slice(None), piece.keys)
                found = attend_block_backward(
                    query[own], keys[theirs], values[theirs], ctx.scale, piece.visible, piece.is_causal,
                    grad_out[own], log_sum[own], grad_dot_out[own],
                )  # fmt: skip
                grad_query[own] += found[0]
                for total, more in zip(grad_kv, found[1:], strict=True):
                    total[theirs] += more
            grad_kv = Passing(grad_kv, ctx.group, first_tag=2).wait()  # after the last pass everyone has its own
        return grad_query.to(query.dtype), grad_kv[0].to(key.dtype), grad_kv[1].to(value.dtype), None, None, None, None


def _round(plan: RingPlan, tensors: tuple[Tensor, ...], group: Any) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """(ring rank, its tensors), this rank's own first; the next ones travel while the caller works."""
    for step in range(plan.num_ranks):
        passing = Passing(tensors, group) if step < plan.num_ranks - 1 else None
        yield (plan.rank - step) % plan.num_ranks, tensors
        if passing is not None:
            tensors = passing.wait()


def ring_attention(
    query: Float[Tensor, "b h l d"],
    key: Float[Tensor, "b k l d"],
    value: Float[Tensor, "b k l d"],
    plan: RingPlan,
    group: Any,
    *,
    scaling: float | None = None,
    window: int | None = None,
) -> Float[Tensor, "b l h d"]:
    """Exact attention of this rank's columns to those of all ranks of the ring; padding gives zeros."""
    assert dist.get_world_size(group) == plan.num_ranks
    scale = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
    out: Any = _RingAttention.apply(query, key, value, plan, scale, window, group)
    return out.transpose(1, 2).contiguous()
