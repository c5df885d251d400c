"""The language model's states that each prediction may see, cut out of the rows of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llava.model.autoregressive_reconstruction.clips import NOT_IN_SEQUENCE, to_device


@dataclass(frozen=True, kw_only=True)
class LanguageContext:
    """States of each clip's part of its row.

    Attributes:
        states: [V, C, D].
        stops: per query frame the number of leading columns that some clip may see.
        masks: per query frame [V, stop], True = may see; None where every clip sees all of them.
    """

    states: Float[Tensor, "v c d"]
    stops: tuple[int, ...]
    masks: tuple[Bool[Tensor, "v _"] | None, ...]


def cut_context(
    hidden_states: Float[Tensor, "b s d"],
    ends: Int[Tensor, "v q"],
    rows: Int[Tensor, "v"] | None,
    segment_ids: Int[Tensor, "b s"] | None,
    branch_ids: Int[Tensor, "b s"] | None,
) -> LanguageContext:
    """Per clip and query the states of its own sample, up to the column in ends, in the trunk or the end's branch."""
    visible = _visible_columns(hidden_states.shape[1], ends, rows, segment_ids, branch_ids)  # [V, Q, S]
    seen = visible.any(dim=1)  # [V, S]
    column = torch.arange(seen.shape[1])
    starts = torch.where(seen, column, seen.shape[1]).amin(dim=1).clamp(max=seen.shape[1] - 1)
    stops = torch.where(seen, column + 1, 0).amax(dim=1)
    if rows is None and segment_ids is None:
        starts = torch.zeros_like(starts)
    length = max(int((stops - starts).max()), 1)
    if rows is None and not bool(starts.any()):
        states = hidden_states[:, :length]
        visible = visible[:, :, :length]
    else:
        columns = (starts[:, None] + torch.arange(length)).clamp(max=seen.shape[1] - 1)  # [V, C]
        lies_within = starts[:, None] + torch.arange(length) < stops[:, None]
        states = _gather_columns(hidden_states, columns, rows)
        visible = visible.gather(2, columns[:, None].expand(-1, visible.shape[1], -1)) & lies_within[:, None]
    return _plan_masks(states, visible)


def gather_slots(
    hidden_states: Float[Tensor, "b s d"], ends: Int[Tensor, "v q"], num_slots: int, rows: Int[Tensor, "v"] | None
) -> Float[Tensor, "v q k d"]:
    """States at the `num_slots` columns of each frame, which end at ends; arbitrary ones for frames without."""
    first = ends - num_slots + 1
    if bool(((first < 0) & (ends != NOT_IN_SEQUENCE)).any()):
        raise ValueError(
            f"frame_end_positions {ends.tolist()} leave no room for the {num_slots} slots of a frame before them; with "
            "predictor_input 'hidden' a target token is needed per slot: set target_pool to the projector's"
        )
    columns = (first[..., None] + torch.arange(num_slots)).clamp(min=0)  # [V, Q, K]
    return _gather_columns(hidden_states, columns.flatten(1), rows).unflatten(1, columns.shape[1:])


def _visible_columns(
    length: int, ends: Tensor, rows: Tensor | None, segment_ids: Tensor | None, branch_ids: Tensor | None
) -> Bool[Tensor, "v q s"]:
    column = torch.arange(length)
    visible = column <= ends[:, :, None]
    clip_rows = torch.arange(len(ends)) if rows is None else rows
    last = ends.clamp(min=0)
    if segment_ids is not None:
        segments = segment_ids.cpu()[clip_rows]  # [V, S]
        visible = visible & (segments[:, None, :] == segments.gather(1, last)[:, :, None])
    if branch_ids is not None:
        branches = branch_ids.cpu()[clip_rows][:, None, :]
        own = branches[:, 0].gather(1, last)[:, :, None]
        visible = visible & ((branches == 0) | (branches == own))
    return visible


def _gather_columns(states: Tensor, columns: Int[Tensor, "v c"], rows: Tensor | None) -> Float[Tensor, "v c d"]:
    clip_rows = torch.arange(len(columns)) if rows is None else rows
    flat = (clip_rows[:, None] * states.shape[1] + columns).flatten()
    chosen = states.flatten(0, 1).index_select(0, to_device(flat, states.device))
    return chosen.unflatten(0, columns.shape)


def _plan_masks(states: Tensor, visible: Bool[Tensor, "v q c"]) -> LanguageContext:
    column = torch.arange(1, visible.shape[2] + 1)
    stops = [int((frame.any(dim=0) * column).max()) for frame in visible.unbind(1)]
    masks = [frame[:, :stop] for frame, stop in zip(visible.unbind(1), stops, strict=True)]
    return LanguageContext(
        states=states,
        stops=tuple(stops),
        masks=tuple(None if bool(mask.all()) else to_device(mask, states.device) for mask in masks),
    )
