"""Who predicts what and may see what: everything about one site that can be said before any number is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llava.model.autoregressive_reconstruction.clips import (
    NOT_IN_SEQUENCE,
    VideoClips,
    into_pathways,
    motion_between,
    select_frames,
)
from llava.model.autoregressive_reconstruction.config import ReconstructionConfig
from llava.model.autoregressive_reconstruction.targets import gather_frames, next_of_pathway
from llava.video.frame_masks import not_newer, within_window


@dataclass(frozen=True, kw_only=True)
class SitePlan:
    """Predictions of one site: one per query frame, of which only those with `is_item` count.

    Attributes:
        clips: the query frames; frames that no prediction needs are left out.
        targets: [V, Q] frame of the original clip that each query predicts, -1 = none.
        is_item: [V, Q] True where the prediction counts.
        num_masked: predictions that would count and do not, as the control `other_clip` has no other clip's frame.
        visible: per layer [V, Q, Q], frame by frame, True = may attend.
        context_ends: [V, Q] last column of the language model's states that each query may see, -1 = none.
        since_start, gap: [V, Q] time since the first real frame, and until the target.
        motion_in, motion_out: [V, Q, 3] into the frame, and from it to its target; NaN = not told; None = never told.
    """

    clips: VideoClips
    targets: Int[Tensor, "v q"]
    is_item: Bool[Tensor, "v q"]
    num_masked: int
    visible: tuple[Bool[Tensor, "v q q"], ...]
    context_ends: Int[Tensor, "v q"] | None
    since_start: Float[Tensor, "v q"]
    gap: Float[Tensor, "v q"]
    motion_in: Float[Tensor, "v q 3"] | None
    motion_out: Float[Tensor, "v q 3"] | None

    def motion_classes(self) -> dict[str, Bool[Tensor, "v q"]]:
        """How the robot really moved on the way to each target, told or not; empty where no motions are known."""
        if self.clips.motions is None:
            return {}
        motion = motion_between(self.clips, self.clips.indices.expand_as(self.targets), self.targets)
        forward, turn = motion[..., 0].abs() > 0, motion[..., 1].abs() > 0  # NaN compares as False
        still = ~motion.isnan().any(dim=-1) & ~forward & ~turn
        return {"forward": forward & ~turn, "turn": turn & ~forward, "both": forward & turn, "still": still}


def plan_site(clips: VideoClips, config: ReconstructionConfig, site: str) -> SitePlan:
    """See `SitePlan`.

    Raises:
        ValueError: if conditions or positions that the configuration needs are missing, or if the order of the frames
            in the sequence lets an answer see what it is to predict.
    """
    _check_needs(clips, config, site)
    target, is_item, num_masked = _items(clips, config, site)
    told = config.condition_on_action == "answer" or (config.condition_on_action == "history" and site == "visual")
    visible = _visible(clips, target if told else None, config)
    kept = _needed(is_item, visible)
    if len(kept) < is_item.shape[1]:
        clips_kept = select_frames(clips, kept)
        target, is_item, visible = target[:, kept], is_item[:, kept], visible[:, kept][:, :, kept]
    else:
        clips_kept = clips
    original = torch.where(target >= 0, clips.indices[target.clamp(min=0)], target)
    until = torch.where(target >= 0, gather_frames(clips.times, target), clips_kept.times)
    moments = clips_kept.times.masked_fill(~clips_kept.in_sequence, math.inf)
    return SitePlan(
        clips=clips_kept,
        targets=original,
        is_item=is_item,
        num_masked=num_masked,
        visible=tuple(visible & within_window(moments, span) for span in config.layer_windows),
        context_ends=_context_ends(clips_kept, config, site, is_item),
        since_start=_since_start(clips, clips_kept),
        gap=torch.where(is_item, until - clips_kept.times, 0.0),
        motion_in=_motion_in(clips_kept) if config.condition_on_action != "none" else None,
        motion_out=_motion_out(clips_kept, original, told) if config.condition_on_action != "none" else None,
    )


def count_items(clips: VideoClips, config: ReconstructionConfig) -> int:
    """Predicted frames of a batch, from its host tensors alone: what the loss of a whole step is divided by."""
    clips = as_predicted(clips, config)
    return sum(int(_items(clips, config, site)[1].sum()) for site in config.sites)


def as_predicted(clips: VideoClips, config: ReconstructionConfig) -> VideoClips:
    """The clips as the loss looks at them: pathways chosen, positions dropped where nothing is fused."""
    if config.context == "none":
        clips = replace(clips, frame_end_positions=None)
    return into_pathways(clips, config)


def _check_needs(clips: VideoClips, config: ReconstructionConfig, site: str) -> None:
    if config.condition_on_action != "none" and clips.motions is None:
        raise ValueError(
            f"condition_on_action is '{config.condition_on_action}' and the batch has no motions, expected [clips, "
            "frames, 3] with NaN where a motion is unknown; read them from the records, or set condition_on_action none"
        )
    if site == "answer" and clips.answer_end_positions is None:
        raise ValueError(
            "site is 'answer' and the batch has no answer_end_positions, expected [clips, frames] with -1 where no "
            "answer follows a frame; let the collator record them, or use site 'visual'"
        )
    if site == "answer" and clips.frame_end_positions is None and config.context != "none":
        raise ValueError(
            "site is 'answer' and the batch has no frame_end_positions, expected [clips, frames]: they tell which "
            "states know which frames; let the collator record them, or set context to 'none'"
        )


def _items(clips: VideoClips, config: ReconstructionConfig, site: str) -> tuple[Tensor, Tensor, int]:
    """([V, T] index of each frame's target among these frames, [V, T] whether it counts, `SitePlan.num_masked`)."""
    target, is_item = _own_items(clips, config, site)
    if config.control != "other_clip":
        return target, is_item, 0
    has_other = gather_frames(other_clip(clips.is_real), target) & (len(clips.times) > 1)
    return target, is_item & has_other, int((is_item & ~has_other).sum())


def other_clip(per_frame: Tensor) -> Tensor:
    """[V, T, ...] of the clip before each, for the control of that name."""
    return per_frame.roll(1, dims=0)


def _own_items(clips: VideoClips, config: ReconstructionConfig, site: str) -> tuple[Tensor, Tensor]:
    if site == "visual":
        target = next_of_pathway(clips.times, clips.in_sequence, clips.pathway)
        return target, target >= 0
    assert clips.answer_end_positions is not None
    target = next_of_pathway(clips.times, clips.is_real, clips.pathway)
    is_item = (target >= 0) & (clips.answer_end_positions != NOT_IN_SEQUENCE)
    if config.condition_on_action == "answer":
        index = clips.indices.expand_as(target)
        motion = motion_between(clips, index, torch.where(target >= 0, clips.indices[target.clamp(min=0)], target))
        is_item = is_item & ~motion.isnan().any(dim=-1)
    return target, is_item


def _visible(clips: VideoClips, told_targets: Tensor | None, config: ReconstructionConfig) -> Tensor:
    """[V, T, T] without windows: real frames that are not newer, and every frame itself.

    A frame that is told how the robot moves on until its target shows this to all that see it: it stays hidden from
    predictions whose own target comes before that (a slow frame beside fast ones).
    """
    takes_part = clips.in_sequence
    visible = takes_part[:, None, :].expand(-1, takes_part.shape[1], -1)
    if config.use_frame_causal_mask:
        visible = visible & not_newer(clips.times)
        if told_targets is not None:
            reach = torch.where(told_targets >= 0, gather_frames(clips.times, told_targets), clips.times)
            visible = visible & (reach[:, None, :] <= reach[:, :, None])
    return visible | _self(visible)


def _self(visible: Tensor) -> Tensor:
    return torch.eye(visible.shape[-1], dtype=torch.bool)


def _needed(is_item: Tensor, visible: Tensor) -> Tensor:
    """Indices of frames that predict, or that one which predicts may see; the first frame at least."""
    needed = is_item.any(dim=0) | (visible & is_item[:, :, None]).any(dim=1).any(dim=0)
    return needed.nonzero()[:, 0] if bool(needed.any()) else torch.zeros(1, dtype=torch.long)


def _context_ends(clips: VideoClips, config: ReconstructionConfig, site: str, is_item: Tensor) -> Tensor | None:
    """The last column that each query may see; it never reaches a frame that is newer than the query.

    Where frames do not stand in the order of their times, the states behind a newer frame know it: a query then sees
    no further than the frames before that one.
    """
    ends, whole = clips.frame_end_positions, clips.original
    if ends is None or config.context == "none":
        return None
    assert whole.frame_end_positions is not None
    all_ends = whole.frame_end_positions[:, None, :]
    in_sequence, all_in_sequence = clips.in_sequence, whole.in_sequence[:, None, :]
    if not config.use_frame_causal_mask:
        return torch.where(in_sequence, all_ends.amax(dim=2), NOT_IN_SEQUENCE)  # the leaking arm
    is_newer = all_in_sequence & (whole.times[:, None, :] > clips.times[:, :, None])  # [V, query, frame]
    first_newer = torch.where(is_newer, all_ends, torch.iinfo(ends.dtype).max).amin(dim=2)
    if site == "answer":
        return _answer_ends(clips, first_newer, is_item)
    is_clean = all_in_sequence & (all_ends < first_newer[:, :, None]) & (all_ends <= ends[:, :, None])
    clean = torch.where(is_clean & in_sequence[:, :, None], all_ends, NOT_IN_SEQUENCE).amax(dim=2)
    if config.predictor_input == "hidden" and bool((in_sequence & (clean != ends)).any()):
        raise ValueError(
            f"frame_end_positions {ends.tolist()} do not follow frame_times {clips.times.tolist()}, expected the order "
            "of time with predictor_input 'hidden': the states at a frame's slots would know newer frames"
        )
    return clean


def _answer_ends(clips: VideoClips, first_newer: Tensor, is_item: Tensor) -> Tensor:
    assert clips.answer_end_positions is not None
    ends = torch.where(is_item, clips.answer_end_positions, NOT_IN_SEQUENCE)
    if bool((ends >= first_newer).any()):
        raise ValueError(
            f"answers end at {ends.tolist()} behind newer frames, the first of which end at {first_newer.tolist()}, "
            "expected every answer before the frame that follows it; give the frames of a clip in the order of time"
        )
    return ends


def _since_start(clips: VideoClips, kept: VideoClips) -> Tensor:
    first = clips.times.masked_fill(~clips.is_real, math.inf).amin(dim=1, keepdim=True)
    return torch.where(kept.is_real, kept.times - first, 0.0)


def _motion_in(clips: VideoClips) -> Tensor:
    """From the frame of the same pathway before; NaN for the first."""
    num_frames = clips.times.shape[1]
    backwards = next_of_pathway(-clips.times, clips.is_real, clips.pathway)
    index = clips.indices.expand(len(clips.times), num_frames)
    return motion_between(clips, torch.where(backwards >= 0, clips.indices[backwards.clamp(min=0)], -1), index)


def _motion_out(clips: VideoClips, targets: Tensor, told: bool) -> Tensor:
    motion = motion_between(clips, clips.indices.expand_as(targets), targets)
    return motion if told else torch.full_like(motion, torch.nan)
