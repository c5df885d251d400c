"""Room for a checkpoint, asked for before the first byte of it is written."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from llava.train.checkpointing import MARKER, complete_checkpoints, read_json

MARGIN = 1.05
"""Of the expected size: tokenizer, configs, random states and the blocks of the file system come on top."""


def require_space(folder: Path, needed: int, what: str = "the next checkpoint") -> None:
    """
    Args:
        what: is to be written, in words.

    Raises:
        OSError: the disk of a folder has less room than `needed` bytes and the margin.
    """
    free = shutil.disk_usage(folder).free
    if free < needed * MARGIN:
        room, size = _readable(float(free)), _readable(needed * MARGIN)
        raise OSError(
            errno.ENOSPC,
            f"{folder} has {room} free, {what} needs {size}; nothing was written and the last checkpoint is "
            "whole. Free space (--save_total_limit keeps fewer checkpoints) and start the same command again",
        )


def expected_size(output_dir: Path, model: nn.Module, *, trained_only: bool, engine_copies: int, moments: int) -> int:
    """Bytes of the next checkpoint: those of the newest one of this run, else counted from the weights.

    Args:
        trained_only: the folder holds what is trained and not the base (adapters).
        engine_copies: how often the engine writes the weights beside the folder of the model.
        moments: float32 numbers per trained weight in the engine's optimizer.
    """
    found = complete_checkpoints(output_dir)
    sizes = read_json(found[-1] / MARKER).get("files") if found else None
    if sizes:
        return sum(sizes.values())
    trained = sum(_numel(p) for p in model.parameters() if p.requires_grad)
    return (1 + engine_copies) * model_size(model, trained_only=trained_only) + 4 * moments * trained


def model_size(model: nn.Module, *, trained_only: bool) -> int:
    """Bytes of the folder of a model."""
    weights = (p for p in model.parameters() if p.requires_grad or not trained_only)
    return sum(_numel(p) * p.element_size() for p in weights)


def _numel(parameter: Tensor | Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _readable(size: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
