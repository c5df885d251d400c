"""What a forward pass returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.utils import ModelOutput

if TYPE_CHECKING:
    from llava.model.autoregressive_reconstruction.losses import GeometrySums, SkillSums


@dataclass(frozen=True, kw_only=True)
class ReconstructionTerm:
    """The next-frame loss of a training pass.

    Attributes:
        loss: unweighted, with its graph; this batch's share of the mean over the step.
        weight: what it was multiplied by.
        skill, by_motion, geometry, num_masked: see `ReconstructionOutput`.
    """

    loss: Tensor
    weight: float
    skill: SkillSums
    by_motion: Mapping[str, SkillSums]
    geometry: GeometrySums | None = None
    num_masked: int = 0


@dataclass
class LlavaOutput(ModelOutput):
    """Loss, its named terms and, where asked for, logits.

    Attributes:
        loss: weighted sum of the terms; None without labels.
        logits: [B, S, V]; None in a training step with labels, where only supervised rows pass the language head.
        loss_terms: unweighted terms by name; "main_loss" is the token cross-entropy, "autoregressive_loss" the
            next-frame loss of a model that learns it.
        past_key_values: cache of the language model when `use_cache` is set.
        hidden_states: last hidden states [B, S, D] of the language model (after its final norm).
        reconstruction: more about "autoregressive_loss", where there is one.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    loss_terms: dict[str, Tensor] | None = field(default=None)
    past_key_values: Any = None
    hidden_states: Tensor | None = None
    reconstruction: ReconstructionTerm | None = None


def states_of(decoded: Any, layer: int) -> Tensor:
    """Hidden states [B, S, D] behind a layer as transformers counts: 0 = embeddings, -1 = behind the last norm."""
    if layer == -1:
        return decoded.last_hidden_state
    states = decoded.hidden_states
    if not -len(states) <= layer < len(states):
        raise ValueError(
            f"aux_layer is {layer}, the language model has hidden states {-len(states)}..{len(states) - 1}"
        )
    return states[layer]
