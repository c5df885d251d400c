"""Which columns of a row each rank holds, and how whole rows are padded, cut and put together again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llava.model.sequence_parallel.collectives import gather
from llava.model.sequence_parallel.groups import SequenceGroup, SequenceParallelConfig


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive columns start..stop of the whole row, which lie from `place` on in the ring rank that holds them."""

    start: int
    stop: int
    place: int


@dataclass(frozen=True)
class ColumnSplit:
    """Columns 0..length-1, padded to a multiple of what the group needs, dealt to its ranks in equal numbers."""

    length: int
    config: SequenceParallelConfig

    @cached_property
    def padded(self) -> int:
        config = self.config
        multiple = math.lcm(config.size, 2 * config.ring_size) if config.is_zigzag else config.size
        return max(1, -(-self.length // multiple)) * multiple

    @property
    def per_rank(self) -> int:
        return self.padded // self.config.size

    def chunks(self, ring_rank: int) -> tuple[Chunk, ...]:
        """The columns of a ring rank (of all its Ulysses ranks together), in the order in which it holds them."""
        rings = self.config.ring_size
        if not self.config.is_zigzag:
            width = self.padded // rings
            return (Chunk(start=ring_rank * width, stop=(ring_rank + 1) * width, place=0),)
        width = self.padded // (2 * rings)
        last = 2 * rings - 1 - ring_rank
        return (
            Chunk(start=ring_rank * width, stop=(ring_rank + 1) * width, place=0),
            Chunk(start=last * width, stop=(last + 1) * width, place=width),
        )

    def columns(self, rank: int) -> Int[Tensor, "l"]:
        """The columns that a rank holds, in its order."""
        ring_rank, ulysses_rank = divmod(rank, self.config.ulysses_size)
        block = torch.cat([torch.arange(chunk.start, chunk.stop) for chunk in self.chunks(ring_rank)])
        return block[ulysses_rank * self.per_rank : (ulysses_rank + 1) * self.per_rank]

    def places(self, rank: int) -> Int[Tensor, "s"]:
        """For each padded column where it lies in the rank, -1 = elsewhere."""
        places = torch.full((self.padded,), -1)
        columns = self.columns(rank)
        places[columns] = torch.arange(len(columns))
        return places

    @cached_property
    def order(self) -> Int[Tensor, "s"]:
        """Index of each padded column in the parts of all ranks laid end to end."""
        return torch.cat([self.columns(rank) for rank in range(self.config.size)]).argsort()

    def pad(self, rows: Tensor, value: Any) -> Tensor:
        """[B, length, ...] -> [B, padded, ...]."""
        return F.pad(rows, (0, 0) * (rows.ndim - 2) + (0, self.padded - self.length), value=value)

    def cut(self, padded_rows: Tensor, rank: int) -> Tensor:
        """[B, padded, ...] -> the columns of a rank."""
        return padded_rows.index_select(1, self.columns(rank).to(padded_rows.device))


def whole_rows(part: Float[Tensor, "b l d"], split: ColumnSplit, group: SequenceGroup) -> Float[Tensor, "b s d"]:
    """The rows of which every rank has a part, without the padding; a gradient goes back to who holds the column."""
    parts = gather(part, group.everyone)  # [ranks, B, L, D]
    rows = parts.transpose(0, 1).flatten(1, 2)
    return rows.index_select(1, split.order[: split.length].to(rows.device))
