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
TABLE_FILE = "trained_parts.json"
"""Beside the weights of a run and of each of its checkpoints."""
PART_OF_FOLDER = {
    "llm": LANGUAGE_MODEL,
    "vision_tower": "vision_tower",
    "mm_projector": "mm_projector",
    "autoregressive_reconstruction": "autoregressive",
    **{part: part for part in ("background_projector", "object_projector", "object_tower", "prefusion")},
}
"""Sub-module that a part lives in -> the name of the part in `--tune_<part>` and in the table."""


def part_of(name: str) -> str:
    """Part that owns a parameter, from the first component of its dotted name that names a part."""
    return next((PART_OF_FOLDER[word] for word in name.split(".") if word in PART_OF_FOLDER), "other")


@dataclass(frozen=True, kw_only=True)
class PartRow:
    """One line of the table of what is trained; adapters have a line of their own behind that of their part.

    Attributes:
        part: a name of `PART_OF_FOLDER`; "language_model adapters" for what lies beside its weights.
        parameters: of quantised weights, those that they stand for.
        method: "whole", "frozen", "biases", or the kind of the adapters: "LoRA r=64".
    """

    part: str
    parameters: int
    trainable: int
    learning_rate: float | None
    dtype: str
    method: str


def set_trainable(model: Any, tuned: Mapping[str, bool], split: Mapping[str, bool | None] | None = None) -> None:
    """Freeze and thaw whole parts.

    Args:
        tuned: "language_model", "vision_tower", "mm_projector" -> True when it is trained.
        split: the same for parts of `scene_split`; those that are not named follow the model's.

    Raises:
        ValueError: nothing would be trained.
    """
    model.set_trainable(**tuned, **(split or {}))
    if not any(p.requires_grad for p in model.parameters()):
        flags = " ".join(f"--tune_{part} True" for part in tuned)
        raise ValueError(f"no parameter would be trained; give at least one of: {flags}, or --stage align|pretrain|sft")


RATE_FLAGS: Mapping[str, tuple[str, ...]] = {
    "mm_projector_lr": ("mm_projector", "background_projector", "object_projector"),
    "vision_tower_lr": ("vision_tower", "object_tower"),
    "autoregressive_lr": ("autoregressive",),
    "background_projector_lr": ("background_projector",),
    "object_projector_lr": ("object_projector",),
    "object_tower_lr": ("object_tower",),
    "prefusion_lr": ("prefusion",),
}
"""Flag with a learning rate -> the parts that it reaches."""


def check_rates(model: nn.Module, rates: Mapping[str, float | None]) -> None:
    """A learning rate never waits in vain for its part.

    Args:
        rates: flag of `RATE_FLAGS` -> its value, None where it was not given.

    Raises:
        ValueError: a rate below 0, or one for parts of which nothing is trained.
    """
    trained = {part_of(name) for name, _ in _trainable(model)}
    for flag, rate in rates.items():
        if rate is None:
            continue
        if not 0 <= rate < math.inf:
            raise ValueError(f"--{flag} is {rate}, expected a finite number of 0 or more")
        if not trained & set(RATE_FLAGS[flag]):
            raise ValueError(
                f"--{flag} {rate:g} has nothing to act on: of {' and '.join(RATE_FLAGS[flag])} nothing is trained "
                f"(trained: {', '.join(sorted(trained))}); leave it out, or train that part (--tune_..., --lora_vt, "
                "--enable_autoregressive, --scene_split)"
            )


def rate_of(part: str, part_rates: Mapping[str, float | None], learning_rate: float) -> float:
    """The part's own rate, which may be 0, else the common one."""
    own = part_rates.get(part)
    return learning_rate if own is None else own


def parts_table(model: nn.Module, *, learning_rate: float, part_rates: Mapping[str, float | None]) -> list[PartRow]:
    """One row per part of the model, in order of appearance."""
    rows: dict[tuple[str, bool], dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rows.setdefault((part_of(name), is_adapter_weight(name)), {})[name] = parameter
    kind = _adapter_kind(model)
    order = {part: index for index, (part, _) in enumerate(rows)}
    return [
        _row(part, weights, rate_of(part, part_rates, learning_rate), kind if is_adapter else None)
        for (part, is_adapter), weights in sorted(rows.items(), key=lambda row: (order[row[0][0]], row[0][1]))
    ]


def _row(part: str, weights: Mapping[str, nn.Parameter], rate: float, adapter_kind: str | None) -> PartRow:
    trained = {name: p for name, p in weights.items() if p.requires_grad}
    return PartRow(
        part=part if adapter_kind is None else f"{part} adapters",
        parameters=sum(map(numel, weights.values())),
        trainable=sum(map(numel, trained.values())),
        learning_rate=rate if trained else None,
        dtype="+".join(sorted({_dtype(p) for p in weights.values()})),
        method=adapter_kind or _method(trained, weights),
    )


def _adapter_kind(model: nn.Module) -> str:
    """Method and rank of the adapters beside the weights; empty where there are none."""
    config: Any = next(iter(getattr(model, "peft_config", {}).values()), None)
    return "" if config is None else f"{'DoRA' if config.use_dora else 'LoRA'} r={config.r}"


def _method(trained: Mapping[str, nn.Parameter], weights: Mapping[str, nn.Parameter]) -> str:
    if not trained:
        return "frozen"
    only_biases = len(trained) < len(weights) and all(name.endswith(".bias") for name in trained)
    return "biases" if only_biases else "whole"


def numel(parameter: nn.Parameter) -> int:
    """Size of a parameter, also where ZeRO-3 keeps only a shard of it here, or 4 bits are packed by two."""
    return math.prod(shape_of(parameter))


def shape_of(weight: Any) -> tuple[int, ...]:
    """Shape of a parameter or buffer as the model means it, see `numel`."""
    packed = getattr(weight, "quant_state", None)
    if packed is not None:
        return tuple(packed.shape)
    return tuple(getattr(weight, "ds_shape", weight.shape))


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
        rate = rate_of(part_of(name), part_rates, learning_rate)
        decays = len(shape_of(parameter)) > 1 and not name.endswith(".bias")
        row = groups.setdefault(
            (rate, decays), {"params": [], "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        )
        row["params"].append(parameter)
    return sorted(groups.values(), key=lambda g: g["lr"] != learning_rate)  # the main rate is the one that is logged


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)
