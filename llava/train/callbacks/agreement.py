"""Decisions that every rank must take at the same step."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

MOST_STEPS = 10
"""Between two agreements; asking at every step would make the host wait for the device."""
SECONDS = 5.0
"""Between two agreements where a step takes long: a notice of ten minutes must not be over before anybody asks."""


class Agreement:
    """Asks all ranks at the same steps: every tenth, or about every five seconds where that is more often.

    Args:
        now: the clock, replaceable in tests.

    Attributes:
        every: steps until the next agreement, the same on every rank.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self.every = 1
        self._asked: tuple[int, float] | None = None

    def begin(self, step: int) -> None:
        """Training starts behind this step; the first agreement is at the next one."""
        self.every, self._asked = 1, (step, self._now())

    def due(self, step: int) -> bool:
        """True at steps where the ranks agree; always on one process."""
        return _world_size() == 1 or self._asked is None or step >= self._asked[0] + self.every

    def any_rank(self, step: int, *flags: bool, device: torch.device) -> tuple[bool, ...]:
        """Each flag, True when it is True on at least one rank. Every rank must call it at the same step."""
        if _world_size() == 1:
            return flags
        now = self._now()
        before = self._asked or (step - 1, now)
        seconds = (now - before[1]) / max(step - before[0], 1)
        votes = torch.tensor([*map(float, flags), seconds], dtype=torch.float32, device=device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        *agreed, slowest = votes.tolist()
        self.every = max(1, min(MOST_STEPS, int(SECONDS / max(slowest, 1e-3))))
        self._asked = (step, now)
        return tuple(vote > 0 for vote in agreed)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
