"""Progress for people (a bar, or a line every few seconds) and for programs (`progress.jsonl`)."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llava.train.callbacks.step_lines import append, keep_until, read_lines
from llava.train.schedule import TrainClock

PROGRESS_FILE = "progress.jsonl"


class ProgressCallback(TrainerCallback):
    """Shows step, loss, tokens/s and the time left; writes one JSON line per log line.

    A terminal (`stream`, default stderr) gets a rich bar, anything else one plain line every `every` seconds. Lines of
    `progress.jsonl` have the keys step, total, share, elapsed, eta (seconds left) and every number of the log line. On
    resumption the lines after the checkpoint are dropped: each step stands there once.
    """

    def __init__(self, output_dir: Path, clock: TrainClock, *, every: float = 5.0, stream: Any = None) -> None:
        self.file = output_dir / PROGRESS_FILE
        self.clock, self.every = clock, every
        self.stream = stream or sys.stderr
        self._bar: Any = None
        self._last_line = -float("inf")
        self._start = (0, 0.0)
        self._latest: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        self._start = (state.global_step, self.clock.elapsed)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        keep_until(self.file, state.global_step)
        self._bar = _bar(self.stream)
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("train", total=1.0, note="")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs.get("logs") or {}
        if not state.is_world_process_zero or "loss" not in logs:
            return
        self._latest = logs
        append(self.file, [self._record(state, logs)])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        now = time.monotonic()
        if self._bar is None and now - self._last_line < self.every and not control.should_training_stop:
            return
        self._last_line = now
        record = self._record(state, self._latest)
        if self._bar is not None:
            self._bar.update(self._task, completed=record["share"], note=_note(record))
        else:
            print(f"train {100 * record['share']:3.0f} % | {_note(record)}", file=self.stream, flush=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _record(self, state: TrainerState, logs: dict[str, float]) -> dict[str, Any]:
        share, eta = self._left(state)
        total = state.max_steps if self.clock.budget is None else round(state.global_step / max(share, 1e-9))
        keep = {k: v for k, v in logs.items() if isinstance(v, int | float) and k != "total_flos"}
        return {
            **keep,
            "step": state.global_step,
            "total": max(total, state.global_step),
            "share": round(share, 4),
            "elapsed": round(self.clock.elapsed, 2),
            "eta": round(eta, 1),
        }

    def _left(self, state: TrainerState) -> tuple[float, float]:
        """Share of the run that is done, and seconds left at the speed of this process so far."""
        by_steps = state.global_step / max(state.max_steps, 1)
        if self.clock.budget is not None:
            share = max(self.clock.fraction, min(1.0, by_steps))
            return share, max(0.0, self.clock.budget - self.clock.elapsed)
        steps, since = self._start
        speed = (state.global_step - steps) / max(self.clock.elapsed - since, 1e-9)
        return min(1.0, by_steps), max(0.0, (state.max_steps - state.global_step) / max(speed, 1e-9))


def _note(record: dict[str, Any]) -> str:
    shown = {
        "loss": "loss {:.4f}",
        "tokens_per_second": "{:,.0f} tokens/s",
        "mfu": "MFU {:.0%}",
        "data_wait": "waits {:.0%}",
        "grad_norm": "gradient {:.2g}",
        "peak_memory_gib": "{:.1f} GiB",
    }
    figures = [text.format(record[name]) for name, text in shown.items() if record.get(name) is not None]
    times = f"{_clock(record['elapsed'])} gone, {_clock(record['eta'])} left"
    return " | ".join([f"step {record['step']}/{record['total']}", *figures, times])


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _bar(stream: Any) -> Any:
    """A rich progress bar on a terminal, else None."""
    if not stream.isatty():
        return None
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
    except ImportError:
        return None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=Console(file=stream), refresh_per_second=2)


def read_progress(output_dir: Path) -> list[dict[str, Any]]:
    """The lines of `progress.jsonl`, oldest first; a half-written last line is left out."""
    return read_lines(output_dir / PROGRESS_FILE)
