"""Rows whose pictures have all their slots, from the data side, become rows of background, objects and separators.

    text  [slots of a picture: num_slots of the image token]                       text
    text  [BG_START] background [BG_END] [OBJ_START] objects [OBJ_END]             text

A picture fills all its slots however it is split. Where the frames of a clip share a background (`is_clip`), the later
frames leave slots empty: those columns are taken out, so such rows are shorter than the data side made them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from llava.constants import IGNORE_INDEX
from llava.model.attention import PADDING_SEGMENT
from llava.model.media_embedding import TokenRows
from llava.model.multimodal_encoder.split_encoder import SplitFeatures
from llava.model.multimodal_projector.prefusion import BACKGROUND, OBJECT, OUTSIDE, TEXT, FusionPlan
from llava.model.scene_split.layout import LayoutRule, SceneLayout, layout_clip, layout_picture


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Where a picture stands: its row, its first column, and which clip of the batch it is a frame of."""

    row: int
    column: int
    clip: int
    frame: int


@dataclass(frozen=True, kw_only=True)
class SplitRows:
    """Rows that are laid out.

    Attributes:
        rows: ids with separators and `image_token_id` where a visual token is written, true positions, ignored labels.
        is_visual: [B, S] columns into which the features are written, in reading order.
        plan: what each token is to the pre-fusion layers.
    """

    rows: TokenRows
    is_visual: Bool[Tensor, "b s"]
    plan: FusionPlan


def find_pictures(rows: TokenRows, rule: LayoutRule, *, is_clip: bool) -> list[Picture]:
    """The pictures of expanded rows in reading order; with `is_clip`, those of one sample are frames of one clip.

    Raises:
        ValueError: the slots of a picture do not stand together.
    """
    is_slot = ((rows.input_ids == rule.image_token_id) & rows.is_token()).cpu()
    places = is_slot.nonzero()  # [pictures * num_slots, 2]
    slots = places.view(-1, rule.num_slots, 2)
    ends = slots[:, -1] - slots[:, 0]
    broken = ((ends[:, 0] != 0) | (ends[:, 1] != rule.num_slots - 1)).nonzero().flatten().tolist()
    if broken:
        row, column = slots[broken[0], 0].tolist()
        raise ValueError(
            f"picture {broken[0]} (row {row}, column {column}) has slots that do not stand together, expected "
            f"{rule.num_slots} in a run; use mm_utils.expand_image_tokens"
        )
    segments = None if rows.segment_ids is None else rows.segment_ids.cpu()
    found, samples, frames = [], {}, {}
    for number, (row, column) in enumerate(slots[:, 0].tolist()):
        sample = (row, 0 if segments is None else int(segments[row, column])) if is_clip else number
        clip = samples.setdefault(sample, len(samples))
        frames[clip] = frames.get(clip, -1) + 1
        found.append(Picture(row=row, column=column, clip=clip, frame=frames[clip]))
    return found


def layouts_of(rule: LayoutRule, pictures: Sequence[Picture], features: SplitFeatures) -> list[SceneLayout]:
    """The slots of every picture, from the places of its tokens; a later frame of a clip has no background."""
    objects = [group.places.cpu() for group in features.objects.of_pictures()]
    backgrounds = [group.places.cpu() for group in features.background.of_pictures()]
    if len(backgrounds) == len(objects):
        return [layout_picture(rule, *places) for places in zip(backgrounds, objects, strict=True)]
    found: list[SceneLayout] = []
    for clip, background in enumerate(backgrounds):
        frames = [places for picture, places in zip(pictures, objects, strict=True) if picture.clip == clip]
        found += layout_clip(rule, [background], frames)
    return found


def lay_out_rows(
    rows: TokenRows, rule: LayoutRule, pictures: Sequence[Picture], layouts: Sequence[SceneLayout]
) -> SplitRows:
    """Separators, positions and kinds of every token; labels of pictures are ignored."""
    device = rows.input_ids.device
    host = TokenRows(**{each.name: _on_host(getattr(rows, each.name)) for each in fields(rows)})
    ids, kept = host.input_ids.clone(), torch.ones_like(host.input_ids, dtype=torch.bool)
    labels = torch.full_like(ids, IGNORE_INDEX) if host.labels is None else host.labels.clone()
    positions = _moved_positions(host, rule, pictures, layouts)
    kinds = _kinds_of_text(host, pictures)
    clips, frames = torch.zeros_like(ids), torch.zeros_like(ids)
    for picture, layout in zip(pictures, layouts, strict=True):
        first, length = picture.column, len(layout.token_ids)
        all_slots = slice(first, first + rule.num_slots)
        ids[picture.row, first : first + length] = layout.token_ids
        kept[picture.row, first + length : all_slots.stop] = False
        labels[picture.row, all_slots] = IGNORE_INDEX
        clips[picture.row, all_slots], frames[picture.row, all_slots] = picture.clip, picture.frame
        for block in layout.blocks:
            kind = BACKGROUND if block.kind == "background" else OBJECT
            part = kinds[picture.row, first + block.start : first + block.stop]
            part[layout.token_ids[block.start : block.stop] == rule.image_token_id] = kind
    is_visual = (kinds == BACKGROUND) | (kinds == OBJECT)
    given = replace(host, input_ids=ids, position_ids=positions, labels=labels if host.labels is not None else None)
    if given.segment_ids is None and given.attention_mask is None:
        # without any mask transformers takes positions that jump for the borders of packed samples
        given = replace(given, attention_mask=torch.ones_like(ids, dtype=torch.bool))
    order = None if bool(kept.all()) else _compact(kept, host)
    if order is not None:
        given, is_visual, kinds, clips, frames = _without_gaps(given, kept, order, (is_visual, kinds, clips, frames))
    laid_out = TokenRows(**{each.name: _on(device, getattr(given, each.name)) for each in fields(given)})
    assert laid_out.position_ids is not None
    plan = FusionPlan(
        kinds=kinds.to(device),
        scene_ids=clips.to(device),
        frame_ids=frames.to(device),
        position_ids=laid_out.position_ids,
        segment_ids=laid_out.segment_ids,
    )
    return SplitRows(rows=laid_out, is_visual=is_visual.to(device), plan=plan)


def _on_host(value: Tensor | None) -> Any:
    return None if value is None else value.cpu()


def _on(device: torch.device, value: Tensor | None) -> Any:
    return None if value is None else value.to(device)


def _moved_positions(
    rows: TokenRows, rule: LayoutRule, pictures: Sequence[Picture], layouts: Sequence[SceneLayout]
) -> Int[Tensor, "b s"]:
    """A picture that takes more positions than slots (or fewer) moves all of its sample that comes after it."""
    before = rows.positions()
    after, is_token, column = before.clone(), rows.is_token(), torch.arange(before.shape[1])
    for picture, layout in zip(pictures, layouts, strict=True):
        more = layout.num_positions - rule.num_slots
        if more:
            is_later = is_token[picture.row] & (column > picture.column)
            if rows.segment_ids is not None:
                segments = rows.segment_ids[picture.row]
                is_later &= segments == segments[picture.column]
            after[picture.row] += more * is_later
    starts = [(p.row, p.column, int(after[p.row, p.column])) for p in pictures]
    for (row, column, start), layout in zip(starts, layouts, strict=True):
        after[row, column : column + len(layout.token_ids)] = start + layout.position_ids
    return after


def _kinds_of_text(rows: TokenRows, pictures: Sequence[Picture]) -> Int[Tensor, "b s"]:
    """TEXT where a prompt with a picture is; answers, padding and samples without a picture are OUTSIDE."""
    segments = torch.zeros_like(rows.input_ids) if rows.segment_ids is None else rows.segment_ids
    has_picture = torch.zeros_like(rows.input_ids, dtype=torch.bool)
    for row, segment in {(p.row, int(segments[p.row, p.column])) for p in pictures}:
        has_picture[row] |= segments[row] == segment
    is_prompt = has_picture & rows.is_token()
    if rows.labels is not None:
        is_prompt &= rows.labels == IGNORE_INDEX
    return torch.where(is_prompt, TEXT, OUTSIDE)


def _compact(kept: Bool[Tensor, "b s"], rows: TokenRows) -> Int[Tensor, "b u"]:
    """Columns of every row that stay, in order, behind them those that go; cut at the longest row."""
    is_real = kept & rows.is_token()
    longest = int(is_real.sum(dim=1).max())
    return (~is_real).long().argsort(dim=1, stable=True)[:, :longest]


def _without_gaps(
    rows: TokenRows, kept: Tensor, order: Tensor, others: tuple[Tensor, Tensor, Tensor, Tensor]
) -> tuple[TokenRows, Tensor, Tensor, Tensor, Tensor]:
    """The columns of `order`; what fills up a shorter row is padding."""
    is_real = (kept & rows.is_token()).gather(1, order)
    short = rows.gathered(order)
    mask = is_real if rows.attention_mask is None else is_real.to(rows.attention_mask.dtype)
    segments = None if short.segment_ids is None else short.segment_ids.masked_fill(~is_real, PADDING_SEGMENT)
    labels = None if short.labels is None else short.labels.masked_fill(~is_real, IGNORE_INDEX)
    assert short.position_ids is not None
    short = replace(
        short, attention_mask=mask, segment_ids=segments, labels=labels, position_ids=short.position_ids * is_real
    )
    is_visual, kinds, clips, frames = (each.gather(1, order) for each in others)
    return short, is_visual & is_real, kinds.masked_fill(~is_real, OUTSIDE), clips, frames
