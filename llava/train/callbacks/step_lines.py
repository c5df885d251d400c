"""Files of one JSON object per step, which a restart of the run goes on with."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llava.utils.io import atomic_path


def keep_until(file: Path, step: int) -> None:
    """Drop the lines of steps that will be trained again, and a last line that was cut off."""
    if not file.is_file():
        return
    kept = [line for line in file.read_text().splitlines() if _step_of(line) <= step]
    with atomic_path(file) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in kept))


def append(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Numbers that are not finite become null: a reader of strict JSON must not stumble."""
    lines = "".join(json.dumps({name: _plain(value) for name, value in row.items()}) + "\n" for row in records)
    with file.open("a") as stream:
        stream.write(lines)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Oldest first; a half-written last line is left out, as is a file that is not there."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines if _step_of(line) != math.inf]


def _step_of(line: str) -> int | float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
