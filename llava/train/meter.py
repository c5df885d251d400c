"""What is counted between two log lines; read from the device only when a line is due."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from llava.utils.distributed import gather_objects


class TrainingMeter:
    """Sums of loss terms (kept on the device), tokens, samples and seconds spent waiting for data."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self.total_tokens = 0
        self._reset()

    def restart(self, total_tokens: int) -> None:
        """Begin to measure now; `total_tokens` is what earlier processes of the run have read."""
        self.total_tokens = total_tokens
        self._reset()

    def _reset(self) -> None:
        self._terms: dict[str, Tensor] = {}
        self._tokens = self._steps = 0
        self._wait = 0.0
        self._since = self._now()

    def add_terms(self, terms: Mapping[str, Tensor], scale: float) -> None:
        """Add one micro-batch; `scale` is what its loss was multiplied by."""
        for name, value in terms.items():
            value = value.detach() * scale
            self._terms[name] = self._terms[name] + value if name in self._terms else value

    def add_step(self, *, tokens: int, wait: float) -> None:
        """Add what one optimizer step reads."""
        self._tokens += tokens
        self._wait += wait
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Averages over steps, micro-batches and ranks since the last call. Every rank must call it."""
        seconds = max(self._now() - self._since, 1e-9)
        local = {name: float(value) / max(self._steps, 1) for name, value in self._terms.items()}
        ranks = gather_objects({"terms": local, "tokens": self._tokens, "wait": self._wait / seconds})
        tokens = sum(rank["tokens"] for rank in ranks)
        self.total_tokens += tokens
        names = dict.fromkeys(name for rank in ranks for name in rank["terms"])
        terms = {name: sum(rank["terms"].get(name, 0.0) for rank in ranks) / len(ranks) for name in names}
        self._reset()
        return {
            **terms,
            "tokens_per_second": round(tokens / seconds, 1),
            "data_wait": round(min(1.0, sum(rank["wait"] for rank in ranks) / len(ranks)), 4),
            **_memory(),
        }


def _memory() -> dict[str, float]:
    """Peak device memory in GiB; nothing on the CPU."""
    if not torch.cuda.is_available():
        return {}
    return {"peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2)}
