"""What a forward pass returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class LlavaOutput(ModelOutput):
    """Loss, its named terms and, where asked for, logits.

    Attributes:
        loss: weighted sum of the terms; None without labels.
        logits: [B, S, V]; None in a training step with labels, where only supervised rows pass the language head.
        loss_terms: unweighted terms by name; "main_loss" is the token cross-entropy.
        past_key_values: cache of the language model when `use_cache` is set.
        hidden_states: last hidden states [B, S, D] of the language model (after its final norm).
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    loss_terms: dict[str, Tensor] | None = field(default=None)
    past_key_values: Any = None
    hidden_states: Tensor | None = None
