"""Mixtral: Mistral with experts; the balance of its router is a loss term where `output_router_logits` is set."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from llava.model.configuration_llava import LlavaMixtralConfig
from llava.model.language_model import LANGUAGE_MODELS
from llava.model.language_model.base import LlavaCausalLM


@LANGUAGE_MODELS.register("mixtral")
class LlavaMixtralModel(LlavaCausalLM):
    config_class = LlavaMixtralConfig

    def further_loss_terms(self, decoded: Any, is_token: Tensor | None) -> dict[str, tuple[float, Tensor]]:
        llm = self.llm.config
        if not llm.output_router_logits:
            return {}
        from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func  # slow to import

        balance: Any = load_balancing_loss_func(
            decoded.router_logits, llm.num_local_experts, llm.num_experts_per_tok, is_token
        )
        return {"router_loss": (llm.router_aux_loss_coef, balance)}
