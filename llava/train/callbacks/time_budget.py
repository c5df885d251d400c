"""A run that ends by the clock, and checkpoints by the clock."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llava.train.callbacks.agreement import Agreement
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
        self._agreement = Agreement()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._last_save = self._last_step = self.clock.elapsed
        self._agreement.begin(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        elapsed = self.clock.elapsed
        self._step_seconds, self._last_step = elapsed - self._last_step, elapsed
        if not self._agreement.due(state.global_step):
            return
        ahead = self._step_seconds * self._agreement.every
        over = self.clock.budget is not None and elapsed + ahead > self.clock.budget
        save = self.save_seconds is not None and elapsed - self._last_save >= self.save_seconds
        over, save = self._agreement.any_rank(state.global_step, over, save, device=args.device)
        control.should_training_stop |= over
        control.should_log |= over
        control.should_save |= save and not over

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._last_save = self._last_step = self.clock.elapsed
