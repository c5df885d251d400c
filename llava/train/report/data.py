"""A run as its folder tells it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.train import checkpointing
from llava.train.callbacks.progress import read_progress
from llava.train.callbacks.rank_log import FOLDER, rank_files
from llava.train.callbacks.step_lines import read_lines
from llava.train.parts import TABLE_FILE

SETTINGS_FILE = "run_settings.json"
EVALUATED = "eval_"


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What is known of a run.

    Attributes:
        rows: the log lines, of evaluations too.
        starts: when it began, with which settings, where, and how that ended.
        ranks: rank -> its lines in `logs/`.
    """

    folder: Path
    rows: Sequence[Mapping[str, Any]]
    starts: Sequence[Mapping[str, Any]]
    parts: Sequence[Mapping[str, Any]]
    ranks: Mapping[int, Sequence[Mapping[str, Any]]]
    finished: Mapping[str, Any] | None

    @property
    def last(self) -> Mapping[str, Any]:
        """The newest log line of the training; empty before the first."""
        return next((row for row in reversed(self.rows) if "loss" in row), {})

    def median(self, name: str) -> float | None:
        """Of the second half of the run, where the first steps no longer count."""
        values = [row[name] for row in self.rows if row.get(name) is not None]
        return statistics.median(values[len(values) // 2 :]) if values else None


def read_run(folder: Path) -> RunData:
    """Raises ValueError for a folder in which nothing was trained."""
    began = starts(folder)
    history, table = _history(folder), folder / TABLE_FILE
    rows = read_progress(folder) or [row for row in history if "loss" in row]
    if not rows and not began and not table.is_file():
        raise ValueError(
            f"{folder} holds no training run: expected progress.jsonl, {SETTINGS_FILE} or {TABLE_FILE}; give the "
            "--output_dir of a run"
        )
    return RunData(
        folder=folder,
        rows=sorted([*rows, *filter(_is_evaluation, history)], key=lambda row: row["step"]),
        starts=began,
        parts=json.loads(table.read_text()) if table.is_file() else [],
        ranks={rank: read_lines(file) for rank, file in rank_files(folder / FOLDER).items()},
        finished=checkpointing.finished_run(folder),
    )


def starts(folder: Path) -> list[dict[str, Any]]:
    """All starts of a run, oldest first; none where the folder has no record, or a broken one."""
    try:
        return checkpointing.read_json(folder / SETTINGS_FILE)["starts"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return []


def _is_evaluation(row: Mapping[str, Any]) -> bool:
    return any(name.startswith(EVALUATED) for name in row)


def _history(folder: Path) -> Sequence[Mapping[str, Any]]:
    """The newest state that transformers wrote: evaluations, and all there is of a training by trl."""
    newest = max(folder.glob("checkpoint-*/trainer_state.json"), key=lambda f: f.stat().st_mtime, default=None)
    for place in (folder, newest and newest.parent):
        file = None if place is None else place / "trainer_state.json"
        if file is not None and file.is_file():
            return checkpointing.read_json(file).get("log_history", [])
    return []
