"""Decisions that every rank must take at the same step."""

from __future__ import annotations

import torch
import torch.distributed as dist

CHECK_EVERY = 10
"""Steps between two agreements of several ranks; asking at every step would make the host wait for the device."""


def due(step: int) -> bool:
    """True at steps where the ranks agree; always on one process."""
    return _world_size() == 1 or step % CHECK_EVERY == 0


def any_rank(*flags: bool, device: torch.device) -> tuple[bool, ...]:
    """Each flag, True when it is True on at least one rank. Every rank must call it at the same step."""
    if _world_size() == 1:
        return flags
    votes = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return tuple(bool(v) for v in votes.tolist())


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
