"""Qwen 2, 2.5 and 3."""

from __future__ import annotations

from llava.model.configuration_llava import LlavaQwenConfig
from llava.model.language_model import LANGUAGE_MODELS
from llava.model.language_model.base import LlavaCausalLM


@LANGUAGE_MODELS.register("qwen2", "qwen3")
class LlavaQwenModel(LlavaCausalLM):
    config_class = LlavaQwenConfig
