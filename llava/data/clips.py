"""Clips: which pictures of a sample follow each other in time, when, with what motion between; from samples to a batch.

A loss that predicts the next frame reads them; the language model does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from llava.batch import ClipBatch, ClipSample
from llava.data.geometry import GeometryOptions

NO_FRAME = -1
NOT_IN_SEQUENCE = -1
UNKNOWN = float("nan")


@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """What clips hold beside the frames that the language model sees.

    Attributes:
        answer_targets: read from disk the frame after the last answer of a sequence, which only the loss may see.
        geometry: read a second target of every frame, see `data.geometry`; None = there is none.
    """

    answer_targets: bool = False
    geometry: GeometryOptions | None = None


def make_clip(
    frames: Sequence[int],
    times: Sequence[float | int],
    *,
    motions: Float[Tensor, "t 3"] | None = None,
    answer_ends: Mapping[int, int] | None = None,
    target_frames: UInt8[Tensor, "m 3 h w"] | None = None,
    geometry: Float[Tensor, "t n g"] | None = None,
) -> ClipSample | None:
    """See `ClipSample`; None where fewer than two frames are real, as none of them has a next one.

    Args:
        motions: None = all unknown.
        answer_ends: frame of the clip -> token that ends the answer given there.
    """
    if sum(frame != NO_FRAME for frame in frames) < 2:
        return None
    ends = answer_ends or {}
    clip = ClipSample(
        frames=torch.tensor(frames, dtype=torch.int64),
        times=torch.tensor(times, dtype=torch.float32),
        motions=torch.full((len(frames), 3), UNKNOWN) if motions is None else motions,
        answer_end_positions=torch.tensor([ends.get(t, NOT_IN_SEQUENCE) for t in range(len(frames))]),
    )
    if target_frames is not None and len(target_frames):
        clip["target_frames"] = target_frames
    if geometry is not None:
        clip["geometry"] = geometry
    return clip


def cut_clip(clip: ClipSample, *, num_pictures: int, kept_pictures: int, length: int) -> ClipSample | None:
    """The clip of a sample that was cut to its first tokens and pictures; None where fewer than two frames are left.

    What stands behind the first frame that is lost goes with it: an answer may only be followed by its own next frame.

    Args:
        num_pictures, kept_pictures: of the sample, before and after.
        length: tokens left.
    """
    frames, ends = clip["frames"], clip["answer_end_positions"]
    is_lost = ((frames >= kept_pictures) & (frames < num_pictures)).cumsum(0) > 0
    dropped = num_pictures - kept_pictures
    frames = torch.where(frames >= num_pictures, frames - dropped, frames).masked_fill(is_lost, NO_FRAME)
    if int((frames != NO_FRAME).sum()) < 2:
        return None
    cut = {
        **clip,
        "frames": frames,
        "answer_end_positions": ends.masked_fill(is_lost | (ends >= length), NOT_IN_SEQUENCE),
    }
    if "target_frames" in clip and not bool((frames >= kept_pictures).any()):
        del cut["target_frames"]
    return ClipSample(**cut)


def check_clips(samples: Sequence[Mapping[str, Any]], image_token_id: int | None) -> None:
    """Refuse what has no place in a batch of clips."""
    for sample in samples:
        if "clip" not in sample:
            continue
        name = sample.get("sample_id", "(no id)")
        if image_token_id is None:
            raise ValueError(
                f"sample {name} has a clip and image_token_id is None, so the tokens of its frames cannot be found; "
                "give DataCollator(image_token_id=...)"
            )
        if "image_sizes" in sample:
            raise ValueError(
                f"sample {name} has a clip and pictures cut into {sample['image_views'].tolist()} views, expected one "
                "view per frame; leave the clip out, or read its pictures as frames of a video"
            )


def join_clips(
    samples: Sequence[Mapping[str, Any]], places: Sequence[tuple[int, int]], image_token_id: int | None
) -> ClipBatch | None:
    """The clips of a batch; None where no sample has one.

    Args:
        samples: all samples in the order of the batch, already cut.
        places: (row, column of the first token) of each.
    """
    holders = [index for index, sample in enumerate(samples) if "clip" in sample]
    if not holders:
        return None
    assert image_token_id is not None, "check_clips was not called"
    counts = [len(sample.get("images", ())) for sample in samples]
    joined: list[dict[str, Tensor]] = []
    targets: list[Tensor] = []
    for index in holders:
        sample, clip = samples[index], samples[index]["clip"]
        first_picture = sum(counts[:index])
        first_target = sum(counts) + sum(map(len, targets))
        targets += [clip["target_frames"]] if "target_frames" in clip else []
        frame_ends = _frame_ends(sample, counts[index], image_token_id)
        joined.append(_placed(clip, frame_ends, counts[index], first_picture, first_target, places[index][1]))
    batch = {name: _padded([one[name] for one in joined], padding) for name, padding in PADDING.items()}
    if (geometry := _join_geometry([samples[index]["clip"] for index in holders])) is not None:
        batch["geometry"] = geometry
    batch["samples"] = torch.tensor(holders)
    batch["rows"] = torch.tensor([places[index][0] for index in holders])
    if targets:
        batch["target_frames"] = torch.cat(targets)
    return ClipBatch(**batch)  # pyright: ignore[reportArgumentType]


def _frame_ends(sample: Mapping[str, Any], num_pictures: int, image_token_id: int) -> Int[Tensor, " n"]:
    """Position of the last visual token of every picture of a sample."""
    name = sample.get("sample_id", "(no id)")
    if "frame_ids" not in sample:
        raise ValueError(f"sample {name} has a clip and no frame_ids, which tell the tokens of each frame; add them")
    is_visual = sample["input_ids"] == image_token_id
    owner, position = sample["frame_ids"][is_visual], is_visual.nonzero()[:, 0]
    shown = owner.unique().tolist()
    if shown != list(range(num_pictures)):
        raise ValueError(
            f"sample {name} has {num_pictures} pictures and visual tokens of the pictures {shown}, expected every "
            "picture in the order of the sequence; number frame_ids by reading order"
        )
    return torch.full((num_pictures,), NOT_IN_SEQUENCE).scatter_reduce(0, owner, position, "amax")


def _placed(
    clip: ClipSample,
    frame_ends: Int[Tensor, " n"],
    num_pictures: int,
    first_picture: int,
    first_target: int,
    first_column: int,
) -> dict[str, Tensor]:
    """A clip with the indices and columns of the batch."""
    frames, ends = clip["frames"], clip["answer_end_positions"]
    last = num_pictures + len(clip.get("target_frames", ())) - 1
    if bool(((frames < NO_FRAME) | (frames > last)).any()):
        raise ValueError(
            f"a clip has the frames {frames.tolist()}, expected -1 to {last}: {num_pictures} pictures of the sample, "
            "then target_frames"
        )
    is_shown = (frames != NO_FRAME) & (frames < num_pictures)
    columns = torch.full_like(frames, NOT_IN_SEQUENCE)
    columns[is_shown] = frame_ends[frames[is_shown]] + first_column
    in_batch = torch.where(is_shown, frames + first_picture, frames - num_pictures + first_target)
    return {
        "frames": torch.where(frames == NO_FRAME, frames, in_batch),
        "frame_end_positions": columns,
        "answer_end_positions": torch.where(ends == NOT_IN_SEQUENCE, ends, ends + first_column),
        "times": clip["times"],
        "motions": clip["motions"],
    }


PADDING = {
    "frames": NO_FRAME,
    "frame_end_positions": NOT_IN_SEQUENCE,
    "answer_end_positions": NOT_IN_SEQUENCE,
    "times": 0.0,
    "motions": UNKNOWN,
}
"""What a clip holds behind its end in a batch with a longer one."""


def _join_geometry(clips: Sequence[ClipSample]) -> Float[Tensor, "v t n g"] | None:
    """None where no clip has any; NaN for a clip without."""
    known = [clip["geometry"] for clip in clips if "geometry" in clip]
    if not known:
        return None
    shapes = {tuple(one.shape[1:]) for one in known}
    if len(shapes) > 1:
        raise ValueError(
            f"geometry of different shapes in one batch: {sorted(shapes)}; prepare it with as many tokens and channels "
            "for all data sets"
        )
    shape = next(iter(shapes))
    missing = [torch.full((len(clip["frames"]), *shape), UNKNOWN) for clip in clips]
    return _padded([clip.get("geometry", nothing) for clip, nothing in zip(clips, missing, strict=True)], UNKNOWN)


def _padded(parts: Sequence[Tensor], padding: float | int) -> Tensor:
    """[V, T, ...]"""
    longest = max(map(len, parts))
    out = parts[0].new_full((len(parts), longest, *parts[0].shape[1:]), padding)
    for row, part in zip(out, parts, strict=True):
        row[: len(part)] = part
    return out
