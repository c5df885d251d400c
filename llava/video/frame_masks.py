"""Who may see whom in a clip: masks over the tokens of its frames, True = may attend, row = query, column = key.

Tokens are frame-major: P tokens of the first frame, then P of the second. Without time stamps a later index is a later
moment. With them the stamp decides: whatever the order of the frames, a query sees nothing that is newer than itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llava.video.mask_picture import write_mask_picture

Device = torch.device | str | None
FrameTimes = Sequence[float] | Sequence[int] | Float[Tensor, "t"] | Int[Tensor, "t"]
"""One stamp per frame in any unit; equal stamps mean the same moment."""


class FrameLevelMaskGenerator:
    """Masks that treat all tokens of a frame alike."""

    def create_causal_frame_mask(
        self,
        num_frames: int,
        num_patches_per_frame: int,
        device: Device = None,
        frame_times: FrameTimes | None = None,
    ) -> Bool[Tensor, "n n"]:
        """A frame sees itself and what came before."""
        _check_counts(num_frames=num_frames, num_patches_per_frame=num_patches_per_frame)
        return _per_token(not_newer(_times(frame_times, num_frames, device)), num_patches_per_frame)

    def create_sliding_window_frame_mask(
        self,
        num_frames: int,
        num_patches_per_frame: int,
        window_size: int,
        device: Device = None,
        frame_times: FrameTimes | None = None,
    ) -> Bool[Tensor, "n n"]:
        """A frame sees itself and the `window_size - 1` moments before."""
        _check_counts(num_frames=num_frames, num_patches_per_frame=num_patches_per_frame, window_size=window_size)
        times = _times(frame_times, num_frames, device)
        return _per_token(not_newer(times) & within_window(times, window_size), num_patches_per_frame)

    def create_fast_slow_frame_mask(
        self,
        num_fast_frames: int,
        num_slow_frames: int,
        num_patches_per_frame: int,
        device: Device = None,
        frame_times: FrameTimes | None = None,
    ) -> Bool[Tensor, "n n"]:
        """Frames in the order [slow | fast]: slow frames see each other, fast ones all slow and earlier fast frames.

        frame_times, in the same order, cut from this whatever is newer than the query: without them the rule knows
        nothing of the future, and a slow frame may show a fast one what is to come.
        """
        _check_counts(num_patches_per_frame=num_patches_per_frame)
        num_frames = num_fast_frames + num_slow_frames
        if min(num_fast_frames, num_slow_frames) < 0 or num_frames < 1:
            raise ValueError(
                f"num_fast_frames is {num_fast_frames} and num_slow_frames {num_slow_frames}, expected neither below "
                "0 and at least 1 frame in all"
            )
        index = torch.arange(num_frames, device=device)
        is_slow = index < num_slow_frames
        seen = is_slow[None, :] | (~is_slow[:, None] & (index[None, :] <= index[:, None]))
        if frame_times is not None:
            seen = seen & not_newer(_times(frame_times, num_frames, device))
        return _per_token(seen, num_patches_per_frame)

    def create_frame_position_ids(
        self,
        num_frames: int,
        num_patches_per_frame: int,
        device: Device = None,
        frame_times: FrameTimes | None = None,
    ) -> Int[Tensor, "n"]:
        return create_frame_position_ids(num_frames, num_patches_per_frame, device, frame_times)

    def visualize_mask(
        self,
        mask: Bool[Tensor, "q k"],
        title: str = "Frame Mask",
        output_path: str | Path | None = None,
        num_patches_per_frame: int | None = None,
        frame_times: FrameTimes | None = None,
    ) -> Path:
        return visualize_mask(mask, title, output_path, num_patches_per_frame, frame_times)


def create_frame_position_ids(
    num_frames: int, num_patches_per_frame: int, device: Device = None, frame_times: FrameTimes | None = None
) -> Int[Tensor, "n"]:
    """The frame to which each token belongs; with time stamps the place of that frame in time.

    >>> create_frame_position_ids(3, 2).tolist(), create_frame_position_ids(3, 1, frame_times=[4, 0, 4]).tolist()
    ([0, 0, 1, 1, 2, 2], [1, 0, 1])
    """
    _check_counts(num_frames=num_frames, num_patches_per_frame=num_patches_per_frame)
    moments = moment_of(_times(frame_times, num_frames, device))
    return moments.repeat_interleave(num_patches_per_frame)


def visualize_mask(
    mask: Bool[Tensor, "q k"],
    title: str = "Frame Mask",
    output_path: str | Path | None = None,
    num_patches_per_frame: int | None = None,
    frame_times: FrameTimes | None = None,
) -> Path:
    """Writes the mask as a PNG with frame borders, time stamps and a legend; returns where.

    Args:
        output_path: default: the title in lower case with underscores, in the working directory.
        num_patches_per_frame: tokens between two borders; default: borders where the rows of the mask change.
        frame_times: written beside the frames; needs num_patches_per_frame.
    """
    if mask.ndim != 2:
        raise ValueError(f"the mask has shape {list(mask.shape)}, expected [queries, keys]; choose one row of a batch")
    path = Path(f"{title.strip().lower().replace(' ', '_')}.png" if output_path is None else output_path)
    rows = mask.bool().cpu()
    if num_patches_per_frame is None:
        if frame_times is not None:
            raise ValueError(
                "frame_times were given without num_patches_per_frame, expected both: a stamp is a frame's"
            )
        changes = (rows[1:] != rows[:-1]).any(dim=1).nonzero()[:, 0] + 1
        return write_mask_picture(rows.numpy(), title, path, borders=changes.tolist(), stamps=None)
    num_frames, left = divmod(rows.shape[0], num_patches_per_frame)
    if left or rows.shape[1] != rows.shape[0]:
        raise ValueError(
            f"the mask has shape {list(mask.shape)}, expected a square of frames of {num_patches_per_frame} tokens"
        )
    borders = [frame * num_patches_per_frame for frame in range(1, num_frames)]
    stamps = None if frame_times is None else _times(frame_times, num_frames, None).tolist()
    return write_mask_picture(rows.numpy(), title, path, borders=borders, stamps=stamps)


def not_newer(times: Float[Tensor, "*b t"] | Int[Tensor, "*b t"]) -> Bool[Tensor, "*b t t"]:
    """Frame by frame: the key's moment is not after the query's."""
    return times[..., None, :] <= times[..., :, None]


def within_window(times: Float[Tensor, "*b t"] | Int[Tensor, "*b t"], window_size: int) -> Bool[Tensor, "*b t t"]:
    """Frame by frame: fewer than `window_size` moments lie from the key to the query."""
    moment = moment_of(times)
    return moment[..., :, None] - moment[..., None, :] < window_size


def moment_of(times: Float[Tensor, "*b t"] | Int[Tensor, "*b t"]) -> Int[Tensor, "*b t"]:
    """How many different moments of the clip lie before each frame."""
    index = torch.arange(times.shape[-1], device=times.device)
    repeats = (times[..., None, :] == times[..., :, None]) & (index[None, :] < index[:, None])
    is_first = ~repeats.any(dim=-1)
    before = times[..., None, :] < times[..., :, None]
    return (before & is_first[..., None, :]).sum(dim=-1)


def _per_token(frames: Bool[Tensor, "t t"], num_patches: int) -> Bool[Tensor, "n n"]:
    return frames.repeat_interleave(num_patches, dim=0).repeat_interleave(num_patches, dim=1)


def _times(frame_times: FrameTimes | None, num_frames: int, device: Device) -> Tensor:
    if frame_times is None:
        return torch.arange(num_frames, device=device)
    times = torch.as_tensor(frame_times, device=device)
    if times.shape != (num_frames,) or not bool(torch.isfinite(times).all()):
        raise ValueError(
            f"frame_times are {times.tolist()}, expected {num_frames} finite numbers, one for each frame in its order"
        )
    return times


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}, expected at least 1")
