"""What is counted between two log lines; read from the device only when a line is due."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llava.train.peak import PeakFlops
from llava.utils.distributed import gather_objects


@dataclass
class StepRecord:
    """One optimizer step as this rank saw it.

    Attributes:
        wait: seconds that the loop stood still because no batch was there.
        terms: loss terms, still on the device; their mean over ranks is the loss of the step.
    """

    tokens: int = 0
    samples: int = 0
    flops: float = 0.0
    wait: float = 0.0
    sample_ids: Sequence[str] = ()
    terms: dict[str, Tensor] = field(default_factory=dict)


class TrainingMeter:
    """Sums of loss terms (kept on the device), tokens, samples, model FLOPs and seconds spent waiting for data.

    Args:
        now: the clock, replaceable in tests.

    Attributes:
        peak: what one device could compute; None leaves `mfu` out.
        step: the step that is being computed, or was computed last.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self.total_tokens = 0
        self.peak: PeakFlops | None = None
        self._reset()

    def restart(self, total_tokens: int) -> None:
        """Begin to measure now; `total_tokens` is what earlier processes of the run have read."""
        self.total_tokens = total_tokens
        self._reset()

    def _reset(self) -> None:
        self.step = StepRecord()
        self._terms: dict[str, Tensor] = {}
        self._tokens = self._samples = self._steps = 0
        self._wait = self._flops = self._paused = 0.0
        self._since = self._now()

    def add_step(
        self, *, tokens: int, wait: float, samples: int = 0, flops: float = 0.0, sample_ids: Sequence[str] = ()
    ) -> None:
        """Begin an optimizer step with what it reads: all its micro-batches on this rank."""
        self.step = StepRecord(tokens=tokens, samples=samples, flops=flops, wait=wait, sample_ids=sample_ids)
        self._tokens += tokens
        self._samples += samples
        self._flops += flops
        self._wait += wait
        self._steps += 1

    def add_terms(self, terms: Mapping[str, Tensor], scale: float) -> None:
        """Add one micro-batch; `scale` is what its loss was multiplied by."""
        for name, value in terms.items():
            value = value.detach() * scale
            for sums in (self._terms, self.step.terms):
                sums[name] = sums[name] + value if name in sums else value

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is no training (saving, evaluation) counts in no rate and in no share."""
        start = self._now()
        try:
            yield
        finally:
            self._paused += self._now() - start

    def read(self) -> dict[str, float]:
        """Means over steps, micro-batches and ranks since the last call. Every rank must call it.

        tokens_per_second and samples_per_second are of all ranks together, padding left out; mfu is per device;
        memory is that of the fullest rank.
        """
        seconds = max(self._now() - self._since - self._paused, 1e-9)
        local = {name: float(value) / max(self._steps, 1) for name, value in self._terms.items()}
        counts = {"tokens": self._tokens, "samples": self._samples, "flops": self._flops, "seconds": seconds}
        ranks = gather_objects({**counts, "terms": local, "wait": self._wait / seconds, "memory": memory()})
        tokens, samples, flops = (sum(rank[name] for rank in ranks) for name in ("tokens", "samples", "flops"))
        seconds = max(rank["seconds"] for rank in ranks)
        self.total_tokens += tokens
        names = dict.fromkeys(name for rank in ranks for name in rank["terms"])
        terms = {name: sum(rank["terms"].get(name, 0.0) for rank in ranks) / len(ranks) for name in names}
        self._reset()
        return {
            **terms,
            "tokens_per_second": round(tokens / seconds, 1),
            "samples_per_second": round(samples / seconds, 2),
            **self._utilisation(flops / seconds / len(ranks)),
            "data_wait": round(min(1.0, sum(rank["wait"] for rank in ranks) / len(ranks)), 4),
            **{name: max(rank["memory"][name] for rank in ranks) for name in ranks[0]["memory"]},
        }

    def _utilisation(self, flops_per_second: float) -> dict[str, float]:
        """tflops_per_device: model FLOPs that were needed, in 1e12 a second; mfu: their share of the peak."""
        if not flops_per_second:
            return {}
        achieved = {"tflops_per_device": float(f"{flops_per_second / 1e12:.4g}")}
        return achieved if self.peak is None else {**achieved, "mfu": round(flops_per_second / self.peak.flops, 4)}


def memory() -> dict[str, float]:
    """Peaks of this process so far in GiB: resident host memory, and allocated memory of the device if there is one."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    found = {"peak_host_memory_gib": round(host / 2**30, 2)}
    if torch.cuda.is_available():
        found["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return found
