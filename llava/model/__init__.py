"""MultimodalBatch -> logits and named loss terms. Names load on first use, so importing this costs nothing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

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

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'llava.model' has no attribute '{name}'")
    return getattr(import_module(f"llava.model.{_HOME[name]}"), name)
