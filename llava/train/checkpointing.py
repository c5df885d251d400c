"""Folders on disk: checkpoints that are whole or not there, and runs that are finished or not.

A checkpoint is written under a hidden name and renamed when all of it is on disk; a marker inside says so, which also
covers file systems where a rename can be seen early. A finished run carries `training_complete.json`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MARKER = "checkpoint_complete.json"
FINISHED = "training_complete.json"
STAGING = ".incomplete"


def mark_complete(folder: Path, facts: dict[str, Any]) -> None:
    """Write the marker last, after the data before it has reached the disk."""
    _flush(folder)
    write_json(folder / MARKER, facts)


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def write_json(path: Path, content: Any) -> None:
    """Write a small JSON file so that a reader sees the old or the new content, never half of it."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def publish(staged: Path, final: Path) -> None:
    """Give a complete checkpoint its name; an older folder of that name is replaced."""
    if final.exists():
        shutil.rmtree(final)
    staged.replace(final)


def complete_checkpoints(output_dir: Path) -> list[Path]:
    """Whole checkpoints, oldest first. Half-written ones are named in a warning and left alone."""
    found: list[tuple[int, Path]] = []
    for path in output_dir.glob("checkpoint-*"):
        number = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if not number:
            continue
        if (path / MARKER).is_file():
            found.append((int(number[1]), path))
        else:
            logger.warning("%s has no %s: it was not written to the end and is skipped", path, MARKER)
    return [path for _, path in sorted(found)]


def newest_checkpoint(output_dir: Path) -> Path | None:
    """The checkpoint to go on from, or None for a fresh start."""
    found = complete_checkpoints(output_dir)
    return found[-1] if found else None


def remove_old(output_dir: Path, keep: int | None, protect: Path | None = None) -> None:
    """Delete all but the newest `keep` checkpoints (None keeps all); `protect` (the best one) stays."""
    if not keep or keep < 1:
        return
    for path in complete_checkpoints(output_dir)[:-keep]:
        if path != protect:
            shutil.rmtree(path, ignore_errors=True)


def clear_staging(output_dir: Path) -> None:
    """Remove what a killed process left half-written."""
    shutil.rmtree(output_dir / STAGING, ignore_errors=True)


def finished_run(output_dir: Path) -> dict[str, Any] | None:
    """Facts about a run that ended, or None. A marker that cannot be read counts as not there."""
    try:
        return read_json(output_dir / FINISHED)
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
