"""The table of vision towers; a tower fresh from settings, or read from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from llava.model.checkpoints import ReadOptions, intern_vit, resolve_folder
from llava.model.checkpoints.assemble import read_image_processor, read_tower_model
from llava.model.checkpoints.keys import read_part
from llava.model.checkpoints.tower_folder import plan_tower
from llava.model.configuration_llava import LlavaConfig
from llava.model.multimodal_encoder.clip_encoder import ClipVisionTower
from llava.model.multimodal_encoder.dinov2_encoder import Dinov2VisionTower, Dinov2WithRegistersVisionTower
from llava.model.multimodal_encoder.families import family_of, resolution_of, scales_of
from llava.model.multimodal_encoder.internvit_encoder import InternVisionTower
from llava.model.multimodal_encoder.radio_encoder import RadioVisionTower
from llava.model.multimodal_encoder.resolution import fit_processor, with_resolution
from llava.model.multimodal_encoder.siglip_encoder import SiglipVisionTower
from llava.model.multimodal_encoder.siglip_stem import SiglipStemVisionTower
from llava.model.multimodal_encoder.vision_encoder import VisionTower
from llava.utils.registry import Registry

VISION_TOWERS: Registry[type[VisionTower]] = Registry("vision tower")
"""`model_type` of a vision config -> tower class."""

VISION_TOWERS.register("siglip_vision_model", "siglip")(SiglipVisionTower)
VISION_TOWERS.register("clip_vision_model", "clip")(ClipVisionTower)
VISION_TOWERS.register("siglip_stem")(SiglipStemVisionTower)
VISION_TOWERS.register("dinov2")(Dinov2VisionTower)
VISION_TOWERS.register("dinov2_with_registers")(Dinov2WithRegistersVisionTower)
VISION_TOWERS.register("internvl_vision", intern_vit.MODEL_TYPE)(InternVisionTower)
VISION_TOWERS.register("radio")(RadioVisionTower)

_NAFLEX = (
    "the SigLIP2 of variable picture sizes (naflex), which is not supported; SigLIP2 of a fixed size, such as "
    "google/siglip2-so400m-patch14-384, has the model_type 'siglip' and is"
)
_SAVE_TOWER = "InternVLForConditionalGeneration.from_pretrained(...).model.vision_tower.save_pretrained(folder)"
REFUSED = {
    "siglip2": _NAFLEX,
    "siglip2_vision_model": _NAFLEX,
    "internvl": f"a whole InternVL; take its tower: {_SAVE_TOWER}",
}
"""model_type -> why it is no tower of ours, and what to do."""

_OTHER_HALF = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")
"""Weights of a two-sided SigLIP or CLIP folder that a vision tower has no use for."""


def tower_class(model_type: str | None) -> type[VisionTower]:
    if model_type in REFUSED:
        raise ValueError(f"vision_tower_cfg: model_type '{model_type}' is {REFUSED[model_type]}")
    try:
        return VISION_TOWERS[model_type or ""]
    except KeyError as error:
        raise ValueError(f"vision_tower_cfg: {error.args[0]}") from None


def build_vision_tower(part: Any, config: LlavaConfig, dtype: Any = None) -> VisionTower:
    """A tower with fresh weights from settings, or read from a str; layer and feature come from the model's config."""
    if isinstance(part, str | Path):
        return read_vision_tower(part, config, ReadOptions(dtype=dtype or "auto"))
    settings = part.to_dict() if isinstance(part, PreTrainedConfig) else dict(part)
    model_type = settings.pop("model_type", None)
    kind = tower_class(model_type)
    if model_type == intern_vit.MODEL_TYPE:
        settings = intern_vit.settings_of(settings, "vision_tower_cfg")
    vision_config = kind.config_class(**settings)
    given = {} if dtype is None else {"dtype": dtype}
    model = kind.model_class._from_config(vision_config, attn_implementation="sdpa", **given)
    return wrap_vision_tower(kind, model, config)


def read_vision_tower(folder: Path | str, config: LlavaConfig, options: ReadOptions) -> VisionTower:
    """A tower from a plain folder (or hub id); of a two-sided model the vision half is taken."""
    stored, _ = PreTrainedConfig.get_config_dict(str(folder), cache_dir=options.cache_dir)
    kind = tower_class(stored.get("model_type"))
    if stored["model_type"] == intern_vit.MODEL_TYPE:
        plan = plan_tower(resolve_folder(folder, options.cache_dir), config.mm_vision_select_layer)
        plan.require_readable()
        model = read_tower_model(plan, options)
    else:
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
    return wrap_vision_tower(kind, model, config, read_image_processor(folder, options))


def read_tower_config(source: Path | str, **how: Any) -> PreTrainedConfig:
    """Settings of the tower of a folder or hub id, for transformers' class; how: cache_dir, local_files_only."""
    stored, _ = PreTrainedConfig.get_config_dict(str(source), **how)
    kind = tower_class(stored.get("model_type"))
    if stored["model_type"] == intern_vit.MODEL_TYPE:
        return kind.config_class(**intern_vit.settings_of(stored, f"{source}/config.json"))
    return kind.config_class.from_pretrained(str(source), **how)


def wrap_vision_tower(
    kind: type[VisionTower], model: Any, config: LlavaConfig, image_processor: Any = None
) -> VisionTower:
    """A tower around a model whose weights are already there, for the resolution and the scales of the config.

    Raises:
        ValueError: for a config that asks for a form that these towers do not have.
    """
    if getattr(config, "ps3", None):
        raise ValueError(f"config.ps3 is set, but {kind.__name__} has no ps3 form; expected s2, dynamic_s2 or neither")
    takes_tiles = bool(config.dynamic_s2)
    if takes_tiles and config.s2:
        raise ValueError("config.s2 and config.dynamic_s2 are both set, expected one of them; leave the other out")
    if config.s2 and config.s2_resize_output_to_scale_idx:
        raise ValueError(
            f"s2_resize_output_to_scale_idx is {config.s2_resize_output_to_scale_idx}, expected 0 with s2: features "
            "are averaged down to the smallest scale; leave it out, or use dynamic_s2"
        )
    side = resolution_of(config, model.config.image_size)
    resized = with_resolution(kind, model, side, config.interpolate_mode)
    scales = scales_of(config, side)
    if image_processor is not None and (scales or resized is not model):
        fit_processor(image_processor, scales[-1] if scales and not takes_tiles else side)
    family = family_of(model.config.model_type)
    normalises = getattr(image_processor, "do_normalize", True)  # else the tower does that itself
    mean = config.image_mean or (normalises and getattr(image_processor, "image_mean", None)) or family.image_mean
    std = config.image_std or (normalises and getattr(image_processor, "image_std", None)) or family.image_std
    return kind(
        resized,
        select_layer=config.mm_vision_select_layer,
        select_feature=config.mm_vision_select_feature,
        image_mean=mean,
        image_std=std,
        scales=scales,
        takes_tiles=takes_tiles,
        image_processor=image_processor,
    )
