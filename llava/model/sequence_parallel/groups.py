"""Which processes share a sequence: `size` neighbours each, `ring_size` rings times `size / ring_size` Ulysses ranks.

Ranks of one Ulysses group are neighbours, so that its all-to-all stays inside a machine; rings go across.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

RING_TYPES = ("ring_varlen", "zigzag_ring_varlen")


@dataclass(frozen=True, kw_only=True)
class SequenceParallelConfig:
    """How many processes share a sequence, and how.

    Attributes:
        size: processes per sequence.
        ring_size: of these, how many pass keys and values round; the rest of the factor exchanges heads (Ulysses).
        ring_type: "ring_varlen" gives each ring rank consecutive tokens, "zigzag_ring_varlen" two pieces, one from
            each end, which evens out the work of causal attention.
    """

    size: int
    ring_size: int = 1
    ring_type: str = "ring_varlen"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"seq_parallel_size is {self.size}, expected at least 1")
        if self.ring_size < 1 or self.size % self.ring_size:
            divisors = [n for n in range(1, self.size + 1) if self.size % n == 0]
            raise ValueError(
                f"seq_parallel_ring_size is {self.ring_size}, expected a divisor of seq_parallel_size {self.size}: "
                f"one of {divisors} (1 = Ulysses alone, {self.size} = ring alone)"
            )
        if self.ring_type not in RING_TYPES:
            raise ValueError(f"seq_parallel_ring_type is '{self.ring_type}', expected one of {', '.join(RING_TYPES)}")

    @property
    def ulysses_size(self) -> int:
        return self.size // self.ring_size

    @property
    def is_zigzag(self) -> bool:
        return self.ring_size > 1 and self.ring_type == "zigzag_ring_varlen"


@dataclass(frozen=True, kw_only=True)
class GroupMembers:
    """Global ranks of every group of the job."""

    sequence: list[list[int]]
    ulysses: list[list[int]]
    ring: list[list[int]]


def group_members(world_size: int, config: SequenceParallelConfig) -> GroupMembers:
    """Who is with whom.

    Raises:
        ValueError: the processes cannot be divided into groups of this size.
    """
    if world_size % config.size:
        divisors = [n for n in range(1, world_size + 1) if world_size % n == 0]
        raise ValueError(
            f"seq_parallel_size is {config.size} and the job has {world_size} processes, expected a divisor of "
            f"{world_size}: one of {divisors}; change the flag or --nproc_per_node"
        )
    sequence = [list(range(first, first + config.size)) for first in range(0, world_size, config.size)]
    step = config.ulysses_size
    ulysses = [members[i : i + step] for members in sequence for i in range(0, config.size, step)]
    ring = [members[i::step] for members in sequence for i in range(step)]
    return GroupMembers(sequence=sequence, ulysses=ulysses, ring=ring)


@dataclass(frozen=True, kw_only=True)
class SequenceGroup:
    """The processes that share this one's sequences, and its place among them."""

    config: SequenceParallelConfig
    rank: int
    everyone: Any  # ProcessGroup
    ulysses: Any
    ring: Any

    @property
    def size(self) -> int:
        return self.config.size

    @property
    def ring_rank(self) -> int:
        return self.rank // self.config.ulysses_size


def create_group(config: SequenceParallelConfig) -> SequenceGroup:
    """Opens the groups of the whole job; every process must call it, with the same config."""
    if not dist.is_initialized():
        raise ValueError(
            f"seq_parallel_size is {config.size} and there is no process group; start with torchrun "
            f"--nproc_per_node {config.size}"
        )
    members = group_members(dist.get_world_size(), config)
    everyone, ulysses, ring = (
        dist.new_subgroups_by_enumeration(ranks)[0] for ranks in (members.sequence, members.ulysses, members.ring)
    )
    return SequenceGroup(
        config=config, rank=dist.get_rank() % config.size, everyone=everyone, ulysses=ulysses, ring=ring
    )
