"""MultimodalBatch -> logits and named loss terms. Names load on first use, so importing this costs nothing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava.model.builder import build_model, load_pretrained_model
    from llava.model.configuration_llava import (
        LlavaConfig,
        LlavaGemmaConfig,
        LlavaLlamaConfig,
        LlavaMistralConfig,
        LlavaMixtralConfig,
        LlavaPhi3Config,
        LlavaQwenConfig,
    )
    from llava.model.language_model.base import LlavaCausalLM
    from llava.model.language_model.llava_gemma import LlavaGemmaModel
    from llava.model.language_model.llava_llama import LlavaLlamaModel
    from llava.model.language_model.llava_mistral import LlavaMistralModel
    from llava.model.language_model.llava_mixtral import LlavaMixtralModel
    from llava.model.language_model.llava_phi3 import LlavaPhi3Model
    from llava.model.language_model.llava_qwen import LlavaQwenModel
    from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel
    from llava.model.outputs import LlavaOutput

__all__ = [
    "LlavaCausalLM",
    "LlavaConfig",
    "LlavaGemmaConfig",
    "LlavaGemmaModel",
    "LlavaLlamaConfig",
    "LlavaLlamaModel",
    "LlavaMetaForCausalLM",
    "LlavaMetaModel",
    "LlavaMistralConfig",
    "LlavaMistralModel",
    "LlavaMixtralConfig",
    "LlavaMixtralModel",
    "LlavaOutput",
    "LlavaPhi3Config",
    "LlavaPhi3Model",
    "LlavaQwenConfig",
    "LlavaQwenModel",
    "build_model",
    "load_pretrained_model",
]

_HOME = {
    "LlavaConfig": "configuration_llava",
    "LlavaGemmaConfig": "configuration_llava",
    "LlavaLlamaConfig": "configuration_llava",
    "LlavaMistralConfig": "configuration_llava",
    "LlavaMixtralConfig": "configuration_llava",
    "LlavaPhi3Config": "configuration_llava",
    "LlavaQwenConfig": "configuration_llava",
    "LlavaMetaModel": "llava_arch",
    "LlavaMetaForCausalLM": "llava_arch",
    "LlavaCausalLM": "language_model.base",
    "LlavaGemmaModel": "language_model.llava_gemma",
    "LlavaLlamaModel": "language_model.llava_llama",
    "LlavaMistralModel": "language_model.llava_mistral",
    "LlavaMixtralModel": "language_model.llava_mixtral",
    "LlavaPhi3Model": "language_model.llava_phi3",
    "LlavaQwenModel": "language_model.llava_qwen",
    "LlavaOutput": "outputs",
    "build_model": "builder",
    "load_pretrained_model": "builder",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'llava.model' has no attribute '{name}'")
    return getattr(import_module(f"llava.model.{_HOME[name]}"), name)
