"""What is known about a batch of clips beside their pictures: times, padding, places in the sequence, motions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llava.model.autoregressive_reconstruction.config import ReconstructionConfig
from llava.video.fast_slow import fast_slow_indices, merged_order

NOT_IN_SEQUENCE = -1
"""Position of a frame or an answer that the sequence does not hold: cut off, padding, or read for its target only."""


@dataclass(frozen=True, kw_only=True)
class VideoClips:
    """V clips of T frames; every tensor is small and lies in host memory, where the attention is planned.

    Attributes:
        times: when each frame was taken, in any unit; frames may stand in any order.
        is_real: False for padding (black history, frames that do not exist), which takes no part.
        frame_end_positions: column of the last token of each frame in its row, or NOT_IN_SEQUENCE.
        answer_end_positions: column of the last token of the answer given at each frame, or NOT_IN_SEQUENCE.
        motions: executed between a frame and the next one of the clip: forward metres, yaw in degrees (left is
            positive), low-level steps; NaN = unknown.
        rows: row of the batch that holds each clip; None = clip v lies in row v.
        indices: frame of the original clip that each frame is.
        pathway: which pathway each frame belongs to; the target of a frame is the next one of its own.
        whole: the clips of which these are chosen frames; None = they are all there.
    """

    times: Float[Tensor, "v t"]
    is_real: Bool[Tensor, "v t"]
    frame_end_positions: Int[Tensor, "v t"] | None
    answer_end_positions: Int[Tensor, "v t"] | None
    motions: Float[Tensor, "v _ 3"] | None
    rows: Int[Tensor, "v"] | None
    indices: Int[Tensor, "t"]
    pathway: Int[Tensor, "t"]
    whole: VideoClips | None = None

    @property
    def original(self) -> VideoClips:
        """With every frame, chosen or not: what the language model may have seen."""
        return self if self.whole is None else self.whole

    @property
    def in_sequence(self) -> Bool[Tensor, "v t"]:
        """Frames that the language model saw whole; all real ones where positions are not known."""
        if self.frame_end_positions is None:
            return self.is_real
        return self.is_real & (self.frame_end_positions != NOT_IN_SEQUENCE)


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """A small tensor that was planned on the host; a plain copy to CUDA would wait for all that is queued there."""
    if device.type != "cuda" or value.is_cuda:
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)


def describe_clips(
    num_clips: int,
    num_frames: int,
    *,
    frame_end_positions: Int[Tensor, "..."] | None = None,
    answer_end_positions: Int[Tensor, "..."] | None = None,
    frame_times: Float[Tensor, "..."] | Int[Tensor, "..."] | None = None,
    is_real_frame: Bool[Tensor, "..."] | None = None,
    motions: Float[Tensor, "..."] | None = None,
    clip_rows: Int[Tensor, "..."] | None = None,
) -> VideoClips:
    """The clips of a batch; without time stamps frames follow each other at a distance of 1, all of them real.

    Raises:
        ValueError: for a tensor of another shape, and for time stamps of real frames that are not finite.
    """
    shape = (num_clips, num_frames)
    index = torch.arange(num_frames)
    given = {
        "frame_end_positions": (frame_end_positions, shape),
        "answer_end_positions": (answer_end_positions, shape),
        "frame_times": (frame_times, shape),
        "is_real_frame": (is_real_frame, shape),
        "motions": (motions, (*shape, 3)),
        "clip_rows": (clip_rows, (num_clips,)),
    }
    on_host: dict[str, Tensor | None] = {}
    for name, (value, expected) in given.items():
        if value is not None and tuple(value.shape) != expected:
            raise ValueError(
                f"{name} has shape {list(value.shape)}, expected {list(expected)}: one entry per frame of video_frames"
            )
        on_host[name] = None if value is None else value.cpu()
    times, is_real = on_host["frame_times"], on_host["is_real_frame"]
    times = index.float().expand(shape) if times is None else times.float()
    is_real = torch.ones(shape, dtype=torch.bool) if is_real is None else is_real
    if not bool(torch.isfinite(times[is_real]).all()):
        raise ValueError(
            f"frame_times of real frames are {times.tolist()}, expected finite numbers; mark padding frames"
        )
    return VideoClips(
        times=times,
        is_real=is_real,
        frame_end_positions=on_host["frame_end_positions"],
        answer_end_positions=on_host["answer_end_positions"],
        motions=on_host["motions"],
        rows=on_host["clip_rows"],
        indices=index,
        pathway=torch.zeros(num_frames, dtype=torch.long),
    )


def into_pathways(clips: VideoClips, config: ReconstructionConfig) -> VideoClips:
    """Slow and fast frames of each clip as one sequence; the clips as they are where the feature is off."""
    if not config.use_fast_slow_frames:
        return clips
    chosen = fast_slow_indices(
        clips.times.shape[1],
        fast_stride=config.fast_stride,
        slow_stride=config.slow_stride,
        num_fast=config.num_fast,
        num_slow=config.num_slow,
    )
    order = torch.tensor(merged_order(len(chosen.fast), len(chosen.slow), config.merge_strategy))
    pathway = torch.tensor([0] * len(chosen.slow) + [1] * len(chosen.fast))[order]
    return select_frames(clips, torch.tensor(chosen.slow + chosen.fast)[order], pathway)


def select_frames(clips: VideoClips, index: Int[Tensor, "q"], pathway: Int[Tensor, "q"] | None = None) -> VideoClips:
    """The frames at `index`, in that order; motions stay those of the original clip."""

    def chosen(per_frame: Tensor | None) -> Tensor | None:
        return None if per_frame is None else per_frame[:, index]

    return replace(
        clips,
        whole=clips.original,
        times=clips.times[:, index],
        is_real=clips.is_real[:, index],
        frame_end_positions=chosen(clips.frame_end_positions),
        answer_end_positions=chosen(clips.answer_end_positions),
        indices=clips.indices[index],
        pathway=clips.pathway[index] if pathway is None else pathway,
    )


def motion_between(clips: VideoClips, start: Int[Tensor, "v q"], stop: Int[Tensor, "v q"]) -> Float[Tensor, "v q 3"]:
    """Sum of the motions from frame `start` to frame `stop`, both as indices of the original clip.

    NaN where any motion on the way is unknown, where stop lies before start, and where either is -1.
    """
    assert clips.motions is not None
    is_unknown = clips.motions.isnan()
    before = torch.nn.functional.pad(clips.motions.nan_to_num().double().cumsum(1), (0, 0, 1, 0))  # [V, T+1, 3]
    unknown = torch.nn.functional.pad(is_unknown.long().cumsum(1), (0, 0, 1, 0))
    rows = torch.arange(len(start))[:, None]
    a, b = start.clamp(min=0), stop.clamp(min=0)
    total = (before[rows, b] - before[rows, a]).float()
    known = (unknown[rows, b] == unknown[rows, a]) & ((start >= 0) & (stop >= start))[..., None]
    return torch.where(known.all(dim=-1, keepdim=True), total, torch.nan)
