"""Whether a checkpoint fits the processes that are to go on from it, and what to do where it does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any

PLAIN, FSDP2 = "plain", "fsdp2"
RESHARDS = (PLAIN, FSDP2)
"""Engines whose optimizer states any number of ranks reads."""
CONVERTED = "latest_universal"
"""Name of the file that DeepSpeed's converter leaves beside the states that any number of ranks reads."""


@dataclass(frozen=True, kw_only=True)
class RunLayout:
    """How a run is spread over processes.

    Attributes:
        engine: "plain" (one process or DDP), "zero1" to "zero3", "fsdp1", "fsdp2".
        batches_per_step: micro-batches of an optimizer step over all ranks.
    """

    engine: str
    world_size: int
    batches_per_step: int
    samples_per_batch: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def engine_of(deepspeed_plugin: Any, is_fsdp: bool, *, is_fsdp2: bool) -> str:
    """Name of the engine of a run, from accelerate's settings."""
    if deepspeed_plugin is not None:
        return f"zero{deepspeed_plugin.deepspeed_config.get('zero_optimization', {}).get('stage', 0)}"
    return (FSDP2 if is_fsdp2 else "fsdp1") if is_fsdp else PLAIN


def check_layout(
    checkpoint: Path, facts: Mapping[str, Any], now: RunLayout, *, data_position_matters: bool = True
) -> None:
    """
    Args:
        facts: of the checkpoint's marker; nothing is known of folders that say nothing.
        data_position_matters: whether the run goes on at the exact sample.

    Raises:
        ValueError: the states cannot be read by these processes, or the samples would not be the next ones.
    """
    if "layout" not in facts:
        return
    before = RunLayout(**facts["layout"])
    if before.engine != now.engine:
        raise ValueError(
            f"{checkpoint} was written under {before.engine}, this run uses {now.engine}, which cannot read its "
            f"optimizer states; start it with {before.engine} again, or begin a new run with its weights: "
            f"--model_name_or_path {checkpoint} and another --output_dir"
        )
    if before.world_size != now.world_size and now.engine not in RESHARDS and not (checkpoint / CONVERTED).is_file():
        raise ValueError(_conversion(checkpoint, before, now))
    if data_position_matters:
        _check_samples(checkpoint, before, now)


def read_converted(deepspeed_plugin: Any, checkpoint: Path, facts: Mapping[str, Any], world_size: int) -> None:
    """Before the engine is built: DeepSpeed reads the converted states where the others are for more or fewer ranks."""
    before = facts.get("layout", {}).get("world_size", world_size)
    is_needed = before != world_size and (checkpoint / CONVERTED).is_file()
    deepspeed_plugin.deepspeed_config.setdefault("checkpoint", {})["load_universal"] = is_needed


def _check_samples(checkpoint: Path, before: RunLayout, now: RunLayout) -> None:
    if (before.batches_per_step, before.samples_per_batch) == (now.batches_per_step, now.samples_per_batch):
        return
    samples, found = (layout.batches_per_step * layout.samples_per_batch for layout in (before, now))
    if samples == found:
        return
    raise ValueError(
        f"{checkpoint} was written with {samples} samples per step ({before.world_size} processes), found {found} "
        f"({now.world_size} processes): samples would be repeated or left out; choose --per_device_train_batch_size x "
        f"--gradient_accumulation_steps = {samples / now.world_size:g}, or accept it with --ignore_data_skip True"
    )


def _conversion(checkpoint: Path, before: RunLayout, now: RunLayout) -> str:
    step = checkpoint.name.removeprefix("checkpoint-")
    states = checkpoint / f"global_step{step}"
    return (
        f"{checkpoint} was written by {before.world_size} processes under {before.engine}, found {now.world_size}; "
        "start as many, or convert it once and start the same command again:\n"
        f"  python -m deepspeed.checkpoint.ds_to_universal --inject_missing_state --input_folder {quote(str(states))} "
        f"--output_folder {quote(str(states) + '_universal')}\n"
        f"Weights alone: --model_name_or_path {checkpoint} and another --output_dir"
    )
