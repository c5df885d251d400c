"""What each rank did in each step: `logs/rank0.jsonl`, `logs/rank1.jsonl` ..."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llava.train.callbacks.step_lines import append, keep_until
from llava.train.meter import TrainingMeter

FOLDER = "logs"
LARGEST_BUFFER = 256
"""Steps that wait to be written where log lines are further apart; each holds a few numbers on the device."""


class RankLogCallback(TrainerCallback):
    """Writes a line per optimizer step, in lots: loss terms stay on the device until a log line is due anyway.

    Keys: step, time (seconds since 1970), seconds (since the step before ended, saving included), data_wait (seconds),
    tokens, samples, every loss term as this rank saw it (their mean over ranks is the loss of the step), and on demand
    sample_ids. A restart drops the lines behind its checkpoint, those of ranks that no longer exist too.

    Args:
        with_sample_ids: for `--log_sample_ids`.
    """

    def __init__(self, output_dir: Path, meter: TrainingMeter, *, with_sample_ids: bool = False) -> None:
        self.folder, self.meter, self.with_sample_ids = output_dir / FOLDER, meter, with_sample_ids
        self._waiting: list[tuple[dict[str, Any], dict[str, Tensor]]] = []
        self._file: Path | None = None
        self._last = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = file_of(self.folder, args.process_index)
        own = [self._file]
        if args.process_index == 0:
            own += [file for rank, file in rank_files(self.folder).items() if rank >= args.world_size]
        for file in own:
            keep_until(file, state.global_step)
        self._last = time.time()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step, now = self.meter.step, time.time()
        record = {
            "step": state.global_step,
            "time": round(now, 3),
            "seconds": round(now - self._last, 4),
            "data_wait": round(step.wait, 4),
            "tokens": step.tokens,
            "samples": step.samples,
        }
        if self.with_sample_ids:
            record["sample_ids"] = list(step.sample_ids)
        self._last = now
        self._waiting.append((record, step.terms))
        if len(self._waiting) >= LARGEST_BUFFER:
            self.flush()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.flush()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.flush()

    def flush(self) -> None:
        """Write what is waiting; also called when a run fails."""
        if self._file is None or not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        values = [value.float() for _, terms in waiting for value in terms.values()]
        numbers = iter(torch.stack(values).tolist() if values else [])
        append(self._file, [{**record, **{name: next(numbers) for name in terms}} for record, terms in waiting])


def file_of(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.jsonl"


def rank_files(folder: Path) -> dict[int, Path]:
    """Rank -> its file, in the order of ranks."""
    found = {int(m[1]): f for f in folder.glob("rank*.jsonl") if (m := re.fullmatch(r"rank(\d+)\.jsonl", f.name))}
    return dict(sorted(found.items()))
