"""Models from settings, models from folders."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from llava.model.checkpoints import ReadOptions, autoregressive, find_layout, read_checkpoint, resolve_folder
from llava.model.checkpoints.stored import read_config
from llava.model.configuration_llava import LlavaConfig
from llava.model.language_model import language_models
from llava.model.language_model.base import LlavaCausalLM
from llava.utils.registry import suggest
from llava.utils.tokenizer import ensure_special_tokens

DEFAULT_CONTEXT = 2048
"""What the original loader answers for a language model that names no `max_sequence_length`."""


def model_class_for(llm_model_type: str | None) -> type[LlavaCausalLM]:
    try:
        return language_models()[llm_model_type or ""]
    except KeyError as error:
        raise ValueError(f"llm_cfg: {error.args[0]}") from None


def build_model(
    config: LlavaConfig | dict[str, Any],
    *,
    tokenizer: Any = None,
    attn_implementation: str | None = None,
    dtype: torch.dtype | None = None,
) -> LlavaCausalLM:
    """A model with fresh weights for every part that is given by settings, and read weights for parts given as folders.

    Args:
        config: `LlavaConfig`, or its keys as a dict (`llm_cfg`, `vision_tower_cfg`, `mm_projector_cfg` and any others).
        tokenizer: becomes `model.tokenizer`; its `<image>` id is stored in the config.
        attn_implementation: "sdpa" (default), "flash_attention_2", "flex_attention" or "eager" for the language model.
        dtype: of the weights; None = float32 for fresh parts, as stored for read ones.
    """
    settings = config.to_dict() if isinstance(config, LlavaConfig) else dict(config)
    settings.pop("model_type", None)
    model_class = model_class_for(_llm_model_type(settings.get("llm_cfg")))
    model = model_class(model_class.config_class(**settings), attn_implementation=attn_implementation, dtype=dtype)
    attach_tokenizer(model, tokenizer)
    if model.config.scene_split is not None:
        model.initialize_scene_split()
    return model


def _llm_model_type(part: Any) -> str | None:
    if isinstance(part, str):
        stored, _ = LlavaConfig.get_config_dict(part)
        return stored.get("model_type")
    settings = LlavaConfig.part_as_dict(part)
    if settings is None:
        raise ValueError(f"llm_cfg is {part!r}, expected settings with a model_type, or a folder with weights")
    return settings.get("model_type")


def attach_tokenizer(model: LlavaCausalLM, tokenizer: Any) -> None:
    """Sets `model.tokenizer` and stores the id of `<image>`, which a tokenizer that lacks it gains in memory."""
    if tokenizer is None:
        return
    model.config.image_token_id = ensure_special_tokens(tokenizer)
    model.tokenizer = tokenizer


def load_pretrained_model(
    model_path: str,
    model_base: str | None = None,
    model_name: str | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = None,
    device: str | None = None,
    surprise: bool = False,
    teacher: str | Path | None = None,
    **kwargs: Any,
) -> tuple[Any, Any, Any, int]:
    """Reads a checkpoint of any known layout, or a plain language model.

    Args:
        model_name: accepted as documented; nothing is decided by a name.
        device: "cpu", "cuda", "cuda:1"; None = CUDA where there is one. device_map: as transformers takes it, wins.
        surprise: also build the predictor of the next frame, for `model.frame_surprise`; its vision tower is frozen.
        teacher: checkpoint from which the training of a tuned tower began; its tower gives the features to predict.
        kwargs: dtype, attn_implementation, quantization_config, vision_tower, cache_dir; with load_8bit or load_4bit
            the settings of BitsAndBytesConfig too, such as llm_int8_threshold or bnb_4bit_quant_type.

    Returns:
        (tokenizer, model, image_processor, context_len); image_processor is None for a plain language model.
    """
    if teacher is not None and not surprise:
        raise ValueError(f"teacher is {str(teacher)!r} and surprise False; give surprise=True, or leave teacher out")
    device_map = device_map or {"": device or ("cuda" if torch.cuda.is_available() else "cpu")}
    settings = {name: kwargs.pop(name) for name in list(kwargs) if name.startswith(("llm_int8_", "bnb_4bit_"))}
    if settings and not (load_8bit or load_4bit):
        raise ValueError(f"{', '.join(settings)} given without load_8bit or load_4bit; give one of them as True")
    if load_8bit or load_4bit:
        if (load_8bit and load_4bit) or kwargs.get("quantization_config") is not None:
            raise ValueError("load_8bit, load_4bit and quantization_config exclude each other; give one of them")
        kwargs["quantization_config"] = quantization(load_4bit=load_4bit, **settings)
    options = ReadOptions(model_base=model_base, device_map=device_map, **kwargs)
    folder = resolve_folder(model_path, options.cache_dir)
    if surprise:
        autoregressive.read_settings(folder)  # before the weights: refusing takes no time
    if find_layout(folder) is None and is_language_model(folder):
        return _load_language_model(str(folder), options)
    model = read_checkpoint(folder, options)
    if surprise:
        given = None if teacher is None else read_checkpoint(teacher, ReadOptions(dtype=options.dtype)).vision_tower
        autoregressive.attach(model, folder, given)
    return model.tokenizer, model, model.image_processor, context_length(model.llm)


def is_language_model(folder: Path) -> bool:
    """Whether a folder without a known layout is worth a try as a plain language model.

    Raises:
        ValueError: for a model_type that transformers does not know either.
    """
    stored = read_config(folder)
    kind = stored.get("model_type")
    if kind is not None and kind not in CONFIG_MAPPING:
        from llava.model.checkpoints.original import FAMILIES

        near = suggest(str(kind), [*FAMILIES])
        raise ValueError(f"{folder / 'config.json'}: model_type is {kind!r}, unknown here and to transformers{near}")
    return bool(stored)


def _load_language_model(folder: str, options: ReadOptions) -> tuple[Any, Any, None, int]:
    asked = ("attn_implementation", "max_memory", "quantization_config")
    given = {name: value for name in asked if (value := getattr(options, name)) is not None}
    llm = AutoModelForCausalLM.from_pretrained(folder, dtype=options.dtype, device_map=options.device_map, **given)
    return AutoTokenizer.from_pretrained(folder), llm, None, context_length(llm)


def context_length(llm: Any) -> int:
    return getattr(llm.config, "max_sequence_length", None) or DEFAULT_CONTEXT


def quantization(*, load_4bit: bool, **settings: Any) -> BitsAndBytesConfig:
    """8-bit, or 4-bit (nf4, double quantisation), for the language model; tower and projector keep their precision.

    Works on a CPU too, slowly; there the widths of 4-bit layers must be multiples of 64, as those of real models are.

    Raises:
        ImportError: without bitsandbytes.
    """
    bits = "load_4bit" if load_4bit else "load_8bit"
    if find_spec("bitsandbytes") is None:
        raise ImportError(f"{bits} needs bitsandbytes: pip install bitsandbytes")
    if not load_4bit:
        return BitsAndBytesConfig(load_in_8bit=True, **settings)
    usual = {
        "bnb_4bit_compute_dtype": torch.float16,
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_quant_type": "nf4",
    }
    return BitsAndBytesConfig(load_in_4bit=True, **{**usual, **settings})
