"""What the order of a run's samples follows from, and the sampler that gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llava.train.args import TrainingArguments
from llava.train.samplers import BatchPlan, LengthGroupedBatches, Mixture, PackedBatches, Shard, ShuffledBatches
from llava.utils.registry import suggest

SAMPLERS = ("shuffle", "length", "modality_length")


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    """Two runs with equal plans see the same samples in every optimizer step.

    Attributes:
        sampler: one of `SAMPLERS`; without a meaning where `tokens_per_batch` is above 0.
        sizes: samples of every part of the mixture.
        weights: of the parts, None: each sample once per epoch.
        groups: ranks, or groups of ranks that share a sequence, which are dealt different batches.
        accumulation: micro-batches of a group in an optimizer step.
    """

    sampler: str
    seed: int
    sizes: tuple[int, ...]
    weights: tuple[float, ...] | None
    batch_size: int
    tokens_per_batch: int
    groups: int
    accumulation: int

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler '{self.sampler}'{suggest(self.sampler, list(SAMPLERS))}")

    @classmethod
    def of(cls, args: TrainingArguments, mixture: Mixture, *, batch_size: int, groups: int) -> DataPlan:
        return cls(
            sampler=args.sampler,
            seed=args.seed if args.data_seed is None else args.data_seed,
            sizes=tuple(map(int, mixture.sizes)),
            weights=mixture.weights,
            batch_size=batch_size,
            tokens_per_batch=args.tokens_per_batch,
            groups=groups,
            accumulation=args.gradient_accumulation_steps,
        )

    @property
    def samples_per_step(self) -> int:
        """At most, over all groups; without a meaning where `tokens_per_batch` is above 0."""
        return self.batch_size * self.groups * self.accumulation

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> DataPlan:
        """From what `as_dict` gave, also after JSON made lists of tuples."""
        weights = facts["weights"]
        return cls(**{**facts, "sizes": tuple(facts["sizes"]), "weights": None if weights is None else tuple(weights)})


def build_plan(
    plan: DataPlan,
    *,
    rank: int = 0,
    lengths: Sequence[int] | np.ndarray | None = None,
    modalities: Sequence[int] | np.ndarray | None = None,
) -> BatchPlan:
    """The batches of one of the groups.

    Args:
        lengths: [n] tokens per sample, for packing and length grouping.
        modalities: [n] 0 = text only, 1 = with pictures, for the sampler modality_length.

    Raises:
        ValueError: the sampler needs lengths, which are not there.
    """
    mixture = Mixture(sizes=plan.sizes, weights=plan.weights)
    shard = Shard(rank=rank, world_size=plan.groups)
    if plan.tokens_per_batch > 0:
        known = _needed(lengths, "--tokens_per_batch")
        budget = plan.tokens_per_batch
        return PackedBatches(mixture, lengths=known, tokens_per_batch=budget, seed=plan.seed, shard=shard)
    if plan.sampler == "shuffle":
        return ShuffledBatches(mixture, batch_size=plan.batch_size, seed=plan.seed, shard=shard)
    return LengthGroupedBatches(
        mixture,
        lengths=_needed(lengths, f"--sampler {plan.sampler}"),
        batch_size=plan.batch_size,
        modalities=modalities if plan.sampler == "modality_length" else None,
        seed=plan.seed,
        shard=shard,
    )


def _needed(lengths: Sequence[int] | np.ndarray | None, why: str) -> Sequence[int] | np.ndarray:
    if lengths is None:
        raise ValueError(f"{why} needs the length of every sample; pass lengths= to the trainer")
    return lengths
