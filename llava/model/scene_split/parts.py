"""What cached generation reads of a model: its split, the rule of layouts, and which token stands for which cell."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llava.model.multimodal_encoder.patch_groups import PatchGroup
from llava.model.scene_split.cells import cell_mask
from llava.model.scene_split.config import SceneSplitConfig
from llava.model.scene_split.layout import LayoutRule
from llava.model.scene_split.module import SceneSplitModule
from llava.scene.cache.keys import digest_fields
from llava.scene.cache.request import CacheScope
from llava.scene.patch_mask import PatchRule
from llava.scene.split import places_of_cells

LENGTH_DEPENDENT_ROPES = ("dynamic", "longrope")
"""Rotary embeddings whose frequencies change with the length of the sequence."""


@dataclass(frozen=True, eq=False)
class SplitParts:
    """A model whose pictures are split. Cells are squares of patches that become one token, row by row.

    Attributes:
        model: a `LlavaMetaForCausalLM`.
        split: the model's own, or one that shares all parts where the caller insisted.
    """

    model: Any
    split: SceneSplitModule

    @classmethod
    def of(cls, model: Any, *, force: bool) -> SplitParts:
        """
        Raises:
            ValueError: the model was trained without the split, and nobody insisted.
        """
        if model.scene_split is not None:
            return cls(model, model.scene_split)
        if not force:
            raise ValueError(
                "the model was trained without scene_split: background and objects have always seen each other, so "
                "that its answers to split pictures are worse than to whole ones; train it with scene_split, leave "
                "background_cache and objects out, or give force_scene_split=True to find out how much worse"
            )
        shared = SceneSplitConfig(separators=False)
        return cls(model, SceneSplitModule(shared, model.vision_tower, model.mm_projector, model.llm.config))

    @cached_property
    def rule(self) -> LayoutRule:
        model = self.model
        return self.split.layout_rule(model.tokens_per_image, model.image_token_id, model.tokenizer)

    @property
    def patch_rule(self) -> PatchRule:
        return self.split.config.patch_rule(self.patch_size, self.cell)

    @property
    def patch_size(self) -> int:
        return self.model.vision_tower.config.patch_size

    @property
    def cell(self) -> int:
        return self.model.mm_projector.downsample_rate

    @property
    def grid_side(self) -> int:
        return self.model.vision_tower.grid_side

    @property
    def coarse_side(self) -> int:
        """Cells on each side of a picture."""
        return -(-self.grid_side // self.cell)

    @property
    def num_class_tokens(self) -> int:
        """Class tokens that come with every group that is not empty, at the places before those of the patches."""
        tower = self.model.vision_tower
        return tower.num_prefix_tokens if tower.select_feature == "cls_patch" else 0

    @cached_property
    def token_of_cell(self) -> Int[Tensor, "cells"]:
        """Index of the token that the projector makes of each cell, among the tokens without class tokens."""
        order = self.model.mm_projector.config.token_order or "row"
        first_patch = places_of_cells(self.grid_side, self.cell, order)[:, 0]  # [tokens]
        row, column = first_patch // self.grid_side // self.cell, first_patch % self.grid_side // self.cell
        return (row * self.coarse_side + column).argsort()

    @cached_property
    def cell_of_patch(self) -> Int[Tensor, "p"]:
        """Index of the cell that each patch of the tower's grid lies in."""
        patches = torch.arange(self.grid_side**2)
        row, column = patches // self.grid_side, patches % self.grid_side
        return (row // self.cell) * self.coarse_side + column // self.cell

    def places(self, cells: Int[Tensor, "n"]) -> Int[Tensor, "m"]:
        """Ascending places of the tokens of some cells of a picture, as the projector's `PatchGroup` has them."""
        if not len(cells):
            return cells
        patches = self.token_of_cell[cells].sort().values + self.num_class_tokens
        return torch.cat([torch.arange(self.num_class_tokens), patches])

    def patches(self, cells: Int[Tensor, "n"]) -> Bool[Tensor, "1 p"]:
        """The patches of some cells, as a mask."""
        coarse = self.coarse_side
        chosen = torch.zeros(coarse * coarse, dtype=torch.bool)
        chosen[cells] = True
        fine = chosen.view(coarse, coarse).repeat_interleave(self.cell, 0).repeat_interleave(self.cell, 1)
        return fine[: self.grid_side, : self.grid_side].reshape(1, -1)

    def cell_mask(self, patches: Bool[Tensor, "p"]) -> Bool[Tensor, "cells"]:
        """The mask of the cells, row by row.

        Raises:
            ValueError: the mask is of another grid, or cuts through a cell.
        """
        return cell_mask(patches[None], self.grid_side, self.cell)[0]

    @property
    def dtype(self) -> torch.dtype:
        """Of visual tokens."""
        weight = next(self.model.mm_projector.parameters(), None)
        return self.model.vision_tower.dtype if weight is None else weight.dtype

    @property
    def keeps_kv(self) -> bool:
        """False where keys of a prefix also depend on how long the sequence becomes, and where layers lie apart.

        The first serve no other prompt, and a cache keeps its values on one device.
        """
        if len(set((getattr(self.model.llm, "hf_device_map", None) or {}).values())) > 1:
            return False
        rope = getattr(self.model.llm.config, "rope_parameters", None) or {}
        kinds = [rope, *(each for each in rope.values() if isinstance(each, dict))]  # some families have one per layer
        return not any(each.get("rope_type") in LENGTH_DEPENDENT_ROPES for each in kinds)

    def encode_background(self, pixels: Tensor, cells: Int[Tensor, "n"]) -> Float[Tensor, "m d"]:
        """Tokens of the background of one picture [3, H, W], in the order of their places."""
        model = self.model
        is_object = ~self.patches(cells)
        found = self.split.encode_background(model.vision_tower, model.mm_projector, pixels[None], is_object)
        return found.features.to(self.dtype)

    def encode_objects(self, pixels: Tensor, is_object: Bool[Tensor, "n p"]) -> list[PatchGroup]:
        """Tokens of the objects of some pictures [n, 3, H, W], in one pass."""
        model = self.model
        return self.split.encode_objects(model.vision_tower, model.mm_projector, pixels, is_object).of_pictures()

    def scope(self, model_state: Any, cache_salt: str) -> CacheScope:
        """Everything but pictures and words that tokens, keys and values depend on."""
        model, rule = self.model, self.rule
        spec = model.visual_spec
        facts = (spec.image_mean, spec.image_std, model.vision_tower.image_size, self.split.config.to_dict())
        facts += (rule.separators, rule.num_places, model.mm_projector.config.token_order)
        device = model.get_input_embeddings().weight.device.type
        cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        how = f"{device},{cast},{torch.get_float32_matmul_precision()}"
        return CacheScope(
            model_state=model_state,
            preprocessing=digest_fields(repr(facts).encode()),
            dtype=self.dtype,
            adapters=how,
            cache_salt=cache_salt,
        )
