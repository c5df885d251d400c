"""Which frames of a clip are shown: rules that turn a number of frames into indices. Pictures are fetched elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

BLACK_FRAME = -1
"""Index that stands for a black picture where the clip has fewer frames than asked for."""

T = TypeVar("T")


def vlnce_indices(length: int, num_frames: int = 8) -> list[int]:
    """History evenly spread over all frames but the last, then the last one: the rule of NaVILA's navigation data.

    A clip shorter than `num_frames` is filled up with BLACK_FRAME at the front.

    >>> vlnce_indices(16, 8), vlnce_indices(2, 4)
    ([0, 2, 4, 6, 8, 10, 12, 15], [-1, -1, 0, 1])
    """
    _check(length, num_frames)
    if length < num_frames:
        return [BLACK_FRAME] * (num_frames - length) + list(range(length))
    history = np.linspace(0, length - 1, num=num_frames - 1, endpoint=False, dtype=int)
    return [*history.tolist(), length - 1]


def uniform_indices(length: int, num_frames: int) -> list[int]:
    """First and last frame and evenly spread ones between, rounded; a short clip repeats frames, an empty one is []."""
    _check(length, num_frames)
    return np.round(np.linspace(0, length - 1, num_frames)).astype(int).tolist() if length else []


def capped_indices(length: int, num_frames: int, *, video_fps: float | int = 0, max_fps: float | int = 0) -> list[int]:
    """Evenly spread frames, truncated, never repeated: fewer than asked where the clip is short.

    With max_fps > 0 a clip shorter than num_frames / max_fps seconds yields its seconds x max_fps frames, at least 2.
    """
    _check(length, num_frames)
    wanted = num_frames
    if max_fps > 0:
        if video_fps <= 0:
            raise ValueError(f"max_fps={max_fps} needs the clip's own rate, got video_fps={video_fps}")
        seconds = length / video_fps
        if seconds < num_frames / max_fps:
            wanted = max(int(seconds * max_fps), 2)
    if length <= wanted:
        return list(range(length))
    return np.linspace(0, length - 1, wanted, dtype=int).tolist()


def fps_indices(length: int, num_frames: int, *, video_fps: float | int, fps: float | int) -> list[int]:
    """One frame every 1/fps seconds from the start, the first `num_frames` of them."""
    _check(length, num_frames)
    if fps <= 0 or video_fps <= 0:
        raise ValueError(f"fps={fps} and video_fps={video_fps}, expected both above 0")
    times = np.arange(0, length / video_fps, 1 / fps)[:num_frames]
    return np.minimum(np.round(times * video_fps).astype(int), length - 1).tolist()


def pick(frames: Sequence[T], indices: Sequence[int], black: T) -> list[T]:
    """The chosen frames; `black` where an index is BLACK_FRAME."""
    return [black if index == BLACK_FRAME else frames[index] for index in indices]


def _check(length: int, num_frames: int) -> None:
    if length < 0 or num_frames < 1:
        raise ValueError(f"cannot choose {num_frames} of {length} frames; expected num_frames >= 1 and length >= 0")
