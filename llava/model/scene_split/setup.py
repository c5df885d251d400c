"""The split is added to a model that was read or built: modules beside its parts, tokens around the groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from llava.model.scene_split.config import SceneSplitConfig
from llava.model.scene_split.module import SceneSplitModule
from llava.model.scene_split.separators import add_separators

if TYPE_CHECKING:
    from llava.model.meta_model import LlavaMetaModel


def add_scene_split(model: LlavaMetaModel, config: SceneSplitConfig | Mapping[str, Any] | None) -> SceneSplitModule:
    """See `LlavaMetaModel.initialize_scene_split`."""
    if config is None and model.config.scene_split is None:
        raise ValueError(
            "no settings of the background/object split were given and config.scene_split is None; give a dict of "
            "keys, {} for all defaults"
        )
    wanted = SceneSplitConfig.read(model.config.scene_split if config is None else config)
    present = model.scene_split
    if present is not None:
        if present.config != wanted:
            raise ValueError(f"the split is there with {present.config}, found {wanted}; build the model again")
        return present
    _check_splittable(model, wanted)
    with torch.random.fork_rng(devices=[]):  # what is drawn later in the run stays as without it
        module = SceneSplitModule(wanted, model.vision_tower, model.mm_projector, model.llm.config)
        if wanted.separators:
            add_separators(model.tokenizer, model.llm)
    if wanted.separators:
        model.config.llm_cfg = {**model.config.llm_cfg, "vocab_size": model.llm.config.vocab_size}
    if module.object_projector is not None:
        model.mm_projector.requires_grad_(False)  # nothing reaches it any more
    model.scene_split = module
    model.config.scene_split = wanted.to_dict()
    return module


def _check_splittable(model: LlavaMetaModel, wanted: SceneSplitConfig) -> None:
    if model.config.aspect_mode() in ("anyres", "dynamic_s2"):
        raise ValueError(
            f"scene_split is set and image_aspect_ratio is {model.config.image_aspect_ratio!r}, whose pictures are "
            "merged from overlapping views; expected 'resize', 'pad', 'crop' or 'dynamic'"
        )
    tower = model.vision_tower
    if tower.select_feature == "cls_patch" and tower.num_prefix_tokens:
        raise ValueError(
            "scene_split is set and mm_vision_select_feature is 'cls_patch': each group has a class token of its own, "
            "and a picture would take a token more than it has places; expected 'patch'"
        )
    if model.autoregressive_reconstruction is not None:
        raise ValueError(
            "scene_split and the next-frame loss are both asked for: the loss reads the slots of a frame in the order "
            "of its grid, which the split changes; train them one after the other"
        )
    if wanted.separators and model.tokenizer is None:
        raise ValueError(
            "scene_split adds four tokens and the model has no tokenizer; attach one with "
            "llava.model.builder.attach_tokenizer, or set separators to False"
        )
