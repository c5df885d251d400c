"""The parts of a model: which are trained, at which learning rate, and the table that says so."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from llava.model.checkpoints.adapter import is_adapter_weight

logger = logging.getLogger(__name__)

LANGUAGE_MODEL = "language_model"
PART_OF_FOLDER = {
    "llm": LANGUAGE_MODEL,
    "vision_tower": "vision_tower",
    "mm_projector": "mm_projector",
    "autoregressive_reconstruction": "autoregressive",
}
"""Sub-module that a part lives in -> the name of the part in `--tune_<part>` and in the table."""


def part_of(name: str) -> str:
    """Part that owns a parameter, from the first component of its dotted name that names a part."""
    return next((PART_OF_FOLDER[word] for word in name.split(".") if word in PART_OF_FOLDER), "other")


@dataclass(frozen=True, kw_only=True)
class PartRow:
    """One line of the table of what is trained.

    Attributes:
        parameters: adapters included; of quantised weights, those that they stand for.
        method: "whole", "frozen", or the adapters and what is trained beside them: "LoRA r=64 + biases".
    """

    part: str
    parameters: int
    trainable: int
    learning_rate: float | None
    dtype: str
    method: str


def set_trainable(model: Any, tuned: Mapping[str, bool]) -> None:
    """Freeze and thaw whole parts.

    Args:
        tuned: "language_model", "vision_tower", "mm_projector" -> True when it is trained.

    Raises:
        ValueError: nothing would be trained.
    """
    model.set_trainable(**tuned)
    if not any(p.requires_grad for p in model.parameters()):
        flags = " ".join(f"--tune_{part} True" for part in tuned)
        raise ValueError(f"no parameter would be trained; give at least one of: {flags}, or --stage align|pretrain|sft")


def parts_table(model: nn.Module, *, learning_rate: float, part_rates: Mapping[str, float | None]) -> list[PartRow]:
    """One row per part of the model, in order of appearance."""
    parts: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        parts.setdefault(part_of(name), {})[name] = parameter
    kind = _adapter_kind(model)
    return [_row(part, weights, part_rates.get(part) or learning_rate, kind) for part, weights in parts.items()]


def _row(part: str, weights: Mapping[str, nn.Parameter], rate: float, adapter_kind: str) -> PartRow:
    trainable = sum(_numel(p) for p in weights.values() if p.requires_grad)
    return PartRow(
        part=part,
        parameters=sum(map(_numel, weights.values())),
        trainable=trainable,
        learning_rate=rate if trainable else None,
        dtype="+".join(sorted({_dtype(p) for p in weights.values()})),
        method=_method({name for name, p in weights.items() if p.requires_grad}, adapter_kind),
    )


def _adapter_kind(model: nn.Module) -> str:
    """Method and rank of the adapters beside the weights; empty where there are none."""
    config: Any = next(iter(getattr(model, "peft_config", {}).values()), None)
    return "" if config is None else f"{'DoRA' if config.use_dora else 'LoRA'} r={config.r}"


def _method(trained: set[str], adapter_kind: str) -> str:
    beside = {name for name in trained if is_adapter_weight(name)}
    others = trained - beside
    if not beside:
        return "whole" if others else "frozen"
    return f"{adapter_kind} + biases" if others else adapter_kind


def _numel(parameter: nn.Parameter) -> int:
    """Size of a parameter, also where ZeRO-3 keeps only a shard of it here, or 4 bits are packed by two."""
    packed = getattr(parameter, "quant_state", None)
    if packed is not None:
        return math.prod(packed.shape)
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _dtype(parameter: nn.Parameter) -> str:
    packed = getattr(parameter, "quant_state", None)
    return str(parameter.dtype).removeprefix("torch.") if packed is None else packed.quant_type


def save_table(rows: list[PartRow], path: Path) -> None:
    path.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def print_table(rows: list[PartRow]) -> None:
    """The table on the terminal; a log line per part where rich is not installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for row in rows:
            logger.warning("%s", row)
        return
    table = Table("part", "parameters", "trainable", "how", "rate", "dtype", title="what is trained")
    for row in rows:
        rate = "-" if row.learning_rate is None else f"{row.learning_rate:g}"
        table.add_row(row.part, f"{row.parameters:,}", f"{row.trainable:,}", row.method, rate, row.dtype)
    Console(stderr=True).print(table)


def optimizer_groups(
    model: nn.Module, *, weight_decay: float, learning_rate: float, part_rates: Mapping[str, float | None]
) -> list[dict[str, Any]]:
    """Groups for the optimizer: (part with its own rate) x (decayed or not), empty groups left out.

    Weight decay leaves out biases, norms and every other parameter with fewer than two dimensions.
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in _trainable(model):
        rate = part_rates.get(part_of(name)) or learning_rate
        decays = len(getattr(parameter, "ds_shape", parameter.shape)) > 1 and not name.endswith(".bias")
        row = groups.setdefault(
            (rate, decays), {"params": [], "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        )
        row["params"].append(parameter)
    return sorted(groups.values(), key=lambda g: g["lr"] != learning_rate)  # the main rate is the one that is logged


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)
