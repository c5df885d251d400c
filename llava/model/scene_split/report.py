"""Where an answer comes from: what a cache gave for every picture, what was computed, and how long each stage took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import StoppingCriteria

STAGES = ("detector", "resize", "lookup", "encoder", "prefill")
"""What happens before the first token, in this order; each counts its own time only."""


@dataclass(frozen=True, kw_only=True)
class PictureReport:
    """One picture of a request.

    Attributes:
        row: of the batch.
        picture_id: the caller's name for it.
        background: provenance of the background as `BackgroundTokenCache` tells it; "no cache" without one, "shared"
            for a frame whose background came with an earlier frame of its clip.
        objects: "exact_kv" where their keys and values were known too, else "computed".
        tier: where the background was found.
        num_background, num_objects: tokens; separators are not counted.
        saved_tokens: positions of the language model that were not computed, text before the picture included.
        detector_ran: for this picture.
        detector_failure: why it has no answer; the whole picture was then read as one object.
        hit_map: "reused", "recomputed" or "stale" for every cell [rows, columns].
    """

    row: int
    picture_id: str | None
    background: str
    objects: str
    tier: str | None
    num_background: int
    num_objects: int
    saved_tokens: int
    detector_ran: bool
    hit_map: np.ndarray = field(repr=False, compare=False)
    detector_failure: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "hit_map"}


@dataclass(frozen=True, kw_only=True)
class SceneReport:
    """One call of `generate`.

    Attributes:
        prompt_tokens: of each row; cached_tokens: of those, the ones whose keys and values were not computed.
        seconds: by stage of `STAGES`, and "first_token" and "total" since the call began. On a GPU stages are
            measured with the device idle in between where provenance was asked for.
    """

    pictures: tuple[PictureReport, ...]
    prompt_tokens: tuple[int, ...]
    cached_tokens: tuple[int, ...]
    seconds: dict[str, float]

    @property
    def computed_tokens(self) -> int:
        return sum(self.prompt_tokens) - sum(self.cached_tokens)

    def to_json(self) -> dict[str, Any]:
        return {
            "pictures": [picture.to_json() for picture in self.pictures],
            "prompt_tokens": list(self.prompt_tokens),
            "cached_tokens": list(self.cached_tokens),
            "seconds": {name: round(value, 6) for name, value in self.seconds.items()},
        }


@dataclass(frozen=True, kw_only=True)
class SceneAnswer:
    """What `generate` and `generate_content` return with `return_provenance=True`.

    Attributes:
        output: what they return without it: new token ids, transformers' output object, or the text.
    """

    output: Any
    report: SceneReport


class Stopwatch:
    """Seconds by stage, each without the stages inside it."""

    def __init__(self, device: torch.device, *, waits_for_device: bool) -> None:
        self._device = device if waits_for_device and device.type == "cuda" else None
        self._begin = time.perf_counter()
        self._inner = [0.0]
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = self._now()
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = self._now() - begin
            self.seconds[name] += spent - self._inner.pop()
            self._inner[-1] += spent

    def mark(self, name: str) -> None:
        """Seconds since the call began, the first time only."""
        self.seconds.setdefault(name, self._now() - self._begin)

    def _now(self) -> float:
        if self._device is not None:
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class FirstTokenClock(StoppingCriteria):
    """Stops nothing: notes when the first token is there."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch, self._begin = watch, time.perf_counter()
        self._is_first = True

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        if self._is_first:
            self._is_first = False
            self._watch.mark("first_token")
            self._watch.seconds["prefill"] = time.perf_counter() - self._begin
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
