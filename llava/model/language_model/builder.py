"""The language model part: fresh from settings, or read from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from llava.model.attention import implementation_for
from llava.model.checkpoints import ReadOptions
from llava.model.checkpoints.keys import read_part


def build_llm(part: Any, *, attn_implementation: str | None = None, dtype: Any = None) -> PreTrainedModel:
    """A causal language model: fresh from settings (dict with `model_type`, or a config object), read from a str."""
    if isinstance(part, str | Path):
        return read_llm(part, ReadOptions(attn_implementation=attn_implementation, dtype=dtype or "auto"))
    if isinstance(part, PreTrainedConfig):
        llm_config = part
    else:
        settings = dict(part)
        model_type = settings.pop("model_type", None)
        if model_type is None:
            raise ValueError("llm_cfg has no model_type, expected one of transformers' such as 'llama' or 'qwen2'")
        llm_config = AutoConfig.for_model(model_type, **settings)
    implementation = implementation_for(attn_implementation, llm_config)
    given = {} if dtype is None else {"dtype": dtype}
    return AutoModelForCausalLM.from_config(llm_config, attn_implementation=implementation, **given)


def read_llm(folder: Path | str, options: ReadOptions) -> PreTrainedModel:
    """A language model from a plain folder (or hub id) of transformers: safetensors or .bin, sharded or not."""
    llm_config = AutoConfig.from_pretrained(str(folder), cache_dir=options.cache_dir)
    # a None would hide from transformers that the folder's weights are quantised already
    quantized = {} if options.quantization_config is None else {"quantization_config": options.quantization_config}
    return read_part(
        AutoModelForCausalLM.from_pretrained,
        folder,
        "language model",
        dtype=options.dtype,
        device_map=options.device_map,
        max_memory=options.max_memory,
        attn_implementation=implementation_for(options.attn_implementation, llm_config),
        cache_dir=options.cache_dir,
        **quantized,
    )
