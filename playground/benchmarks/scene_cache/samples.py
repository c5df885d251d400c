"""One request's numbers, and the clock they are read from."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import StoppingCriteria


@dataclass
class Sample:
    """One request: seconds until its first token, and what its report says."""

    seconds: float
    computed: int
    prompt: int
    provenance: str = "-"
    stages: dict[str, float] | None = None

    @classmethod
    def of(cls, report: Any) -> Sample:
        """From a `SceneReport`."""
        provenance = report.pictures[0].background if report.pictures else "-"
        stages = dict(report.seconds)
        return cls(stages["first_token"], report.computed_tokens, sum(report.prompt_tokens), provenance, stages)


Cells = dict[tuple[str, str, str], list[Sample]]
"""Samples by share (as text, "-" where it does not matter), row and column."""


def add_sample(cells: Cells, share: str, row: str, column: str, sample: Sample) -> None:
    cells.setdefault((share, row, column), []).append(sample)


def median_seconds(samples: list[Sample]) -> float:
    return float(np.median([sample.seconds for sample in samples]))


class FirstToken(StoppingCriteria):
    """When the first token was there; stops nothing."""

    def __init__(self, device: str) -> None:
        self.device, self.seen = device, 0.0

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.seen = self.seen or now(self.device)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def now(device: str) -> float:
    """Seconds, with everything done that was asked of the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()
