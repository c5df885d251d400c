"""MultimodalBatch -> logits and named loss terms. Names load on first use, so importing this costs nothing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava.model.builder import build_model, load_pretrained_model
    from llava.model.configuration_llava import LlavaConfig, LlavaLlamaConfig, LlavaQwenConfig
    from llava.model.language_model.base import LlavaCausalLM
    from llava.model.language_model.llava_llama import LlavaLlamaModel
    from llava.model.language_model.llava_qwen import LlavaQwenModel
    from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel
    from llava.model.outputs import LlavaOutput

__all__ = [
    "LlavaCausalLM",
    "LlavaConfig",
    "LlavaLlamaConfig",
    "LlavaLlamaModel",
    "LlavaMetaForCausalLM",
    "LlavaMetaModel",
    "LlavaOutput",
    "LlavaQwenConfig",
    "LlavaQwenModel",
    "build_model",
    "load_pretrained_model",
]

_HOME = {
    "LlavaConfig": "configuration_llava",
    "LlavaLlamaConfig": "configuration_llava",
    "LlavaQwenConfig": "configuration_llava",
    "LlavaMetaModel": "llava_arch",
    "LlavaMetaForCausalLM": "llava_arch",
    "LlavaCausalLM": "language_model.base",
    "LlavaLlamaModel": "language_model.llava_llama",
    "LlavaQwenModel": "language_model.llava_qwen",
    "LlavaOutput": "outputs",
    "build_model": "builder",
    "load_pretrained_model": "builder",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'llava.model' has no attribute '{name}'")
    return getattr(import_module(f"llava.model.{_HOME[name]}"), name)
