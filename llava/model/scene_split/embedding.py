"""Rows with pictures become embeddings of background, objects and text: what `forward` and `generate` share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llava.model.media_embedding import TokenRows, as_batch
from llava.model.multimodal_encoder.patch_groups import PatchGroup, in_reading_order
from llava.model.multimodal_encoder.split_encoder import SplitFeatures
from llava.model.scene_split.layout import LayoutRule
from llava.model.scene_split.rows import SplitRows, find_pictures, lay_out_rows, layouts_of

if TYPE_CHECKING:
    from llava.model.llava_arch import LlavaMetaForCausalLM


def layout_rule_of(model: LlavaMetaForCausalLM) -> LayoutRule:
    """How the pictures of a model with the split are laid out.

    Raises:
        ValueError: its tokenizer does not know the separators.
    """
    assert model.scene_split is not None
    return model.scene_split.layout_rule(model.tokens_per_image, model.image_token_id, model.tokenizer)


def embed_rows(
    model: LlavaMetaForCausalLM, rows: TokenRows, images: Any, object_patches: Tensor | None
) -> tuple[Float[Tensor, "b s d"], TokenRows]:
    """Embeddings, and the rows with separators in place and true positions.

    A training pass runs every trained part, whatever the batch holds, so that no rank waits for another.

    Args:
        rows: every picture has all its slots.
        object_patches: [N, patches], True = object; None = no objects were found, all is background.

    Raises:
        ValueError: masks that do not fit the pictures, or a row that pre-fusion layers cannot read.
    """
    split, rule = model.scene_split, layout_rule_of(model)
    assert split is not None
    if rows.attention_mask is not None and rows.attention_mask.shape != rows.input_ids.shape:
        return _behind_cache(model, rows)
    if split.prefusion is not None:
        _require_no_asides(rows)
    is_clip = split.config.background_per == "clip"
    pictures = find_pictures(rows, rule, is_clip=is_clip)
    if not pictures:
        laid_out = lay_out_rows(rows, rule, [], [])
        return _embeddings(model, laid_out, None), laid_out.rows
    pixels = as_batch(images)
    features = _encode(model, pixels, _masks_of(model, pixels, object_patches), [p.frame == 0 for p in pictures])
    features = _shown(features, split.groups)
    laid_out = lay_out_rows(rows, rule, pictures, layouts_of(rule, pictures, features))
    has_background = [picture.frame == 0 for picture in pictures] if is_clip else None
    tokens = in_reading_order(features.background, features.objects, has_background)
    return _embeddings(model, laid_out, tokens), laid_out.rows


def _behind_cache(model: LlavaMetaForCausalLM, rows: TokenRows) -> tuple[Float[Tensor, "b s d"], TokenRows]:
    """Further tokens of an answer: pre-fusion layers never see those."""
    if bool((rows.input_ids == model.image_token_id).any()):
        raise ValueError(
            "pictures are given behind a cache of keys and values; a model with scene_split continues a cache with "
            "scene_split.run_suffix, or reads the whole sequence at once"
        )
    return model.llm.get_input_embeddings()(rows.input_ids), rows


def _encode(model: LlavaMetaForCausalLM, pixels: Tensor, is_object: Tensor, is_first: list[bool]) -> SplitFeatures:
    split = model.scene_split
    assert split is not None
    batching = "packed" if model.training else "bit_stable"
    parts = model.vision_tower, model.mm_projector
    if split.config.background_per == "clip":
        return split.encode_clips(*parts, pixels, is_object, torch.tensor(is_first), batching=batching)
    return split.encode(*parts, pixels, is_object, batching=batching)


def _shown(features: SplitFeatures, groups: str) -> SplitFeatures:
    """Without the tokens of the other group, in a stage that trains the path of one."""
    background, objects = features.background, features.objects
    if groups == "background":
        return SplitFeatures(background=background, objects=_emptied(objects))
    if groups == "objects":
        return SplitFeatures(background=_emptied(background), objects=objects)
    return features


def _emptied(group: PatchGroup) -> PatchGroup:
    """No rows; what was computed stays in the graph, as other ranks wait for its gradients."""
    rows = group.features[:0] + 0.0 * group.features.sum()
    return PatchGroup(features=rows, places=group.places[:0], counts=(0,) * len(group.counts))


def _masks_of(model: LlavaMetaForCausalLM, pixels: Tensor, object_patches: Tensor | None) -> Bool[Tensor, "n p"]:
    """On the host, where the groups are counted."""
    num_patches = model.vision_tower.grid_side**2
    if object_patches is None:
        return torch.zeros(len(pixels), num_patches, dtype=torch.bool)
    masks = object_patches.cpu()
    if masks.shape != (len(pixels), num_patches):
        raise ValueError(
            f"object_patches are {list(masks.shape)}, expected [{len(pixels)}, {num_patches}]: a row per picture in "
            "reading order, a column per patch of the tower's grid; make them with scene.patch_mask.patch_masks"
        )
    return masks


def _embeddings(
    model: LlavaMetaForCausalLM, laid_out: SplitRows, tokens: Float[Tensor, "_ total d"] | None
) -> Float[Tensor, "b s d"]:
    """Text and separators from the table, visual tokens in their columns, all of them through pre-fusion."""
    split = model.scene_split
    assert split is not None
    must_run = tokens is None and model.must_touch_vision()
    # the tower before the table, as on ranks with pictures: ZeRO-3 gathers the weights of both in the order of use
    blank = 0.0 * _blank(model, laid_out.rows.input_ids.device) if must_run else None
    table = model.llm.get_input_embeddings()
    embeds = table(laid_out.rows.input_ids.masked_fill(laid_out.is_visual, 0))
    if tokens is not None:
        embeds = embeds.masked_scatter(laid_out.is_visual[..., None], tokens.to(embeds.dtype))
    elif blank is not None:
        embeds = embeds + blank.to(embeds.dtype)
    if split.prefusion is None or (tokens is None and not must_run):
        return embeds
    dtype = next(split.prefusion.parameters()).dtype
    return split.prefusion(embeds.to(dtype), laid_out.plan).to(embeds.dtype)


def _blank(model: LlavaMetaForCausalLM, device: torch.device) -> Float[Tensor, ""]:
    """One black picture through all that a batch with pictures would run."""
    size = model.vision_tower.image_size
    pixels = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device)
    features = _encode(model, pixels, _masks_of(model, pixels, None), [True])
    return features.background.features.sum() + features.objects.features.sum()


def _require_no_asides(rows: TokenRows) -> None:
    if rows.branch_ids is not None and bool((rows.branch_ids > 0).any()):
        raise ValueError(
            "rows have branch_ids above 0 (questions or answers that hang beside the trunk) and scene_split has "
            "prefusion_layers, which cannot keep them apart; set prefusion_layers to 0, or --grounding_questions 0 and "
            "a data set of single decisions"
        )
