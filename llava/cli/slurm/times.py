"""Times as SLURM writes them."""

from __future__ import annotations

import re

_CLOCK = re.compile(r"(\d+)(?::(\d+))?(?::(\d+))?", re.ASCII)
_DAYS = re.compile(r"(\d+)-(\d+)(?::(\d+))?(?::(\d+))?", re.ASCII)
_LONGEST = 366 * 24 * 3600


def parse_time(text: str) -> int:
    """Seconds of `90` (minutes), `90:30` (minutes and seconds), `48:00:00`, `2-12`, `2-12:30` or `2-12:30:00`.

    Raises:
        ValueError: any other text, no time at all, or more than a year.
    """
    if days := _DAYS.fullmatch(text.strip()):
        day, hour, minute, second = (int(part or 0) for part in days.groups())
        parts_fit = hour < 24 and minute < 60 and second < 60
        seconds = ((day * 24 + hour) * 60 + minute) * 60 + second
    elif clock := _CLOCK.fullmatch(text.strip()):
        first, second, third = clock.groups()
        if third is None:
            parts_fit, seconds = int(second or 0) < 60, int(first) * 60 + int(second or 0)
        else:
            parts_fit = int(second) < 60 and int(third) < 60
            seconds = (int(first) * 60 + int(second)) * 60 + int(third)
    else:
        parts_fit, seconds = False, 0
    if not parts_fit or not 0 < seconds <= _LONGEST:
        raise ValueError(
            f"time is {text!r}, expected minutes (90), HH:MM:SS (48:00:00) or D-HH:MM:SS (2-00:00:00), up to a year"
        )
    return seconds


def format_time(seconds: int) -> str:
    """The same time as `HH:MM:SS`, or `D-HH:MM:SS` from one day on."""
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour:02}:{minute:02}:{second:02}"
    return f"{days}-{clock}" if days else clock
