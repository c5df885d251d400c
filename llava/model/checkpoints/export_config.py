"""Which of transformers' LLaVA classes expresses a model, and with which settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from transformers import LlavaConfig as HFLlavaConfig
from transformers import LlavaNextConfig, LlavaOnevisionConfig

if TYPE_CHECKING:
    from llava.model.language_model.base import LlavaCausalLM

Kind = Literal["llava", "llava_next", "llava_onevision"]

LLMS = ("llama", "mistral", "qwen2")
TOWERS = ("clip_vision_model", "siglip_vision_model")
STRATEGIES = {"patch": "default", "cls_patch": "full"}
OURS = "save it in this package's own layout: model.save_pretrained(folder)"


def hf_kind(model: LlavaCausalLM) -> Kind:
    """Llava for one view a picture, LlavaNext for tiles of `anyres`, LlavaOnevision where their number is bounded."""
    rule = model.visual_spec.anyres
    if rule is None:
        return "llava"
    return "llava_next" if rule.most_tiles is None else "llava_onevision"


def require_expressible(model: LlavaCausalLM) -> None:
    """Raises ValueError for what transformers' classes have no place for; names the part and the way out."""
    if model.scene_split is not None:
        raise ValueError(
            f"the model has scene_split and reads pictures in two groups, transformers' LLaVA reads them whole; {OURS}"
        )
    found = {
        "language model": (model.llm.config.model_type, LLMS),
        "vision tower": (model.vision_tower.config.model_type, TOWERS),
        "projector": (model.mm_projector.config.mm_projector_type, ("mlp2x_gelu",)),
    }
    for part, (kind, known) in found.items():
        if kind not in known:
            raise ValueError(f"the {part} is '{kind}', transformers' LLaVA has {' or '.join(known)} only; {OURS}")
    if getattr(model.vision_tower, "scales", ()):
        raise ValueError(
            f"the tower looks at {model.vision_tower.scales} pixels (s2), transformers' LLaVA at one size; {OURS}"
        )
    _require_pictures(model)
    if model.config.image_token_id is None:
        raise ValueError("config.image_token_id is None, expected the id of <image>; load the model with its tokenizer")


def _require_pictures(model: LlavaCausalLM) -> None:
    mode, rule = model.config.image_aspect_ratio, model.visual_spec.anyres
    if mode == "dynamic":
        raise ValueError(f"image_aspect_ratio is 'dynamic', which transformers' LLaVA classes do not cut; {OURS}")
    if rule is None and model.mm_projector.image_newline is not None:
        raise ValueError(
            f"image_aspect_ratio is {mode!r}, and the projector holds the image_newline of tiled pictures, for which "
            f"transformers' Llava has no place; {OURS}"
        )
    if rule is not None and rule.merge != "spatial_unpad":
        raise ValueError(
            f"mm_patch_merge_type is {rule.merge!r}, transformers' LlavaNext and LlavaOnevision merge tiles by "
            f"'spatial_unpad' only; {OURS}"
        )
    if rule is not None and model.tokens_per_image != model.vision_tower.grid_side**2:
        raise ValueError(
            f"a view has {model.tokens_per_image} tokens, transformers merges square grids of "
            f"{model.vision_tower.grid_side} patches a side; set mm_vision_select_feature to 'patch'"
        )


def strategy_of(model: LlavaCausalLM) -> Any:
    """A SigLIP has no class token to drop: both of our features keep every patch."""
    return STRATEGIES[model.vision_tower.select_feature] if model.vision_tower.num_prefix_tokens else "full"


def pinpoints_of(model: LlavaCausalLM) -> list[list[int]]:
    """(height, width) of the canvases of tiled pictures."""
    rule = model.visual_spec.anyres
    assert rule is not None
    return [list(pair) for pair in rule.resolutions]


def hf_config(model: LlavaCausalLM, num_rows: int) -> HFLlavaConfig | LlavaNextConfig | LlavaOnevisionConfig:
    """Settings for `hf_kind(model)`; num_rows: of the embedding table."""
    tower, kind = model.vision_tower, hf_kind(model)
    text = {**_settings(model.llm), "vocab_size": num_rows}
    shared: dict[str, Any] = {
        "text_config": text,
        "vision_config": _settings(tower.vision_tower),
        "image_token_index": model.config.image_token_id,
        "projector_hidden_act": "gelu",
        "vision_feature_select_strategy": strategy_of(model),
        "vision_feature_layer": tower.select_layer,
        "multimodal_projector_bias": True,
        "tie_word_embeddings": bool(text.get("tie_word_embeddings")),
        "dtype": model.llm.dtype,
    }
    if kind == "llava":
        return HFLlavaConfig(**shared, image_seq_length=model.tokens_per_image)
    shared["image_grid_pinpoints"] = pinpoints_of(model)
    if kind == "llava_next":
        return LlavaNextConfig(**shared, image_seq_length=model.tokens_per_image)
    video = getattr(model.config, "video_token_id", None)
    known = {} if video is None else {"video_token_index": video}
    return LlavaOnevisionConfig(**shared, **known, vision_aspect_ratio=model.config.image_aspect_ratio)  # pyright: ignore


def _settings(part: Any) -> dict[str, Any]:
    """Without the path that the part was read from, which belongs to this machine."""
    return {key: value for key, value in part.config.to_dict().items() if key != "_name_or_path"}
