"""Builds the language model part."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from llava.model.attention import resolve_implementation


def build_llm(part: Any, *, attn_implementation: str | None = None) -> PreTrainedModel:
    """A causal language model with fresh weights from settings (dict with `model_type`, or a config object)."""
    if isinstance(part, PreTrainedConfig):
        llm_config = part
    else:
        settings = dict(part)
        model_type = settings.pop("model_type", None)
        if model_type is None:
            raise ValueError("llm_cfg has no model_type, expected one of transformers' such as 'llama' or 'qwen2'")
        llm_config = AutoConfig.for_model(model_type, **settings)
    return AutoModelForCausalLM.from_config(llm_config, attn_implementation=resolve_implementation(attn_implementation))
