"""Mistral: every layer sees a sliding window where its config names one."""

from __future__ import annotations

from llava.model.configuration_llava import LlavaMistralConfig
from llava.model.language_model import LANGUAGE_MODELS
from llava.model.language_model.base import LlavaCausalLM


@LANGUAGE_MODELS.register("mistral")
class LlavaMistralModel(LlavaCausalLM):
    config_class = LlavaMistralConfig
