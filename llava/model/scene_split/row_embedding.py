"""A planned row as embeddings: words from the table, visual tokens in their slots, all through pre-fusion layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llava.model.media_embedding import write_features
from llava.model.multimodal_projector.prefusion import BACKGROUND, OBJECT, TEXT, FusionPlan
from llava.model.scene_split.parts import SplitParts
from llava.model.scene_split.prefix import Suffix, pad_suffixes
from llava.model.scene_split.row_plan import Frame, RowPlan


def embed_suffixes(parts: SplitParts, plans: Sequence[RowPlan], multiple: int) -> Suffix:
    """What follows the known prefixes of a batch, padded to a multiple of so many tokens."""
    device = parts.model.get_input_embeddings().weight.device
    positions = [plan.layout.position_ids[plan.num_known :].to(device) for plan in plans]
    return pad_suffixes([_embedded(parts, plan, device) for plan in plans], positions, multiple)


def _embedded(parts: SplitParts, plan: RowPlan, device: torch.device) -> Float[Tensor, "m d"]:
    """Pre-fusion layers read the whole row: the question meets the tokens of the known pictures there."""
    prefusion = parts.split.prefusion if plan.frames else None
    start = plan.num_known if prefusion is None else 0
    ids = plan.layout.input_ids[start:].to(device)[None]
    is_image = ids == parts.rule.image_token_id
    table = parts.model.get_input_embeddings()
    embeds = table(ids.masked_fill(is_image, 0))
    tokens = [each.to(embeds) for frame in plan.frames for each in _tokens_of(frame)]
    if tokens:
        embeds = write_features(embeds, is_image, torch.cat(tokens)[None])
    if prefusion is None:
        return embeds[0]
    dtype = next(prefusion.parameters()).dtype
    fused = prefusion(embeds.to(dtype), fusion_plan(parts, plan, ids)).to(embeds.dtype)
    return fused[0, plan.num_known :]


def _tokens_of(frame: Frame) -> list[Tensor]:
    """Visual tokens of a frame that have to be written, in reading order."""
    found = (frame.background_tokens, frame.object_tokens)
    return [tokens for tokens in found if tokens is not None]


def fusion_plan(parts: SplitParts, plan: RowPlan, ids: Int[Tensor, "1 s"]) -> FusionPlan:
    """What each token of a row is to the pre-fusion layers."""
    kinds, scenes, frames = torch.full_like(ids, TEXT), torch.zeros_like(ids), torch.zeros_like(ids)
    blocks = iter(block for block in plan.layout.blocks if block.kind != "text")
    is_image = ids[0] == parts.rule.image_token_id
    scene, number = -1, 0
    for frame in plan.frames:
        starts_scene = frame.background_places is not None
        scene, number = (scene + 1, 0) if starts_scene else (scene, number + 1)
        for block in [next(blocks) for _ in range(1 + starts_scene)]:
            slots = slice(block.start, block.stop)
            kinds[0, slots][is_image[slots]] = BACKGROUND if block.kind == "background" else OBJECT
            scenes[0, slots], frames[0, slots] = scene, number
    positions = plan.layout.position_ids.to(ids.device)[None]
    return FusionPlan(kinds=kinds, scene_ids=scenes, frame_ids=frames, position_ids=positions)
