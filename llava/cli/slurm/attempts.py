"""What each attempt at a job ended with, on disk, and whether another follows."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

TIMED_OUT = 124
"""Exit code of a command that saved and stopped before its end."""
OUTCOMES = ("finished", "stopped", "failed", "lost", "cancelled")
_ROOT_CAUSE = re.compile(r"Root Cause.*?\brank\s*:\s*(\d+).*?\bexitcode\s*:\s*(-?\d+)", re.DOTALL)
_LONGEST_LOG = 1 << 18


@dataclass(frozen=True, kw_only=True)
class End:
    """How an attempt ended.

    Attributes:
        outcome: finished; stopped (it saved before a time limit); failed; lost (nothing was heard of it any more);
            cancelled (somebody asked for it).
        code: exit code for the shell.
        reason: one line for people.
    """

    outcome: str
    code: int
    reason: str

    def __post_init__(self) -> None:
        assert self.outcome in OUTCOMES, self.outcome


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How often to start again: after failures in a row, and after time limits (None: without limit)."""

    max_retries: int = 0
    max_requeues: int | None = None

    def allow_another(self, ends: Sequence[End]) -> bool:
        """True when the last end is a reason to start again and not one too many."""
        last = ends[-1].outcome
        if last == "stopped":
            stops = sum(end.outcome == "stopped" for end in ends)
            return self.max_requeues is None or stops <= self.max_requeues
        if last not in ("failed", "lost"):
            return False
        in_a_row = 0
        for end in reversed(ends):
            if end.outcome not in ("failed", "lost"):
                break
            in_a_row += 1
        return in_a_row <= self.max_retries


@dataclass
class History:
    """The attempts of one job: a file of lines, written by one process at a time, read by anybody."""

    path: Path
    ends: list[End] = field(default_factory=list)
    started: int = 0
    restarts: int = 0
    """How often SLURM had put the job back into the queue when the last attempt began."""

    @classmethod
    def read(cls, path: Path) -> History:
        """A line that is not complete yet is left for the next reading."""
        history = cls(path)
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        for line in map(json.loads, lines):
            if line["event"] == "begin":
                history.started += 1
                history.restarts = line.get("restarts", 0)
            else:
                history.ends.append(End(outcome=line["outcome"], code=line["code"], reason=line["reason"]))
        return history

    @property
    def is_running(self) -> bool:
        """True from the beginning of an attempt to its recorded end."""
        return self.started > len(self.ends)

    def begin(self, *, restarts: int = 0, nodes: str = "") -> int:
        """Number of the new attempt, from 1."""
        assert not self.is_running
        self.started += 1
        self.restarts = restarts
        self._write({"event": "begin", "attempt": self.started, "restarts": restarts, "nodes": nodes})
        return self.started

    def end(self, end: End) -> None:
        assert self.is_running
        self.ends.append(end)
        self._write({"event": "end", "attempt": self.started, **asdict(end)})

    def _write(self, line: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        with self.path.open("a") as stream:
            stream.write(json.dumps({"time": now, **line}) + "\n")


def shell_code(returncode: int) -> int:
    """What a shell reports: 128 + the number of the signal that ended a process."""
    return 128 - returncode if returncode < 0 else returncode


def describe(code: int) -> str:
    """`exit code 3`, or `SIGKILL (exit code 137)`."""
    number = -code if code < 0 else code - 128
    try:
        name = signal.Signals(number).name if number > 0 else None
    except ValueError:
        name = None
    return f"{name} (exit code {shell_code(code)})" if name else f"exit code {code}"


def read_log_from(log: Path, start: int) -> str:
    """The log from a byte on, or its last part where that is long."""
    if not log.exists():
        return ""
    with log.open("rb") as stream:
        stream.seek(max(start, log.stat().st_size - _LONGEST_LOG))
        return stream.read().decode(errors="replace")


def ranks_that_failed(log_text: str) -> list[tuple[int, int]]:
    """(rank, exit code) of the first failures that torchrun reports; its own exit code is 1 whatever they are."""
    return [(int(rank), int(code)) for rank, code in _ROOT_CAUSE.findall(log_text)]


def judge(code: int, *, told: str | None, log_text: str = "", notes: Sequence[str] = ()) -> End:
    """What an exit code means.

    Args:
        code: exit code of the command, 128 + n for signal n.
        told: None, or why the command was told to stop: "time" or "user"; "late" when it was told in time and had to
            be killed at the limit, which counts as a failure, so that a command that hangs does not run for ever.
        log_text: what the command printed.
        notes: further facts for the reason.
    """
    if code == 0:
        return End(outcome="finished", code=0, reason="finished")
    if told == "user":
        return End(outcome="cancelled", code=code, reason=f"stopped on request, {describe(code)}")
    if told == "late":
        reason = "killed at the time limit: it was told, and did not stop; a longer --timedelta gives it more time"
        return End(outcome="failed", code=TIMED_OUT, reason=reason)
    if told == "time":
        return End(outcome="stopped", code=TIMED_OUT, reason=f"stopped before the time limit, {describe(code)}")
    ranks = ranks_that_failed(log_text)
    if code == TIMED_OUT or TIMED_OUT in (rank_code for _, rank_code in ranks):
        return End(outcome="stopped", code=TIMED_OUT, reason="saved and stopped by itself, exit code 124")
    causes = [f"first failure on rank {rank}: {describe(rank_code)}" for rank, rank_code in ranks[:1]]
    return End(outcome="failed", code=code, reason=", ".join([describe(code), *causes, *notes]))
