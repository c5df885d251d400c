"""The plan of a checkpoint: which stored tensor becomes which weight, and what does not fit; nothing is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.configuration_utils import PreTrainedConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from llava.model.checkpoints.renamed import compare_as_loaded
from llava.model.checkpoints.stored import StoredTensor

PARTS = ("llm", "vision_tower", "mm_projector")
Place = tuple[str, str]
"""(part, name inside the part)."""


@dataclass(kw_only=True)
class Part:
    """One part of a model on disk.

    Attributes:
        config: settings of the part; None where they lie elsewhere and are not here yet.
        tensors: name inside the part -> where it lies. Empty for a part that comes from `source`.
        source: folder or hub id that the whole part is read from instead.
    """

    config: PreTrainedConfig | None = None
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    source: str | None = None


@dataclass(kw_only=True)
class Plan:
    """What a checkpoint is made of, and the report on it.

    Attributes:
        config: settings of the whole model, as keywords of its config class.
        explained: stored key that is left out, or weight that is not stored -> reason.
        missing, unexpected, misshapen: what nobody can explain; each is an error for a reader.
        obstacle: why this package cannot run the model, though it can be described.
        needs: what a reader must be given or fetch.
    """

    layout: str
    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    explained: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    obstacle: str | None = None
    needs: list[str] = field(default_factory=list)

    def distribute(
        self,
        stored: Mapping[str, StoredTensor],
        locate: Callable[[str], Place | None],
        explain: Callable[[str], str | None],
    ) -> None:
        """Gives each stored tensor its place in a part, or a reason, or a line in `unexpected`."""
        for name, tensor in stored.items():
            reason = explain(name)
            place = None if reason else locate(name)
            if reason:
                self.explained[name] = reason
            elif place is None or place[0] not in self.parts:
                self.unexpected.append(f"{tensor.file}: {name}")
            elif place[1] in self.parts[place[0]].tensors:
                twin = self.parts[place[0]].tensors[place[1]]
                self.unexpected.append(f"{tensor.file}: {name} (the same weight as {twin.name} in {twin.file.name})")
            else:
                self.parts[place[0]].tensors[place[1]] = tensor

    def compare(
        self, part: str, wanted: Mapping[str, tuple[int, ...]], explain: Callable[[str], str | None] = lambda _: None
    ) -> None:
        """Checks names and shapes of a part against those of a model."""
        stored = self.parts[part].tensors
        for name in wanted:
            if name not in stored:
                reason = explain(name)
                if reason:
                    self.explained[f"{part}.{name}"] = reason
                else:
                    self.missing.append(f"{part}.{name} {list(wanted[name])}")
        for name, tensor in list(stored.items()):
            reason = None if name in wanted else explain(name)
            if reason:
                self.explained[tensor.name] = reason
                del stored[name]
            elif name not in wanted:
                self.unexpected.append(f"{tensor.file}: {tensor.name}")
            elif tensor.shape != tuple(wanted[name]):
                self.misshapen.append(
                    f"{tensor.file}: {tensor.name} has shape {list(tensor.shape)}, expected {list(wanted[name])}"
                )

    def require_readable(self) -> None:
        """Refuses a checkpoint of which anything is unexplained.

        Raises:
            ValueError: names file and key, and what to do.
        """
        if self.obstacle:
            raise ValueError(f"{self.folder}: {self.obstacle}")
        advice = f"config.json describes another model, or a file was cut: see vila-inspect {self.folder}"
        if self.misshapen:
            raise ValueError(f"{_first(self.misshapen)}; {advice}")
        if self.missing:
            raise ValueError(f"{self.folder} lacks weights: {_first(self.missing)}; {advice}")
        if self.unexpected:
            raise ValueError(f"unknown weights in {_first(self.unexpected)}; {advice}")


def _first(rows: list[str]) -> str:
    return rows[0] + (f" (and {len(rows) - 1} more)" if len(rows) > 1 else "")


def shapes_of(build: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model that is built without memory for its weights."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in build().state_dict().items()}


def llm_class(config: PreTrainedConfig) -> Any:
    try:
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError as error:
        raise ValueError(
            f"'{config.model_type}' is no causal language model of transformers; check model_type"
        ) from error


def names_are_plain(config: PreTrainedConfig, model_class: Any) -> bool:
    """False where transformers renames or joins stored weights by more than the prefix of CLIP, which we know."""
    name = model_class.__name__
    by_class = name not in ("CLIPVisionModel", "SiglipVisionModel") and get_checkpoint_conversion_mapping(name)
    return not (by_class or get_checkpoint_conversion_mapping(config.model_type))


def compare_llm(plan: Plan) -> None:
    """Checks the language model; a tied head need not be stored."""
    config = plan.parts["llm"].config
    assert config is not None
    kind = llm_class(config)
    tied = bool(getattr(config, "tie_word_embeddings", False))
    compare_part(
        plan, "llm", kind, lambda name: "tied to the input embeddings" if tied and name == "lm_head.weight" else None
    )


def compare_part(plan: Plan, part: str, kind: Any, explain: Callable[[str], str | None]) -> None:
    """Checks a part against transformers' class of it."""
    config: Any = plan.parts[part].config
    if names_are_plain(config, kind):
        plan.compare(part, shapes_of(lambda: kind(config)), explain)
    else:
        compare_as_loaded(plan, part, kind, config, explain)


def unused_in_tower(name: str, kind: Any, layers_run: int) -> str | None:
    """Why a weight of a vision tower (of our class `kind`) is not needed: no selected feature passes through it."""
    layer = re.fullmatch(rf"{re.escape(kind.layers_name)}\.(\d+)\..*", name)
    behind = layer is not None and int(layer[1]) >= layers_run
    beside = any(name == part or name.startswith(f"{part}.") for part in kind.unused_parts)
    return "behind the selected layer of the tower, never run" if behind or beside else None


def sizes(tensors: Iterable[StoredTensor]) -> tuple[int, int]:
    """(parameters, bytes)."""
    rows = list(tensors)
    return sum(row.num_elements for row in rows), sum(row.num_bytes for row in rows)
