"""Folders on disk: checkpoints that are whole or not there, and runs that are finished or not.

A checkpoint is written under a hidden name and renamed when all of it is on disk; a marker inside lists its files with
their sizes, which also covers file systems where a rename can be seen early, and copies that were cut off. No complete
checkpoint is removed before a newer one is complete. A finished run carries `training_complete.json`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MARKER = "checkpoint_complete.json"
FINISHED = "training_complete.json"
STAGING = ".incomplete"
ASIDE = ".replaced"


def require_writable(output_dir: Path) -> None:
    """Make the folder of a run.

    Raises:
        ValueError: it cannot be made, or nothing can be written there.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise ValueError(
            f"nothing can be written to --output_dir {output_dir} ({error.strerror}); choose another folder"
        ) from error


def mark_complete(folder: Path, facts: dict[str, Any]) -> None:
    """Write the marker last, after the data before it has reached the disk."""
    write_json(folder / MARKER, {**facts, "files": _flush(folder)})


def _flush(folder: Path) -> dict[str, int]:
    """Bytes of every file below a folder, all of them on the disk with the names that lead to them."""
    sizes: dict[str, int] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            _sync(path)
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            _sync(path)
    return sizes


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """Write a small JSON file so that a reader sees the old or the new content, never half of it."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    _sync(path.parent)


def publish(staged: Path, final: Path) -> None:
    """Give a complete checkpoint its name; an older folder of that name is set aside first and removed afterwards."""
    aside = final.parent / ASIDE / final.name
    if final.exists():
        aside.parent.mkdir(exist_ok=True)
        final.replace(aside)
    staged.replace(final)
    _sync(final.parent)
    shutil.rmtree(aside.parent, ignore_errors=True)


def complete_checkpoints(output_dir: Path) -> list[Path]:
    """Whole checkpoints, oldest first. Half-written ones are named in a warning and left alone."""
    found: list[tuple[int, Path]] = []
    for path in output_dir.glob("checkpoint-*"):
        number = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if not number:
            continue
        fault = fault_of(path)
        if fault is None:
            found.append((int(number[1]), path))
        else:
            logger.warning("%s %s: it was not written to the end and is skipped", path, fault)
    return [path for _, path in sorted(found)]


def fault_of(checkpoint: Path) -> str | None:
    """What a checkpoint lacks of being whole; None for a whole one."""
    try:
        sizes = read_json(checkpoint / MARKER).get("files", {})
    except FileNotFoundError:
        return f"has no {MARKER}"
    except json.JSONDecodeError:
        return f"has a {MARKER} that cannot be read"
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"lacks {name}"
        if path.stat().st_size != size:
            return f"has {path.stat().st_size} of {size} bytes of {name}"
    return None


def asked_for(checkpoint: Path) -> Path:
    """A checkpoint that somebody names; one without a marker may come from other software and is taken.

    Raises:
        ValueError: there is none, or it was not written to the end.
    """
    if not checkpoint.is_dir():
        raise ValueError(
            f"--resume_from_checkpoint is {checkpoint}, which is no folder; name a checkpoint, or leave the flag out: "
            "a run goes on from the newest one in --output_dir by itself"
        )
    fault = fault_of(checkpoint)
    if fault is not None and (checkpoint / MARKER).exists():
        raise ValueError(f"--resume_from_checkpoint is {checkpoint}, which {fault}; name one that is whole")
    return checkpoint


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
            (path / MARKER).unlink()  # first: a removal that is killed leaves no half checkpoint that looks whole
            shutil.rmtree(path, ignore_errors=True)


def clear_staging(output_dir: Path) -> None:
    """Remove what a killed process left half-written; put back what it set aside and did not replace."""
    for aside in (output_dir / ASIDE).glob("checkpoint-*"):
        if not (output_dir / aside.name).exists():
            aside.replace(output_dir / aside.name)
    for name in (ASIDE, STAGING):
        shutil.rmtree(output_dir / name, ignore_errors=True)


def finished_run(output_dir: Path) -> dict[str, Any] | None:
    """Facts about a run that ended, or None. A marker that cannot be read counts as not there."""
    try:
        return read_json(output_dir / FINISHED)
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
