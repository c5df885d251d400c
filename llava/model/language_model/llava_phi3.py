"""Phi-3 and Phi-3.5: every layer sees a sliding window where its config names one."""

from __future__ import annotations

from llava.model.configuration_llava import LlavaPhi3Config
from llava.model.language_model import LANGUAGE_MODELS
from llava.model.language_model.base import LlavaCausalLM


@LANGUAGE_MODELS.register("phi3")
class LlavaPhi3Model(LlavaCausalLM):
    config_class = LlavaPhi3Config
