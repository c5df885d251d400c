"""Navigation metrics as pure functions: one walk in, numbers out; many episodes in, means with intervals out.

The rules are those of VLN-CE on habitat-lab 0.1.7 (Euclidean step lengths, geodesic distances to the nearest goal,
strict radii, dense reference paths), with two deliberate differences: the SPL of a failed episode is 0 even where the
goal cannot be reached (the original gives NaN), and an episode that starts on its goal does not divide by zero.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from llava.utils.registry import Registry

SUCCESS_DISTANCE = 3.0
"""Metres from the goal within which (strictly) a stop counts in R2R-CE and RxR-CE."""

STUCK_WINDOW, STUCK_REACH = 30, 0.5
"""An agent that stayed within STUCK_REACH metres during its last STUCK_WINDOW actions is stuck."""

Numbers = dict[str, float | int]
"""Named values; counts are whole numbers."""

DTW_BACKENDS: Registry[Callable[[np.ndarray, np.ndarray], float]] = Registry("DTW backend")


@dataclass(frozen=True, kw_only=True)
class EpisodeTrace:
    """What one walk left behind: T low-level actions, T+1 positions (STOP is an action without motion).

    Attributes:
        positions: metres, any number of axes (VLN-CE: x, y up, z).
        distances: geodesic distance of each position to the nearest goal; inf where there is no way.
        stopped: True = the last action was STOP.
        collided: per position, whether the action before it hit something (the first is False).
        reference: dense reference path, None = nDTW and sDTW are NaN.
    """

    positions: Float[np.ndarray, "t d"]
    distances: Float[np.ndarray, " t"]
    stopped: bool
    collided: Bool[np.ndarray, " t"] | None = None
    reference: Float[np.ndarray, "m d"] | None = field(default=None)

    def __post_init__(self) -> None:
        if len(self.positions) == 0 or len(self.positions) != len(self.distances):
            raise ValueError(
                f"a trace needs one distance per position, at least the start's, got {len(self.positions)} and "
                f"{len(self.distances)}; record both at reset and after every action"
            )


# ------------------------------------------------------------------------------------------------------------ paths


def path_length(positions: Float[np.ndarray, "t d"]) -> float:
    """Sum of Euclidean step lengths in metres."""
    return float(np.linalg.norm(np.diff(positions, axis=0), axis=1).sum())


def drop_repeats(positions: Float[np.ndarray, "t d"]) -> Float[np.ndarray, "u d"]:
    """Without consecutive exact duplicates: turning on the spot adds nothing to a path."""
    moved = np.any(np.diff(positions, axis=0) != 0, axis=1)
    return positions[np.concatenate([[True], moved])]


def settle_distances(
    positions: Float[np.ndarray, "t d"], distances: Float[np.ndarray, " t"]
) -> Float[np.ndarray, " t"]:
    """Distances as habitat keeps them: a new value is read only when the agent moved by more than 1e-4 m."""
    settled, last = np.array(distances, dtype=float), 0
    for t in range(1, len(positions)):
        if np.allclose(positions[last], positions[t], atol=1e-4):
            settled[t] = settled[last]
        else:
            last = t
    return settled


def dtw_cost(cost: Float[np.ndarray, "n m"]) -> float:
    """Cheapest monotone alignment through a cost matrix, step set (1,0), (0,1), (1,1), all of weight 1. Exact."""
    before = list(np.cumsum(cost[0]).tolist())
    for row in cost[1:].tolist():
        left = before[0] + row[0]
        now = [left]
        for j in range(1, len(row)):
            best = before[j] if before[j] < before[j - 1] else before[j - 1]
            left = row[j] + (best if best < left else left)
            now.append(left)
        before = now
    return before[-1]


@DTW_BACKENDS.register("exact")
def exact_dtw(path: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m d"]) -> float:
    """Dynamic time warping with Euclidean local cost."""
    return dtw_cost(np.linalg.norm(path[:, None] - reference[None], axis=-1))


@DTW_BACKENDS.register("fastdtw")
def fast_dtw(path: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m d"]) -> float:
    """VLN-CE's approximation (radius 1): never below the exact value, up to 18 % above it on rough paths."""
    try:
        from fastdtw import fastdtw  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        raise ImportError("the DTW backend 'fastdtw' needs the package of that name: pip install fastdtw") from error
    return float(fastdtw(path, reference, dist=lambda a, b: float(np.linalg.norm(np.asarray(a) - np.asarray(b))))[0])


def ndtw(path: Any, reference: Any, *, threshold: float = SUCCESS_DISTANCE, backend: str = "exact") -> float:
    """exp(-DTW / (number of reference points * threshold)), in (0, 1]; drop the repeats of `path` before."""
    path, reference = np.asarray(path, dtype=float), np.asarray(reference, dtype=float)
    return math.exp(-DTW_BACKENDS[backend](path, reference) / (len(reference) * threshold))


# --------------------------------------------------------------------------------------------------------- one episode


def _spl(success: float, shortest: float, walked: float) -> float:
    longest = max(shortest, walked)
    if not success:
        return 0.0
    return 1.0 if longest == 0 else shortest / longest


def _soft_spl(final: float, shortest: float, walked: float) -> float:
    if not math.isfinite(shortest):
        return math.nan
    progress = max(0.0, 1 - final / shortest) if shortest else float(final == 0)
    return progress * _spl(1.0, shortest, walked)


def episode_metrics(
    trace: EpisodeTrace,
    *,
    success_distance: float = SUCCESS_DISTANCE,
    more_radii: Sequence[float] = (1.0,),
    dtw_backend: str = "exact",
) -> dict[str, float]:
    """All measures of one episode under VLN-CE's names, and success_1m, spl_1m, oracle_success_1m for `more_radii`."""
    distances = settle_distances(trace.positions, trace.distances)
    walked, shortest, final = path_length(trace.positions), float(distances[0]), float(distances[-1])
    result = {
        "distance_to_goal": final,
        "oracle_navigation_error": float(distances.min()),
        "path_length": walked,
        "shortest_path": shortest,
        "steps_taken": float(len(trace.positions) - 1),
        "stopped": float(trace.stopped),
        "softspl": _soft_spl(final, shortest, walked),
        "collisions": float(0 if trace.collided is None else np.sum(trace.collided)),
    }
    for radius, suffix in [(success_distance, ""), *((r, f"_{r:g}m") for r in more_radii)]:
        success = float(trace.stopped and final < radius)
        result[f"success{suffix}"] = success
        result[f"oracle_success{suffix}"] = float(distances.min() < radius)
        result[f"spl{suffix}"] = _spl(success, shortest, walked)
    result["oracle_spl"] = result["spl"]  # 0 before STOP, so the best SPL of a discrete agent is its last
    walk = drop_repeats(trace.positions)
    known = trace.reference is not None and len(trace.reference)
    result["ndtw"] = ndtw(walk, trace.reference, threshold=success_distance, backend=dtw_backend) if known else math.nan
    result["sdtw"] = result["success"] * result["ndtw"] if known else math.nan
    return result


def coverage_length_score(
    cost: Float[np.ndarray, "n m"], walked: float, reference_length: float, *, threshold: float = SUCCESS_DISTANCE
) -> float:
    """CLS: share of the reference that is covered, times how well the length fits; `cost` = path x reference."""
    coverage = float(np.mean(np.exp(-cost.min(axis=0) / threshold)))
    expected = coverage * reference_length
    if expected == 0 and walked == 0:
        return coverage
    return coverage * expected / (expected + abs(expected - walked))


def right_object(
    stop: Float[np.ndarray, " d"], objects: Float[np.ndarray, "k d"], goal: int, *, radius: float = 1.5
) -> dict[str, float]:
    """Did the agent choose the object that was meant? Call it only for agents that stopped.

    nearest_object: 1 when the goal object's centre is the nearest of all objects to the stop position (Euclidean).
    right_object: the same, and that centre is at most `radius` metres away.
    """
    distances = np.linalg.norm(objects - stop, axis=1)
    nearest = int(distances.argmin()) == goal
    return {"nearest_object": float(nearest), "right_object": float(nearest and distances[goal] <= radius)}


def failure_class(trace: EpisodeTrace, *, radius: float = SUCCESS_DISTANCE) -> str:
    """`success`, or why not: `passed by` (was within the radius and did not end there with a stop), `stopped too early`
    (a stop, never within the radius), `stuck` (no stop, hardly moved at the end), `never arrived` (all others)."""
    distances = settle_distances(trace.positions, trace.distances)
    if trace.stopped and distances[-1] < radius:
        return "success"
    if distances.min() < radius:
        return "passed by"
    if trace.stopped:
        return "stopped too early"
    last = trace.positions[-STUCK_WINDOW - 1 :]
    stuck = len(last) > STUCK_WINDOW and np.linalg.norm(last - last[-1], axis=1).max() < STUCK_REACH
    return "stuck" if stuck else "never arrived"


# -------------------------------------------------------------------------------------------------------- many episodes

DROPPED_WHEN_NOT_FINITE = {"distance_to_goal": "invalid_distances", "spl": "invalid_spls"}


def aggregate(results: Mapping[str, Mapping[str, Any]], *, expected: Iterable[str] | None = None) -> Numbers:
    """`mean_<measure>` over episodes, `total_episodes`, and how many values were not finite and left out of their mean.

    Raises:
        ValueError: no episode, or an episode of `expected` without a result.
    """
    if not results:
        raise ValueError("no episode has a result, expected at least one; run the evaluation first")
    missing = sorted(set(map(str, expected)) - set(map(str, results))) if expected is not None else []
    if missing:
        raise ValueError(
            f"{len(missing)} expected episodes have no result (first: {missing[0]}); finish the evaluation, or "
            "aggregate without `expected` to report the part that there is"
        )
    rows = list(results.values())
    names = [name for name, value in rows[0].items() if isinstance(value, (int, float))]
    summary: Numbers = {"total_episodes": len(rows), "invalid_spls": 0, "invalid_distances": 0}
    for name in names:
        values = np.array([float(row.get(name, math.nan)) for row in rows])
        finite = values[np.isfinite(values)]
        if len(finite) < len(values):
            summary[DROPPED_WHEN_NOT_FINITE.get(name, f"invalid_{name}")] = len(values) - len(finite)
        summary[f"mean_{name}"] = float(finite.mean()) if len(finite) else math.nan
    return summary


def aggregate_chunks(folder: str | Path, num_chunks: int, *, allow_missing: bool = False) -> Numbers:
    """Aggregate of the files `<split>_<num_chunks>-<index>.json` of a folder.

    Raises:
        FileNotFoundError: a chunk is missing and `allow_missing` is False.
    """
    results: dict[str, Any] = {}
    missing: list[int] = []
    for index in range(num_chunks):
        files = sorted(Path(folder).glob(f"*_{num_chunks}-{index}.json"))
        missing += [] if files else [index]
        for file in files:
            results |= json.loads(file.read_text())
    if missing and not allow_missing:
        raise FileNotFoundError(
            f"{folder}: chunks {missing} of {num_chunks} are missing; run them, or pass allow_missing=True for a part"
        )
    return aggregate(results) | {"missing_chunks": len(missing)}


def chunk_slices(num_items: int, num_chunks: int) -> list[slice]:
    """Contiguous slices that cover every item once; sizes differ by at most one, surplus chunks are empty."""
    if num_chunks < 1:
        raise ValueError(f"num_chunks is {num_chunks}, expected at least 1")
    edges = [num_items * i // num_chunks for i in range(num_chunks + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def wilson_interval(successes: float | int, total: int, *, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share; honest also near 0 and 1 and for few episodes."""
    if total < 1:
        raise ValueError(f"an interval needs at least one episode, got {total}")
    share, spread = successes / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(values: Any, *, samples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean over resampled episodes; non-finite values are left out."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (samples, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def interval(values: Any) -> tuple[float, float]:
    """Wilson for zeros and ones, bootstrap for everything else."""
    values = np.asarray(values, dtype=float)
    finite = values[np.isfinite(values)]
    if len(finite) and np.isin(finite, (0.0, 1.0)).all():
        return wilson_interval(float(finite.sum()), len(finite))
    return bootstrap_interval(values)


def success_by_length(
    results: Mapping[str, Mapping[str, Any]],
    *,
    measure: str = "success",
    edges: Sequence[float | int] = (0, 4, 6, 8, 10, 15, math.inf),
) -> list[Numbers]:
    """Share of successes per bin of the shortest path (metres); rows with `from`, `to`, `n`, `rate`, `low`, `high`."""
    table: list[Numbers] = []
    for low_edge, high_edge in itertools.pairwise(edges):
        hits = [float(r[measure]) for r in results.values() if low_edge <= r["shortest_path"] < high_edge]
        if hits:
            low, high = wilson_interval(sum(hits), len(hits))
            row: Numbers = {"from": low_edge, "to": high_edge, "n": len(hits), "rate": sum(hits) / len(hits)}
            table.append({**row, "low": low, "high": high})
    return table


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of equal success, from the episodes on which exactly one of two policies succeeds."""
    n, k = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return min(1.0, 2 * tail / 2**n)


def paired_comparison(
    first: Mapping[str, Mapping[str, Any]],
    second: Mapping[str, Mapping[str, Any]],
    measure: str = "success",
    *,
    allow_subset: bool = False,
) -> Numbers:
    """Two results on the same episodes: the mean difference second - first with a paired bootstrap interval, and, for a
    measure of zeros and ones, the exact McNemar p-value.

    Raises:
        ValueError: the episodes differ and `allow_subset` is False, or they have none in common.
    """
    common = [key for key in first if key in second]
    if not common or (not allow_subset and (len(common) < len(first) or len(common) < len(second))):
        raise ValueError(
            f"{len(first)} and {len(second)} episodes have {len(common)} in common, expected the same ones; evaluate "
            "both on one population, or pass allow_subset=True to compare the common ones"
        )
    a = np.array([float(first[key][measure]) for key in common])
    b = np.array([float(second[key][measure]) for key in common])
    low, high = bootstrap_interval(b - a)
    row: Numbers = {"n": len(common), "first": float(np.nanmean(a)), "second": float(np.nanmean(b))}
    row |= {"difference": float(np.nanmean(b - a)), "low": low, "high": high}
    if np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all():
        wins, losses = int(((b == 1) & (a == 0)).sum()), int(((a == 1) & (b == 0)).sum())
        row |= {"only_first": losses, "only_second": wins, "p_value": mcnemar_p_value(losses, wins)}
    return row
