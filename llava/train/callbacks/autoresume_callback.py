"""Save and stop when the machine is about to be taken away, so that the next start goes on from there."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llava.train.callbacks.agreement import Agreement

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class AutoResumeCallback(TrainerCallback):
    """Ends a run early on SIGTERM, SIGINT, SIGUSR1 (what SLURM sends before a time-out) or at a time limit.

    A second signal of the same kind does what it always does: it ends the process at once.

    The callback only asks for a checkpoint and a stop; `stopped_because` tells the caller, who decides about the exit
    code (the entry points use 124, on which the launcher starts again).

    Args:
        time_limit: seconds the process may live, None for no limit.
        reserve: seconds before the limit at which the checkpoint is written.
        began: when the limit began to run, by the clock `now`; default: now.
    """

    def __init__(
        self,
        time_limit: float | None = None,
        reserve: float = 600.0,
        now: Callable[[], float] = time.monotonic,
        began: float | None = None,
    ) -> None:
        self.stopped_because: str | None = None
        self._now = now
        self._agreement = Agreement()
        start = now() if began is None else began
        self._deadline = None if time_limit is None else start + max(0.0, time_limit - reserve)
        self._signal: str | None = None
        self._previous: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._agreement.begin(state.global_step)
        if threading.current_thread() is not threading.main_thread():
            logger.warning("not in the main thread: signals will not save a checkpoint")
            return
        self._previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._agreement.due(state.global_step) or state.global_step == state.max_steps:
            return  # behind the last step the model is saved anyway, and nothing is left to go on with
        late = self._deadline is not None and self._now() >= self._deadline
        signalled, late = self._agreement.any_rank(
            state.global_step, self._signal is not None, late, device=args.device
        )
        if signalled or late:
            self.stopped_because = self._signal or ("time limit" if late else "signal on another rank")
            logger.warning("%s: saving a checkpoint at step %d and stopping", self.stopped_because, state.global_step)
            control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number).name
        signal.signal(number, self._previous.get(number) or signal.SIG_DFL)
