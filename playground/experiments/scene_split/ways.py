"""The arms as rows of a table: which training, and how its pictures are read afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llava.scene.token_cache import BackgroundTokenCache, CacheConfig, SimilarityConfig
from llava.utils.registry import Registry
from playground.experiments.scene_split.answers import Answerer

TRAININGS = ("full", "split")
CACHE_BYTES = 1 << 28
CACHES = ("none", "exact", "guarded")
MAX_STALE = 0.35
"""Share of a background's cells that may have changed; they are computed as objects. Of sixteen cells the cache's own
10 % would be a single one, and an object that moved covers up to four."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """
    Attributes:
        training: whose model answers, `full` or `split`.
        how, kept_background: see `Answerer`.
        reference: the way that it is compared with.
        tells: what a difference would mean.
    """

    name: str
    title: str
    training: str
    how: str
    tells: str
    cache: str = "none"
    kept_background: float = 0.0
    reference: str = "full"

    def __post_init__(self) -> None:
        if self.training not in TRAININGS or self.cache not in CACHES:
            raise ValueError(f"way '{self.name}': training is one of {TRAININGS}, cache one of {CACHES}")


WAYS: Registry[Way] = Registry("way")


def _add(name: str, title: str, training: str, how: str, tells: str, **more: Any) -> None:
    WAYS.register(name)(Way(name=name, title=title, training=training, how=how, tells=tells, **more))


_add("full", "full", "full", "whole", "every picture as a whole, no split anywhere")
_add("split", "split", "split", "split", "what encoding background and objects apart costs, trained for it")
_add("exact", "split + exact cache", "split", "split", "the same answers with known backgrounds reused", cache="exact")
_add("guarded", "split + guarded cache", "split", "split", "backgrounds that differ by noise reused too",
     cache="guarded")  # fmt: skip
_add("dropped", "random tokens, as many as a hit computes", "full", "drop",
     "equal cost without a cache: as many tokens as there are object tokens, drawn by lot")  # fmt: skip
_add("dropped_quarter", "random tokens, and a quarter of the background's", "full", "drop",
     "the same with a quarter of the background's number on top", kept_background=0.25)  # fmt: skip
_add("untrained", "split of the full model, not trained for it", "full", "split",
     "whether training for the split is needed")  # fmt: skip


def make_cache(kind: str, noise: float | None = None) -> BackgroundTokenCache | None:
    """A fresh cache.

    Args:
        noise: of a guarded one: standard deviation that the camera is believed to have, in grey levels.
    """
    if kind == "none":
        return None
    similarity = None
    if kind == "guarded":
        if noise is None:
            raise ValueError("a guarded cache needs the noise that it allows; give grey levels, 0 or more")
        similarity = SimilarityConfig(noise=noise, max_stale_fraction=MAX_STALE)
    return BackgroundTokenCache(CacheConfig(device_bytes=CACHE_BYTES, similarity=similarity))


def make_answerer(model: Any, way: Way, *, noise: float | None = None) -> Answerer:
    cache = make_cache(way.cache, noise if way.cache == "guarded" else None)
    return Answerer(model=model, how=way.how, cache=cache, kept_background=way.kept_background)
