"""The table of vision towers; a tower fresh from settings, or read from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor
from transformers.configuration_utils import PreTrainedConfig

from llava.model.checkpoints import ReadOptions
from llava.model.checkpoints.keys import read_part
from llava.model.configuration_llava import CLIP_MEAN, CLIP_STD, HALF, LlavaConfig
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

_OTHER_HALF = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")
"""Weights of a two-sided SigLIP or CLIP folder that a vision tower has no use for."""


def tower_class(model_type: str | None) -> type[VisionTower]:
    try:
        return VISION_TOWERS[model_type or ""]
    except KeyError as error:
        raise ValueError(f"vision_tower_cfg: {error.args[0]}") from None


def build_vision_tower(part: Any, config: LlavaConfig, dtype: Any = None) -> VisionTower:
    """A tower with fresh weights from settings, or read from a str; layer and feature come from the model's config."""
    if isinstance(part, str | Path):
        return read_vision_tower(part, config, ReadOptions(dtype=dtype or "auto"))
    settings = part.to_dict() if isinstance(part, PreTrainedConfig) else dict(part)
    kind = tower_class(settings.pop("model_type", None))
    vision_config = kind.config_class(**settings)
    given = {} if dtype is None else {"dtype": dtype}
    model = kind.model_class._from_config(vision_config, attn_implementation="sdpa", **given)
    return wrap_vision_tower(kind, model, config)


def read_vision_tower(folder: Path | str, config: LlavaConfig, options: ReadOptions) -> VisionTower:
    """A tower from a plain folder (or hub id) of transformers; of a two-sided model the vision half is taken."""
    stored, _ = PreTrainedConfig.get_config_dict(str(folder), cache_dir=options.cache_dir)
    kind = tower_class(stored.get("model_type"))
    model = read_part(
        kind.model_class.from_pretrained,
        folder,
        "vision tower",
        _OTHER_HALF,
        dtype=options.dtype,
        device_map=options.device_map,
        attn_implementation="sdpa",
        cache_dir=options.cache_dir,
    )
    return wrap_vision_tower(kind, model, config, _read_processor(folder, options))


def _read_processor(folder: Path | str, options: ReadOptions) -> Any:
    if Path(folder).is_dir() and not (Path(folder) / "preprocessor_config.json").is_file():
        return None
    return AutoImageProcessor.from_pretrained(str(folder), cache_dir=options.cache_dir)


def wrap_vision_tower(
    kind: type[VisionTower], model: Any, config: LlavaConfig, image_processor: Any = None
) -> VisionTower:
    """A tower around a model whose weights are already there.

    Raises:
        ValueError: for a config that asks for several scales, which these towers do not have.
    """
    for key in ("s2", "dynamic_s2", "ps3"):
        if getattr(config, key, None):
            raise ValueError(f"config.{key} is set, expected a model of one scale: {kind.__name__} has no {key} form")
    family = (CLIP_MEAN, CLIP_STD) if kind is ClipVisionTower else (HALF, HALF)
    mean = config.image_mean or getattr(image_processor, "image_mean", None) or family[0]
    std = config.image_std or getattr(image_processor, "image_std", None) or family[1]
    return kind(
        model,
        select_layer=config.mm_vision_select_layer,
        select_feature=config.mm_vision_select_feature,
        image_mean=mean,
        image_std=std,
        image_processor=image_processor,
    )
