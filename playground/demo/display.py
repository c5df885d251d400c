"""What the user sees while phases run: live lines in a terminal, plain lines in a file or a pipe."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from playground.demo.phases import Phase, Progress

PLAIN_SECONDS = 15.0
"""A plain line per running phase at most so often."""

WIDE = 110
"""Columns from which on the note of a phase (step, loss, speed) fits beside it."""


def clock(seconds: float) -> str:
    """m:ss, or h:mm:ss from one hour on."""
    total = max(0, round(seconds))
    minutes, rest = divmod(total, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Display:
    """Running phases with their progress, and the time left for all. Use as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._live = Live(console=self.console, refresh_per_second=4, transient=True)
        self._started = time.monotonic()
        self._last_plain: dict[str, float] = {}

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def say(self, text: str, style: str = "") -> None:
        """A line that stays."""
        self.console.print(Text(text, style=style), soft_wrap=True)

    def update(self, running: list[tuple[Phase, float, Progress]], seconds_left: float) -> None:
        """`running`: phase, seconds since it started, how far it is."""
        if self.console.is_terminal:
            self._live.update(self._lines(running, seconds_left))
            return
        for phase, elapsed, progress in running:
            now = time.monotonic()
            if now - self._last_plain.setdefault(phase.name, now) >= PLAIN_SECONDS:
                self._last_plain[phase.name] = now
                self.say(f"  {clock(now - self._started):>5}  {plain_line(phase, elapsed, progress, seconds_left)}")

    def _lines(self, running: list[tuple[Phase, float, Progress]], seconds_left: float) -> Group:
        table = Table.grid(padding=(0, 2))
        wide = self.console.width >= WIDE
        for phase, elapsed, progress in running:
            left = clock(progress.seconds_left) if progress.seconds_left is not None else "?"
            title = Text(f"  {phase.title}", style="bold", no_wrap=True)
            bar = ProgressBar(total=1.0, completed=progress.share, width=24 if wide else 14)
            times = Text(f"{clock(elapsed)} spent, {left} left", no_wrap=True)
            table.add_row(title, bar, times, *([Text(progress.note, style="dim", no_wrap=True)] if wide else []))
        spent = time.monotonic() - self._started
        return Group(table, Text(f"  {clock(spent)} so far, about {clock(seconds_left)} to go", style="cyan"))


def plain_line(phase: Phase, elapsed: float, progress: Progress, seconds_left: float) -> str:
    left = f", {clock(progress.seconds_left)} left" if progress.seconds_left is not None else ""
    note = f" ({progress.note})" if progress.note else ""
    return f"{phase.title}: {progress.share:.0%}, {clock(elapsed)} spent{left}{note}; all: {clock(seconds_left)} to go"
