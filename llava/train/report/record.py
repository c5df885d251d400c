"""`run_settings.json`: every start of a run with its settings and environment, and how it ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.train.checkpointing import write_json
from llava.train.parse import RunArguments
from llava.train.report.data import SETTINGS_FILE, starts
from llava.train.report.environment import environment
from llava.train.report.page import write_report
from llava.utils.distributed import is_main

logger = logging.getLogger(__name__)

FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"


@dataclass
class ObservedRun:
    """One start of a run, told how it ends by the training itself.

    Attributes:
        stopped_because: None where the run reached its end.
        closing: called when the run fails, to save what is still in memory.
    """

    stopped_because: str | None = None
    closing: list[Callable[[], None]] = field(default_factory=list)


@contextmanager
def observed_run(output_dir: Path, args: RunArguments, argv: Sequence[str]) -> Iterator[ObservedRun]:
    """Rank 0 writes the settings at the beginning, and the end and the report page behind it, also after a failure."""
    run = ObservedRun()
    if is_main():
        _begin(output_dir / SETTINGS_FILE, args, argv)
    try:
        yield run
    except BaseException as error:
        _close(run)
        _end(output_dir, FAILED, f"{type(error).__name__}: {error}".strip(": "))
        raise
    _end(output_dir, STOPPED if run.stopped_because else FINISHED, run.stopped_because or "")


def settings_of(args: RunArguments) -> dict[str, Any]:
    """All arguments as plain values; keys to services are left out by transformers."""
    values = {**vars(args.model), **vars(args.data), **args.training.to_sanitized_dict()}
    return {name: value if isinstance(value, str | int | float | bool | None) else str(value)
            for name, value in sorted(values.items()) if not name.startswith("_")}  # fmt: skip


def _begin(file: Path, args: RunArguments, argv: Sequence[str]) -> None:
    start = {
        "time": round(time.time(), 1),
        "argv": list(argv),
        "given": sorted(args.given),
        "settings": settings_of(args),
        "environment": environment(),
    }
    write_json(file, {"starts": [*starts(file.parent), start]})


def _end(output_dir: Path, status: str, message: str) -> None:
    if not is_main():
        return
    every = starts(output_dir)
    if every:
        every[-1]["end"] = {"time": round(time.time(), 1), "status": status, "message": message}
        write_json(output_dir / SETTINGS_FILE, {"starts": every})
    try:
        logger.info("report: %s", write_report(output_dir))
    except Exception as error:  # the training is over: a page that cannot be drawn must not make it a failure
        logger.warning("no run report: %s: %s; try again with python -m llava.train.report %s",
                       type(error).__name__, error, output_dir)  # fmt: skip


def _close(run: ObservedRun) -> None:
    for close in run.closing:
        try:
            close()
        except RuntimeError as error:  # of a device that has failed already: the first error is the one to tell
            logger.warning("the last steps are not in the log: %s", error)
