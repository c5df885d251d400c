"""The table of vision towers."""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from llava.model.configuration_llava import CLIP_MEAN, CLIP_STD, LlavaConfig
from llava.model.multimodal_encoder.clip_encoder import ClipVisionTower
from llava.model.multimodal_encoder.siglip_encoder import SiglipVisionTower
from llava.model.multimodal_encoder.siglip_stem import SiglipStemVisionTower
from llava.model.multimodal_encoder.vision_encoder import VisionTower
from llava.utils.registry import Registry

VISION_TOWERS: Registry[type[VisionTower]] = Registry("vision tower")
"""`model_type` of a vision config -> tower class."""

VISION_TOWERS.register("siglip_vision_model", "siglip")(SiglipVisionTower)
VISION_TOWERS.register("clip_vision_model", "clip")(ClipVisionTower)
VISION_TOWERS.register("siglip_stem")(SiglipStemVisionTower)


def tower_class(model_type: str | None) -> type[VisionTower]:
    try:
        return VISION_TOWERS[model_type or ""]
    except KeyError as error:
        raise ValueError(f"vision_tower_cfg: {error.args[0]}") from None


def build_vision_tower(part: Any, config: LlavaConfig) -> VisionTower:
    """A tower with fresh weights from settings; layer, feature and pixel statistics come from the model's config."""
    settings = part.to_dict() if isinstance(part, PreTrainedConfig) else dict(part)
    kind = tower_class(settings.pop("model_type", None))
    vision_config = kind.config_class(**settings)
    model = kind.model_class._from_config(vision_config, attn_implementation="sdpa")
    return wrap_vision_tower(kind, model, config)


def wrap_vision_tower(
    kind: type[VisionTower], model: Any, config: LlavaConfig, image_processor: Any = None
) -> VisionTower:
    """A tower around a model whose weights are already there."""
    clip = kind is ClipVisionTower
    mean = config.image_mean or getattr(image_processor, "image_mean", None) or (CLIP_MEAN if clip else (0.5,) * 3)
    std = config.image_std or getattr(image_processor, "image_std", None) or (CLIP_STD if clip else (0.5,) * 3)
    return kind(
        model,
        select_layer=config.mm_vision_select_layer,
        select_feature=config.mm_vision_select_feature,
        image_mean=mean,
        image_std=std,
        image_processor=image_processor,
    )
