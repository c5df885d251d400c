"""Two views of one clip: fast = the newest frames, dense; slow = few frames spread over the whole clip."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor


class FastSlow(NamedTuple):
    """Indices of the frames of both pathways, each in order of time and without repeats."""

    fast: list[int]
    slow: list[int]


def fast_slow_indices(
    num_frames: int, *, fast_stride: int = 1, slow_stride: int = 4, num_fast: int = 8, num_slow: int = 8
) -> FastSlow:
    """Which frames each pathway shows; a clip with fewer frames than asked for yields fewer, none twice.

    Fast: back from the newest frame in steps of fast_stride. Slow: multiples of slow_stride, thinned evenly to
    num_slow; a clip too short for that many is spread evenly without regard to slow_stride.

    >>> fast_slow_indices(16)
    FastSlow(fast=[8, 9, 10, 11, 12, 13, 14, 15], slow=[0, 2, 4, 6, 8, 10, 12, 14])
    >>> fast_slow_indices(3)
    FastSlow(fast=[0, 1, 2], slow=[0, 1, 2])
    """
    values = {"fast_stride": fast_stride, "slow_stride": slow_stride, "num_fast": num_fast, "num_slow": num_slow}
    for name, value in {"num_frames": num_frames, **values}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    fast = list(range(num_frames - 1, -1, -fast_stride))[:num_fast][::-1]
    on_stride = list(range(0, num_frames, slow_stride))
    candidates = on_stride if len(on_stride) >= num_slow else list(range(num_frames))
    count = min(num_slow, len(candidates))
    return FastSlow(fast=fast, slow=[candidates[place * len(candidates) // count] for place in range(count)])


def preset_for_length(num_frames: int) -> dict[str, Any]:
    """Settings that suit a clip of so many frames, as keys of `ReconstructionConfig`."""
    if num_frames < 30:
        return {"use_fast_slow_frames": False}
    if num_frames <= 60:
        return {"use_fast_slow_frames": True, "num_fast": 8, "num_slow": 8, "fast_stride": 1, "slow_stride": 4}
    return {"use_fast_slow_frames": True, "num_fast": 16, "num_slow": 8, "fast_stride": 2, "slow_stride": 8}


class VideoFrameSampler:
    """Fast and slow frames of a batch of clips, and both as one sequence.

    Works on whatever has a row per frame: pictures [B, T, C, H, W], time stamps [B, T], positions [B, T]. Sample and
    merge the time stamps in the same way as the pictures: after merging, the order of the frames is not that of time.
    """

    def sample_fast_slow_frames(
        self,
        video_frames: Shaped[Tensor, "b t *rest"],
        fast_stride: int = 1,
        slow_stride: int = 4,
        num_fast: int = 8,
        num_slow: int = 8,
    ) -> tuple[Shaped[Tensor, "b f *rest"], Shaped[Tensor, "b s *rest"]]:
        """(fast, slow); fewer frames than asked for where the clip is short (`fast_slow_indices`)."""
        if video_frames.ndim < 2:
            raise ValueError(f"video_frames has shape {list(video_frames.shape)}, expected [B, T, ...]")
        rule = {"fast_stride": fast_stride, "slow_stride": slow_stride, "num_fast": num_fast, "num_slow": num_slow}
        chosen = fast_slow_indices(video_frames.shape[1], **rule)
        return video_frames[:, chosen.fast], video_frames[:, chosen.slow]

    def merge_fast_slow_frames(
        self,
        fast: Shaped[Tensor, "b f *rest"],
        slow: Shaped[Tensor, "b s *rest"],
        merge_strategy: str = "concat",
    ) -> Shaped[Tensor, "b n *rest"]:
        """concat: slow, then fast. interleave: slow, fast, slow, fast ..., and the rest of the longer pathway."""
        order = merged_order(fast.shape[1], slow.shape[1], merge_strategy)
        return torch.cat([slow, fast], dim=1)[:, order]


def merged_order(num_fast: int, num_slow: int, merge_strategy: str) -> list[int]:
    """The order in which frames laid out as [slow | fast] follow each other.

    >>> merged_order(3, 2, "interleave")
    [0, 2, 1, 3, 4]
    """
    slow, fast = list(range(num_slow)), list(range(num_slow, num_slow + num_fast))
    if merge_strategy == "concat":
        return slow + fast
    if merge_strategy != "interleave":
        raise ValueError(f"merge_strategy is {merge_strategy!r}, expected 'concat' or 'interleave'")
    shared = min(num_slow, num_fast)
    pairs = [index for pair in zip(slow, fast, strict=False) for index in pair]
    return pairs + slow[shared:] + fast[shared:]
