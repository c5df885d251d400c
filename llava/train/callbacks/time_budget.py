"""A run that ends by the clock, and checkpoints by the clock."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llava.train.callbacks.agreement import CHECK_EVERY, any_rank, due
from llava.train.schedule import TrainClock


class TimeBudgetCallback(TrainerCallback):
    """Stops when another step would end after the budget, and asks for a checkpoint every `save_seconds`.

    Args:
        clock: counts the seconds of training over restarts; shared with the learning-rate schedule.
        save_seconds: time between checkpoints, None for none by time.
    """

    def __init__(self, clock: TrainClock, save_seconds: float | None = None) -> None:
        self.clock, self.save_seconds = clock, save_seconds
        self._last_save = self._last_step = 0.0
        self._step_seconds = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._last_save = self._last_step = self.clock.elapsed

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        elapsed = self.clock.elapsed
        self._step_seconds, self._last_step = elapsed - self._last_step, elapsed
        if not due(state.global_step):
            return
        ahead = self._step_seconds * (1 if due(state.global_step + 1) else CHECK_EVERY)
        over = self.clock.budget is not None and elapsed + ahead > self.clock.budget
        save = self.save_seconds is not None and elapsed - self._last_save >= self.save_seconds
        over, save = any_rank(over, save, device=args.device)
        control.should_training_stop |= over
        control.should_log |= over
        control.should_save |= save and not over

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._last_save = self._last_step = self.clock.elapsed
