"""Background and objects of a picture through the vision tower apart: neither ever sees the other.

    pixels -> patches at their true positions -> rows of each group gathered -> layers, each group by itself

Rows are gathered, never masked at full size: the cost of a group is that of its own patches. A class token goes with
every group as its own copy, so that of the background sees the background only; a group without patches has none.

How groups share a pass (`batching`) changes time and rounding, nothing else:

- "bit_stable": every background is a pass of its own, shaped by its own number of patches alone; objects are packed.
  Its features are the same bits whatever the objects, the other pictures of the batch and the padding are.
- "packed": all groups end to end, attention in blocks; one pass per tower, also for a batch without objects.
- "padded": a row per group, padded to the longest, with a mask.

Matrix products of other heights may round differently, so the last two promise closeness instead of bits.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from llava.model.multimodal_encoder.clip_encoder import ClipVisionTower
from llava.model.multimodal_encoder.group_attention import GROUPED_ATTENTION, GroupLayout
from llava.model.multimodal_encoder.patch_groups import PatchGroup, join_groups
from llava.model.multimodal_encoder.siglip_encoder import SiglipVisionTower
from llava.model.multimodal_encoder.vision_encoder import VisionTower
from llava.model.scene_split.cells import check_snapped
from llava.model.utils import is_partitioned, is_trainable
from llava.utils.registry import suggest

BATCHINGS = ("bit_stable", "packed", "padded")
Pictures = UInt8[Tensor, "n 3 h w"] | Float[Tensor, "n 3 h w"]


@dataclass(frozen=True, kw_only=True)
class SplitFeatures:
    """What leaves the towers, or behind them the projectors; both groups count the same pictures."""

    background: PatchGroup
    objects: PatchGroup


def copy_tower(tower: VisionTower) -> VisionTower:
    """A tower of its own with the same weights, for objects encoded by separate weights."""
    return copy.deepcopy(tower)


class SplitEncoder:
    """Encodes groups of patches with one tower, or a tower for each group. It owns no weights.

    Args:
        background_tower: the model's vision tower.
        object_tower: None = the same.
        cell_side: side in patches of what the projector merges; masks must not cut through such a cell.

    Raises:
        ValueError: for towers that cannot encode groups apart, or that do not fit each other.
    """

    def __init__(
        self, background_tower: VisionTower, object_tower: VisionTower | None = None, *, cell_side: int = 1
    ) -> None:
        self.background_tower = background_tower
        self.object_tower = background_tower if object_tower is None else object_tower
        self.cell_side = cell_side
        for tower in (self.background_tower, self.object_tower):
            _check_tower(tower, cell_side)
            if tower.config._attn_implementation == "sdpa":
                tower.vision_tower.set_attn_implementation(GROUPED_ATTENTION)
        _check_fit(self.background_tower, self.object_tower)

    @property
    def is_shared(self) -> bool:
        return self.object_tower is self.background_tower

    def __call__(
        self, pixels: Pictures, is_object: Bool[Tensor, "masks p"], *, batching: str = "bit_stable"
    ) -> SplitFeatures:
        """Features of both groups.

        Args:
            pixels: as for the tower.
            is_object: True = the patch belongs to an object; row by row over the grid.

        Raises:
            ValueError: for masks that do not fit the pictures or cut through a cell.
        """
        mask = self._check(pixels, is_object, batching)
        if batching == "packed" and self.is_shared:
            return self._encode_together(pixels, mask)
        background = self._encode(self.background_tower, pixels, ~mask, batching)
        rest = "packed" if batching == "bit_stable" else batching
        return SplitFeatures(background=background, objects=self._encode(self.object_tower, pixels, mask, rest))

    def encode_background(
        self, pixels: Pictures, is_object: Bool[Tensor, "masks p"], *, batching: str = "bit_stable"
    ) -> PatchGroup:
        """The backgrounds only, the same bits as in a whole call."""
        mask = self._check(pixels, is_object, batching)
        return self._encode(self.background_tower, pixels, ~mask, batching)

    def encode_objects(
        self, pixels: Pictures, is_object: Bool[Tensor, "masks p"], *, batching: str = "bit_stable"
    ) -> PatchGroup:
        """The objects only: all that a picture costs whose background is known."""
        mask = self._check(pixels, is_object, batching)
        return self._encode(self.object_tower, pixels, mask, "packed" if batching == "bit_stable" else batching)

    def _check(self, pixels: Tensor, is_object: Tensor, batching: str) -> Bool[Tensor, "n p"]:
        """The mask in host memory, where its counts are read."""
        if batching not in BATCHINGS:
            raise ValueError(
                f"batching is {batching!r}, expected one of {BATCHINGS}{suggest(batching, list(BATCHINGS))}"
            )
        if is_object.dtype != torch.bool or is_object.ndim != 2 or len(is_object) != len(pixels):
            raise ValueError(
                f"the object mask is {is_object.dtype} {list(is_object.shape)}, expected torch.bool "
                f"[{len(pixels)}, {self.background_tower.grid_side**2}]: one row per picture, True = object"
            )
        side = self.background_tower.image_size
        if tuple(pixels.shape[-2:]) != (side, side):
            size = f"{pixels.shape[-2]}x{pixels.shape[-1]}"
            raise ValueError(f"pictures are {size}, the tower reads {side}x{side}; use process_images")
        mask = is_object.cpu()
        check_snapped(mask, self.background_tower.grid_side, self.cell_side)
        return mask

    def _encode(self, tower: VisionTower, pixels: Tensor, chosen: Tensor, batching: str) -> PatchGroup:
        if batching == "bit_stable":
            pictures = zip(pixels.split(1), chosen.split(1), strict=True)
            alone = [self._encode(tower, picture, mask, "packed") for picture, mask in pictures]
            return join_groups(alone) if alone else _empty_group(tower)
        embedded = tower.embed(tower.normalise(pixels if len(pixels) else _blank(tower)))
        groups = _gather(tower, embedded, chosen) if len(pixels) else []
        run = _run_padded if batching == "padded" else _run_packed
        return _finish(tower, groups, run(tower, groups, embedded))

    def _encode_together(self, pixels: Tensor, mask: Tensor) -> SplitFeatures:
        """One pass over the groups of all pictures."""
        tower = self.background_tower
        embedded = tower.embed(tower.normalise(pixels if len(pixels) else _blank(tower)))
        back, front = _gather(tower, embedded, ~mask), _gather(tower, embedded, mask)
        hidden = _run_packed(tower, back + front, embedded)
        return SplitFeatures(
            background=_finish(tower, back, hidden[: len(back)]), objects=_finish(tower, front, hidden[len(back) :])
        )


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Embedded rows of one group of one picture, class token first; places count the rows of the whole picture."""

    rows: Tensor  # [k, D]
    places: Tensor  # [k]


def _gather(tower: VisionTower, embedded: Float[Tensor, "n q d"], chosen: Bool[Tensor, "n p"]) -> list[_Rows]:
    """The chosen patches of every picture, with a copy of what stands before the patches."""
    prefix, groups = tower.num_prefix_tokens, []
    for picture, mask in zip(embedded[: len(chosen)], chosen, strict=True):
        patches = mask.nonzero()[:, 0] + prefix  # ascending
        before = torch.arange(prefix if len(patches) else 0)
        places = torch.cat([before, patches]).to(embedded.device)
        groups.append(_Rows(rows=picture[places], places=places))
    return groups


def _blank(tower: VisionTower) -> UInt8[Tensor, "1 3 h w"]:
    """Without pictures one is embedded all the same: ZeRO-3 counts how often a module runs on every rank."""
    return torch.zeros(1, 3, tower.image_size, tower.image_size, dtype=torch.uint8)


def _run_packed(tower: VisionTower, groups: Sequence[_Rows], embedded: Float[Tensor, "n q d"]) -> list[Tensor]:
    """One pass over all groups end to end; hidden states of each.

    Where no group has a row, training still runs the first and the last of the embedded rows: other ranks wait for the
    gradients, or for the weights.
    """
    filled = [group.rows for group in groups if len(group.rows)]
    empty = torch.zeros(0, tower.config.hidden_size, dtype=tower.dtype, device=tower.device)
    if not filled:
        if not (is_partitioned(tower.parameters()) or (tower.training and is_trainable(tower))):
            return [empty for _ in groups]
        empty = empty + 0.0 * _run_layers(tower, embedded[:1, [0, -1]], None).sum()
        return [empty for _ in groups]
    layout = None if len(filled) == 1 else GroupLayout.of([len(rows) for rows in filled], tower.device)
    hidden = _run_layers(tower, torch.cat(filled)[None], layout)[0]
    return list(hidden.split([len(group.rows) for group in groups]))


def _run_padded(tower: VisionTower, groups: Sequence[_Rows], embedded: Float[Tensor, "n q d"]) -> list[Tensor]:
    """One row per group with patches, so that no row of the mask is empty."""
    filled = [group.rows for group in groups if len(group.rows)]
    if not filled:
        return _run_packed(tower, groups, embedded)
    hidden = nn.utils.rnn.pad_sequence(filled, batch_first=True)  # [n, longest, D]
    length = torch.tensor([len(rows) for rows in filled], device=hidden.device)
    is_valid = torch.arange(hidden.shape[1], device=hidden.device)[None] < length[:, None]
    may_attend = is_valid[:, None, None].expand(-1, 1, hidden.shape[1], -1)  # [n, 1, query, key]
    outputs = iter(_run_layers(tower, hidden, may_attend))
    return [next(outputs)[: len(group.rows)] if len(group.rows) else group.rows for group in groups]


def _run_layers(tower: VisionTower, hidden: Float[Tensor, "n p d"], mask: Any) -> Float[Tensor, "n p d"]:
    if mask is not None and tower.config._attn_implementation != GROUPED_ATTENTION:
        raise ValueError(
            f"the vision tower's attn_implementation is '{tower.config._attn_implementation}', which cannot keep "
            "groups of one pass apart; build it with 'sdpa', or encode one picture at a time"
        )
    for layer in tower.encoder_layers[: tower.num_layers_run]:
        hidden = layer(hidden, mask)
    return hidden


def _finish(tower: VisionTower, groups: Sequence[_Rows], hidden: Sequence[Tensor]) -> PatchGroup:
    """The selected feature: "patch" drops the class token, and places then count patches."""
    drop = 0 if tower.select_feature == "cls_patch" else tower.num_prefix_tokens
    if not groups:
        return _empty_group(tower)
    return PatchGroup(
        features=torch.cat([states[drop:] for states in hidden]),
        places=torch.cat([group.places[drop:] - drop for group in groups]),
        counts=tuple(max(len(group.places) - drop, 0) for group in groups),
    )


def _empty_group(tower: VisionTower) -> PatchGroup:
    features = torch.zeros(0, tower.config.hidden_size, dtype=tower.dtype, device=tower.device)
    return PatchGroup(features=features, places=torch.zeros(0, dtype=torch.long, device=tower.device), counts=())


def _check_tower(tower: VisionTower, cell_side: int) -> None:
    name = type(tower).__name__
    if not isinstance(tower, ClipVisionTower | SiglipVisionTower):
        raise ValueError(
            f"{name} cannot encode groups of patches apart, expected a CLIP or SigLIP tower; leave scene_split out"
        )
    if tower.scales or tower.takes_tiles:
        raise ValueError(
            f"{name} reads pictures in several scales or tiles ({tower.scales}), whose patches overlap: expected one "
            "scale; leave scene_split, or s2 and dynamic_s2, out"
        )
    if cell_side > 1 and tower.select_feature == "cls_patch" and tower.num_prefix_tokens:
        raise ValueError(
            f"mm_vision_select_feature is 'cls_patch' and the projector merges {cell_side}x{cell_side} patches, "
            "expected 'patch': a class token has no place in a grid"
        )


def _check_fit(background: VisionTower, objects: VisionTower) -> None:
    facts = ("grid_side", "hidden_size", "num_prefix_tokens", "select_feature", "image_size")
    for fact in facts:
        found, expected = getattr(objects, fact), getattr(background, fact)
        if found != expected:
            raise ValueError(
                f"the object tower has {fact} {found!r}, the background tower {expected!r}, expected the same; "
                "make it with copy_tower(background_tower)"
            )
