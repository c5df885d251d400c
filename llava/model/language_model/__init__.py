"""Language models: one file per family, one row per `model_type` of transformers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from llava.utils.registry import Registry

if TYPE_CHECKING:
    from llava.model.language_model.base import LlavaCausalLM

LANGUAGE_MODELS: Registry[type[LlavaCausalLM]] = Registry("language model")
"""`model_type` of the language model's config -> model class; filled by the modules of this folder."""

_MODULES = ("llava_llama", "llava_qwen", "llava_mistral", "llava_mixtral", "llava_gemma", "llava_phi3")


def language_models() -> Registry[type[LlavaCausalLM]]:
    """The table with every family of this folder in it; importing the folder alone costs nothing."""
    for module in _MODULES:
        import_module(f"{__name__}.{module}")
    return LANGUAGE_MODELS
