"""Logging is set up once, at an entry point; every module only asks for its logger."""

from __future__ import annotations

import logging
from typing import Any

from llava.utils.distributed import is_main, rank

__all__ = ["get_logger", "logger", "setup_logging"]

logger = logging.getLogger("llava")


def get_logger(name: str) -> logging.Logger:
    return logging.getLogger(name)


def setup_logging(level: int | str = "INFO", *, all_ranks: bool = False) -> logging.Logger:
    """Show the messages of `llava`: rank 0 at `level`, the other ranks from WARNING on unless `all_ranks`.

    Calling it again replaces the handler, so messages never appear twice.
    """
    chosen = logging.getLevelName(level.upper()) if isinstance(level, str) else level
    if not isinstance(chosen, int):
        raise ValueError(f"log level is {level!r}, expected DEBUG, INFO, WARNING, ERROR or CRITICAL")
    root = logging.getLogger("llava")
    root.handlers[:] = [_handler()]
    root.propagate = False
    root.setLevel(chosen if is_main() or all_ranks else max(chosen, logging.WARNING))
    return root


def _handler() -> logging.Handler:
    prefix = "" if is_main() else f"[rank {rank()}] "
    options: dict[str, Any] = {"show_path": False, "rich_tracebacks": True, "markup": False}
    try:
        from rich.logging import RichHandler

        handler: logging.Handler = RichHandler(**options)
        handler.setFormatter(logging.Formatter(f"{prefix}%(message)s", datefmt="%H:%M:%S"))
    except ImportError:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(levelname)s %(message)s", datefmt="%H:%M:%S"))
    return handler
