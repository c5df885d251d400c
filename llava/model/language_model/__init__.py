"""Language models: one file per family, one row per `model_type` of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llava.utils.registry import Registry

if TYPE_CHECKING:
    from llava.model.language_model.base import LlavaCausalLM

LANGUAGE_MODELS: Registry[type[LlavaCausalLM]] = Registry("language model")
"""`model_type` of the language model's config -> model class; filled by the modules of this folder."""
