"""A bar for people who wait until a large checkpoint is read and written."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)


@contextmanager
def byte_bar(title: str, total: int, stream: Any = None) -> Iterator[Callable[[int], None]]:
    """A rich bar on a terminal (default stderr), one log line at the end elsewhere; takes the bytes of each step."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield lambda _: None
        logger.info("%s: %.1f MB", title, total / 1e6)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(file=stream), refresh_per_second=4) as bar:
        task = bar.add_task(title, total=total)
        yield lambda size: bar.advance(task, size)
