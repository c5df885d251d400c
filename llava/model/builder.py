"""Models from settings, models from folders."""

from __future__ import annotations

from typing import Any

from llava.model.configuration_llava import LlavaConfig
from llava.model.language_model import LANGUAGE_MODELS, llava_llama, llava_qwen  # noqa: F401  (they fill the table)
from llava.model.language_model.base import LlavaCausalLM


def model_class_for(llm_model_type: str | None) -> type[LlavaCausalLM]:
    try:
        return LANGUAGE_MODELS[llm_model_type or ""]
    except KeyError as error:
        raise ValueError(f"llm_cfg: {error.args[0]}") from None


def build_model(
    config: LlavaConfig | dict[str, Any], *, tokenizer: Any = None, attn_implementation: str | None = None
) -> LlavaCausalLM:
    """A model with fresh weights.

    Args:
        config: `LlavaConfig`, or its keys as a dict (`llm_cfg`, `vision_tower_cfg`, `mm_projector_cfg` and any others).
        tokenizer: becomes `model.tokenizer`; its `<image>` id is stored in the config.
        attn_implementation: "sdpa" (default), "flash_attention_2", "flex_attention" or "eager" for the language model.
    """
    settings = config.to_dict() if isinstance(config, LlavaConfig) else dict(config)
    llm = LlavaConfig.part_as_dict(settings.get("llm_cfg"))
    if llm is None:
        raise ValueError(
            f"llm_cfg is {settings.get('llm_cfg')!r}, expected settings; to read weights use llava.load(path)"
        )
    model_class = model_class_for(llm.get("model_type"))
    settings.pop("model_type", None)
    model = model_class(model_class.config_class(**settings), attn_implementation=attn_implementation)
    attach_tokenizer(model, tokenizer)
    return model


def attach_tokenizer(model: LlavaCausalLM, tokenizer: Any) -> None:
    """Sets `model.tokenizer` and stores the id of `<image>`, which is added to the tokenizer in memory where it lacks it."""
    if tokenizer is None:
        return
    from llava.utils.tokenizer import ensure_special_tokens

    model.config.image_token_id = ensure_special_tokens(tokenizer)
    model.tokenizer = tokenizer
