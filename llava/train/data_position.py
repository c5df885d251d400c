"""Where a run is in its data, and whether another start goes on at that place."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from llava.train.batch_plans import DataPlan
from llava.train.samplers import BatchPlan

logger = logging.getLogger(__name__)

WAYS_OUT = (
    "undo the change, begin this epoch again with --ignore_data_skip True, or begin a new run with the weights: "
    "--model_name_or_path CHECKPOINT and another --output_dir"
)


def check_position(before: DataPlan, now: DataPlan, *, step: int, plan_of: Callable[[DataPlan], BatchPlan]) -> None:
    """
    Args:
        step: optimizer steps that were trained.
        plan_of: the batches of a plan.

    Raises:
        ValueError: the data or their order have changed, or batches are dealt otherwise, so that many samples would be
            repeated and as many left out. Up to one step's samples are told in a warning.
    """
    if before == now:
        return
    changed = [name for name in ("sampler", "seed", "sizes", "weights", "tokens_per_batch")
               if getattr(before, name) != getattr(now, name)]  # fmt: skip
    if changed:
        listed = ", ".join(f"{name} {getattr(before, name)} -> {getattr(now, name)}" for name in changed)
        raise ValueError(
            f"the data of this run or their order changed since its checkpoint of step {step} ({listed}): samples "
            f"would be repeated or left out; {WAYS_OUT}"
        )
    change = _read(plan_of(before), before, step) - _read(plan_of(now), now, step)
    repeated, left_out = int(change.clip(min=0).sum()), int((-change).clip(min=0).sum())
    if not repeated and not left_out:
        return
    text = f"batches are dealt otherwise than at step {step}: {repeated} samples will be repeated, {left_out} left out"
    if max(repeated, left_out) > now.samples_per_step:
        raise ValueError(f"{text}; start as many processes with the same batches as before, or {WAYS_OUT}")
    logger.warning("%s", text)


def _read(plan: BatchPlan, dealt: DataPlan, step: int) -> np.ndarray:
    """How often each sample was trained after so many steps."""
    epoch, steps = divmod(step, -(-len(plan) // dealt.accumulation))
    batches = plan.batches(epoch)
    is_read = np.zeros(len(batches.turns), bool)
    is_read[batches.turns[: min(steps * dealt.accumulation, len(plan)) * dealt.groups]] = True
    size = sum(dealt.sizes)
    now = _count(batches.samples[np.repeat(is_read, np.diff(batches.starts))], size)
    return now + epoch * _count(batches.samples, size)


def _count(samples: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(samples[samples >= 0], minlength=size)
