"""Differences of an arm to its baseline, paired by seed and by unseen house, and how sure they are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float

from llava.navigation.metrics import mcnemar_p_value

RESAMPLES = 4000
ACCEPTED_LOSS = 0.01
"""One point of success: what a default may cost at most."""
LENGTH_EDGES = (0.0, 4.0, 6.0, 8.0, math.inf)
"""Metres of the shortest way, for the gain by path length."""

PerEpisode = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Mean difference arm - baseline over S seeds x E episodes.

    Attributes:
        low, high: 95 % interval of the bootstrap that redraws seeds and episodes independently.
        per_seed: mean difference of each seed.
        only_baseline, only_arm, p_value: of zeros and ones: how often just one of the two succeeded, and McNemar's
            exact p-value over all pairs. It does not know that seeds share houses: where both disagree, the interval
            counts.
    """

    arm: float
    baseline: float
    difference: float
    low: float
    high: float
    per_seed: tuple[float, ...]
    num_episodes: int
    only_baseline: int | None = None
    only_arm: int | None = None
    p_value: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def paired(
    arm: Float[np.ndarray, "s e"], baseline: Float[np.ndarray, "s e"], *, resamples: int = RESAMPLES, seed: int = 0
) -> Paired:
    """Compares two tables of S seeds x E episodes, entry by entry.

    Raises:
        ValueError: they are empty or differ in shape, or hold values that are not finite.
    """
    arm, baseline = np.asarray(arm, dtype=float), np.asarray(baseline, dtype=float)
    if arm.shape != baseline.shape or arm.ndim != 2 or 0 in arm.shape:
        raise ValueError(
            f"the tables have shapes {arm.shape} and {baseline.shape}, expected twice [seeds, episodes]; compare the "
            "seeds and episodes that both have"
        )
    if not (np.isfinite(arm).all() and np.isfinite(baseline).all()):
        raise ValueError("a measure is not finite in some episode; leave that episode out of both tables")
    low, high = bootstrap(arm - baseline, resamples=resamples, seed=seed)
    counts: dict[str, Any] = {}
    if np.isin(arm, (0.0, 1.0)).all() and np.isin(baseline, (0.0, 1.0)).all():
        wins, losses = int((arm > baseline).sum()), int((arm < baseline).sum())
        counts = {"only_baseline": losses, "only_arm": wins, "p_value": mcnemar_p_value(losses, wins)}
    return Paired(
        arm=float(arm.mean()),
        baseline=float(baseline.mean()),
        difference=float((arm - baseline).mean()),
        low=low,
        high=high,
        per_seed=tuple((arm - baseline).mean(axis=1).tolist()),
        num_episodes=arm.shape[1],
        **counts,
    )


def bootstrap(
    differences: Float[np.ndarray, "s e"], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of the mean, seeds and episodes redrawn independently of each other.

    Both vary in a repetition: other seeds, other houses. With few seeds the interval is somewhat too narrow; the
    differences per seed stand beside it.
    """
    drawn_seeds, drawn_episodes = _draws(*differences.shape, resamples, seed)
    means = ((drawn_seeds @ differences) * drawn_episodes).sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


@lru_cache(maxsize=8)
def _draws(
    num_seeds: int, num_episodes: int, resamples: int, seed: int
) -> tuple[Float[np.ndarray, "b s"], Float[np.ndarray, "b e"]]:
    """Weights of every seed and every episode in each resample: how often it was drawn / how many were drawn."""
    generator = np.random.default_rng(seed)

    def weights(count: int) -> np.ndarray:
        drawn = generator.integers(count, size=(resamples, count)) + count * np.arange(resamples)[:, None]
        return np.bincount(drawn.ravel(), minlength=resamples * count).reshape(resamples, count) / count

    return weights(num_seeds), weights(num_episodes)


def tables_of(
    arm: Mapping[int, PerEpisode], baseline: Mapping[int, PerEpisode]
) -> tuple[Float[np.ndarray, "s e"], Float[np.ndarray, "s e"], list[str]]:
    """The seeds that both have and the episodes that all of them have, finite everywhere; and the episodes' names."""
    seeds = sorted(arm.keys() & baseline.keys())
    rows = [table[seed] for table in (arm, baseline) for seed in seeds]
    shared = [
        name for name in (rows[0] if rows else ()) if all(name in row and math.isfinite(row[name]) for row in rows)
    ]
    made = [np.array([[table[seed][name] for name in shared] for seed in seeds]) for table in (arm, baseline)]
    return made[0], made[1], shared


def compare(arm: Mapping[int, PerEpisode], baseline: Mapping[int, PerEpisode]) -> Paired | None:
    """seed -> episode -> value of both arms; None where no seed or no episode is shared."""
    ours, theirs, shared = tables_of(arm, baseline)
    return paired(ours, theirs) if shared else None


def compare_by_length(
    arm: Mapping[int, PerEpisode],
    baseline: Mapping[int, PerEpisode],
    shortest: PerEpisode,
    edges: Sequence[float] = LENGTH_EDGES,
) -> list[dict[str, Any]]:
    """The same per bin of the shortest way; bins without an episode are left out."""
    ours, theirs, shared = tables_of(arm, baseline)
    lengths = np.array([shortest[name] for name in shared])
    rows = []
    for low, high in itertools.pairwise(edges):
        inside = (lengths >= low) & (lengths < high)
        if inside.any():
            found = paired(ours[:, inside], theirs[:, inside])
            rows.append({"from": low, "to": high if math.isfinite(high) else None, **found.to_dict()})
    return rows


def verdict(found: Paired, accepted: float = ACCEPTED_LOSS) -> str:
    """Whether a rate is shown to be at most `accepted` worse than the baseline's."""
    if found.low >= -accepted:
        return "better" if found.low > 0 else "no worse"
    return "worse" if found.high < -accepted else "open"
