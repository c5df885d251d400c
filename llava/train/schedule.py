"""Learning rate over elapsed time: a run that must end after so many seconds, whatever the machine does."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class TrainClock:
    """Seconds of training so far, over all restarts of a run; it stands still until `start`.

    Args:
        budget: seconds after which training ends, or None.
        now: the clock, replaceable in tests.
    """

    def __init__(self, budget: float | None = None, now: Callable[[], float] = time.monotonic) -> None:
        if budget is not None and budget <= 0:
            raise ValueError(f"budget is {budget} s, expected more than 0 or None")
        self.budget = budget
        self._now = now
        self._before = 0.0
        self._started: float | None = None

    def start(self, *, already: float = 0.0) -> None:
        """Begin to count; `already` is what earlier processes of this run have used."""
        self._before, self._started = already, self._now()

    @property
    def elapsed(self) -> float:
        return self._before + (0.0 if self._started is None else self._now() - self._started)

    @property
    def fraction(self) -> float:
        """Share of the budget that is used, 0 to 1; 0 without a budget."""
        return 0.0 if self.budget is None else min(1.0, self.elapsed / self.budget)


def shape(name: str, fraction: float, warmup: float) -> float:
    """Factor on the learning rate at a share of the run.

    Args:
        name: "linear", "cosine", "constant" or "constant_with_warmup".
        fraction: 0 to 1.
        warmup: share of the run in which the factor rises from 0 to 1.
    """
    if warmup > 0 and fraction < warmup and name != "constant":
        return fraction / warmup
    progress = 0.0 if warmup >= 1 else (fraction - warmup) / (1 - warmup)
    if name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if name == "linear":
        return max(0.0, 1 - progress)
    if name in ("constant", "constant_with_warmup"):
        return 1.0
    raise ValueError(f"lr_scheduler_type is '{name}', with --max_train_seconds expected linear, cosine or constant")


class TimeBudgetSchedule(LambdaLR):
    """Warm-up and decay by the clock. Rates follow the machine's speed: only runs counted in steps repeat to the bit.

    Args:
        least: the first factor of a warm-up that starts at time 0 would be 0 and waste a step; this is used instead.
    """

    def __init__(
        self, optimizer: Optimizer, clock: TrainClock, *, name: str, warmup: float, least: float = 1e-3
    ) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup is {warmup}; with --max_train_seconds expected a share of the time, 0 to below 1")
        shape(name, 0.0, warmup)
        super().__init__(optimizer, lambda _: max(least, shape(name, clock.fraction, warmup)))
