"""transformers' own LLaVA, LLaVA-Next and LLaVA-OneVision folders (llava-hf), with names of three generations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import LlavaConfig as HFLlavaConfig
from transformers import LlavaNextConfig, LlavaOnevisionConfig

from llava.model.checkpoints import LAYOUTS, Layout, ReadOptions
from llava.model.checkpoints.assemble import PROCESSOR_FILES, assemble, compare_vision
from llava.model.checkpoints.names import explain_buffer, locate_llava_hf
from llava.model.checkpoints.plan import Part, Plan, compare_llm
from llava.model.checkpoints.stored import folder_headers, has_weights, read_config, read_json
from llava.model.multimodal_projector.base_projector import MultimodalProjectorConfig

if TYPE_CHECKING:
    from llava.model.language_model.base import LlavaCausalLM

CONFIGS = {"llava": HFLlavaConfig, "llava_next": LlavaNextConfig, "llava_onevision": LlavaOnevisionConfig}
FEATURES = {"default": "patch", "full": "cls_patch"}
VERSIONS = {"llama": "v1", "mistral": "mistral_instruct"}
"""Template of the published weights per language model; where none is known the caller sets `config.version`."""


def recognises(folder: Path) -> bool:
    stored = read_config(folder)
    return "text_config" in stored and "vision_config" in stored and has_weights(folder)


def read(folder: Path, options: ReadOptions) -> LlavaCausalLM:
    for name in ("model_base", "vision_tower"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"{folder} is a complete checkpoint, found {name}={getattr(options, name)!r}; leave it out"
            )
    return assemble(make_plan(folder, options), options)


def make_plan(folder: Path, options: ReadOptions, fetch: bool = True) -> Plan:
    stored = read_config(folder)
    if stored.get("model_type") not in CONFIGS:
        raise ValueError(
            f"{folder / 'config.json'}: model_type is {stored.get('model_type')!r}, expected one of {sorted(CONFIGS)}; "
            "this is another vision-language model of transformers: load it with AutoModelForImageTextToText"
        )
    config = CONFIGS[stored["model_type"]].from_dict(stored)
    text: Any = config.text_config
    vision: Any = config.vision_config
    plan = Plan(layout="llava_hf", folder=folder, config=_settings(config, folder))
    plan.parts = {
        "llm": Part(config=text),
        "vision_tower": Part(config=vision),
        "mm_projector": Part(
            config=MultimodalProjectorConfig(
                mm_projector_type="mlp2x_gelu",
                mm_hidden_size=vision.hidden_size,
                hidden_size=text.hidden_size,
                token_order="row",
                image_newline=stored["model_type"] != "llava",
            )
        ),
    }
    text.tie_word_embeddings = bool(config.tie_word_embeddings or text.tie_word_embeddings)
    plan.obstacle = _obstacle(config)
    plan.distribute(folder_headers(folder), locate_llava_hf, explain_buffer)
    compare_llm(plan)
    compare_vision(plan)
    return plan


def _settings(config: Any, folder: Path) -> dict[str, Any]:
    layer = config.vision_feature_layer
    return {
        "mm_vision_select_layer": layer if isinstance(layer, int) else None,
        "mm_vision_select_feature": FEATURES.get(config.vision_feature_select_strategy),
        "image_token_id": config.image_token_index,
        "version": VERSIONS.get(config.text_config.model_type),
        "token_order": "row",
        **(_square(folder) if config.model_type == "llava" else _anyres(config)),
    }


def _square(folder: Path) -> dict[str, Any]:
    return {"image_aspect_ratio": aspect_of(folder)}


def _anyres(config: Any) -> dict[str, Any]:
    video = getattr(config, "video_token_index", None)
    return {
        **({} if video is None else {"video_token_id": video}),
        "image_aspect_ratio": getattr(config, "vision_aspect_ratio", "anyres"),
        "image_grid_pinpoints": [list(pair) for pair in config.image_grid_pinpoints],
        "mm_patch_merge_type": "spatial_unpad",
    }


def aspect_of(folder: Path) -> str | None:
    """How the stored processor makes a picture square; None where there is none."""
    files = [folder / name for name in PROCESSOR_FILES if (folder / name).is_file()]
    stored = [read_json(file).get("image_processor") or read_json(file) for file in files]
    how = next((settings for settings in stored if "image_processor_type" in settings), None)
    if how is None:
        return None
    if how.get("do_pad"):
        return "pad"
    return "crop" if how.get("do_center_crop") else "resize"


def _obstacle(config: Any) -> str | None:
    """What a config may ask for and our parts do not do."""
    wanted: Mapping[str, tuple[Any, bool]] = {
        "vision_feature_layer": (config.vision_feature_layer, isinstance(config.vision_feature_layer, int)),
        "projector_hidden_act": (config.projector_hidden_act, config.projector_hidden_act == "gelu"),
        "multimodal_projector_bias": (config.multimodal_projector_bias, bool(config.multimodal_projector_bias)),
    }
    for key, (value, fits) in wanted.items():
        if not fits:
            return f"{key} is {value!r}, expected one layer, 'gelu' and True; load it with transformers' Llava classes"
    drops = config.vision_feature_select_strategy == "default"
    if drops and config.vision_config.model_type.startswith("siglip"):
        return (
            "vision_feature_select_strategy is 'default' with a SigLIP tower: that drops a patch, as there is no class "
            "token; expected 'full'"
        )
    return None


LAYOUTS.register("llava_hf")(
    Layout(
        recognises=recognises,
        read=read,
        plan=make_plan,
        holds="config.json with text_config and vision_config, and weights beside it (llava-hf)",
    )
)
