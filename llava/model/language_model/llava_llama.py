"""Llama 2 and 3."""

from __future__ import annotations

from llava.model.configuration_llava import LlavaLlamaConfig
from llava.model.language_model import LANGUAGE_MODELS
from llava.model.language_model.base import LlavaCausalLM


@LANGUAGE_MODELS.register("llama")
class LlavaLlamaModel(LlavaCausalLM):
    config_class = LlavaLlamaConfig
