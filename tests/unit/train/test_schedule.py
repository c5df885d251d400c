"""Learning rate and end of a run by the clock."""

from __future__ import annotations

import pytest
import torch

from llava.train.schedule import TimeBudgetSchedule, TrainClock, shape


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_elapsed_time_goes_on_where_the_last_process_stopped():
    now = Clock()
    clock = TrainClock(60.0, now)
    assert clock.elapsed == 0
    clock.start(already=20.0)
    now.time += 10
    assert clock.elapsed == 30
    assert clock.fraction == 0.5


def test_cosine_over_time_warms_up_peaks_and_ends_at_zero():
    assert shape("cosine", 0.05, 0.1) == 0.5
    assert shape("cosine", 0.1, 0.1) == 1.0
    assert shape("cosine", 0.55, 0.1) == pytest.approx(0.5)
    assert shape("cosine", 1.0, 0.1) == pytest.approx(0.0)
    assert shape("linear", 0.75, 0.0) == 0.25
    assert shape("constant", 0.0, 0.1) == 1.0
    with pytest.raises(ValueError, match="polynomial"):
        shape("polynomial", 0.5, 0.0)


def test_the_schedule_follows_the_clock_whatever_the_number_of_steps():
    now = Clock()
    clock = TrainClock(100.0, now)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([{"params": [weight], "lr": 2.0}])
    schedule = TimeBudgetSchedule(optimizer, clock, name="cosine", warmup=0.0)
    clock.start()
    optimizer.step()
    now.time += 50
    schedule.step()
    assert schedule.get_last_lr() == [pytest.approx(1.0)]


def test_warm_up_under_a_time_budget_is_a_share():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match="expected a share of the time"):
        TimeBudgetSchedule(optimizer, TrainClock(10.0), name="cosine", warmup=20.0)
