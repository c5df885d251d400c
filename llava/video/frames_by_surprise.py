"""Frames and events chosen by surprise: pure functions of one number per frame, NaN = unknown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike


def select_by_surprise(surprise: ArrayLike, num_frames: int, *, keep_ends: bool = True, min_gap: int = 0) -> list[int]:
    """Indices of the most surprising frames in order of time; of equal ones the earlier.

    A frame whose surprise is unknown is taken last. Fewer than `num_frames` where the clip is short or min_gap leaves
    no room.

    Args:
        keep_ends: the last frame, and with two or more also the first, are taken whatever their surprise.
        min_gap: frames that lie between two chosen ones, at least.

    >>> select_by_surprise([float("nan"), 1, 5, 4, 0, 2], 3), select_by_surprise([0, 1, 5, 4, 0], 2, keep_ends=False)
    ([0, 2, 5], [2, 3])
    """
    values = _as_values(surprise)
    if num_frames < 1 or min_gap < 0:
        raise ValueError(f"num_frames is {num_frames} and min_gap {min_gap}, expected at least 1 and at least 0")
    ends = [len(values) - 1, 0][: min(num_frames, len(values))] if keep_ends else []
    by_value = np.argsort(np.where(np.isnan(values), np.inf, -values), kind="stable").tolist()
    chosen: list[int] = []
    for index in [*ends, *by_value]:
        if len(chosen) == num_frames:
            break
        if index not in chosen and all(abs(index - other) > min_gap for other in chosen):
            chosen.append(index)
    return sorted(chosen)


def cut_events(
    surprise: ArrayLike,
    *,
    threshold: float | int | None = None,
    quantile: float | int | None = None,
    min_length: int = 1,
) -> list[tuple[int, int]]:
    """Stretches (start, stop) of a clip, without gaps: a new one begins at each frame above the threshold.

    Args:
        quantile: the threshold is this quantile of the known values, 0 to 1; give it or threshold.
        min_length: frames of an event, at least, but for the last one; a cut that comes sooner is left out.

    >>> cut_events([float("nan"), 0.1, 0.1, 0.9, 0.1], threshold=0.5)
    [(0, 3), (3, 5)]
    """
    values = _as_values(surprise)
    if (threshold is None) == (quantile is None):
        raise ValueError(f"got threshold {threshold} and quantile {quantile}, expected exactly one of them")
    if min_length < 1:
        raise ValueError(f"min_length is {min_length}, expected at least 1")
    limit = _limit(values, quantile) if threshold is None else threshold
    cuts = [0]
    for index in range(1, len(values)):
        if values[index] > limit and index - cuts[-1] >= min_length:  # NaN compares as False
            cuts.append(index)
    return list(zip(cuts, [*cuts[1:], len(values)], strict=True))


def _limit(values: Float[np.ndarray, " t"], quantile: float | int | None) -> float:
    if quantile is None or not 0 <= quantile <= 1:
        raise ValueError(f"quantile is {quantile}, expected 0 to 1")
    known = values[~np.isnan(values)]
    return float(np.quantile(known, quantile)) if len(known) else np.inf


def _as_values(surprise: Sequence[float] | ArrayLike) -> Float[np.ndarray, " t"]:
    values = np.asarray(surprise, dtype=float)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"surprise has shape {list(values.shape)}, expected [frames] of one clip; give row by row")
    return values
