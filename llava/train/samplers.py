"""Which samples form which batch: pure functions of (seed, epoch), the same on every rank.

Every sampler follows one scheme: *draw* the epoch's samples, put them in *order*, *cut* the order into batches,
*deal* the batches to the ranks. The number of batches is the same in every epoch and on every rank, so that a run can
be resumed at the exact sample by counting batches, and no rank waits for another one. All of it is flat arrays and
O(n log n): `playground/benchmarks/sampler_build.py` measures ten million samples.

Where an epoch has fewer samples than ranks need batches, the missing ones are *stand-ins*: a sample that is read again
and teaches nothing (`loader.py`), written as `~index`, a negative number.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from llava.train.packing import Batches, evenly, fill, kinds_of, lay_out, split_until
from llava.utils.registry import suggest

logger = logging.getLogger(__name__)

Order = np.ndarray
"""int32 (int64 from 2**31 samples on) [n], sample indices in the order of one epoch."""


def random_stream(*key: int) -> np.random.Generator:
    """A generator that depends on the key only (seed, epoch, part, ...), not on what was drawn before."""
    return np.random.default_rng(np.random.SeedSequence(key))


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The place of this process among `world_size` processes."""

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank}, expected 0 to {self.world_size - 1}")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Parts of a data set and how often each is seen in an epoch.

    Attributes:
        sizes: samples in every part, in the order in which they are concatenated.
        weights: 1.0 = every sample once per epoch, 0.5 = half of them (another half next time), 2.0 = each twice.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.weights is not None and len(self.weights) != len(self.sizes):
            raise ValueError(f"{len(self.weights)} weights for {len(self.sizes)} parts, expected one weight per part")
        for weight in self.weights or ():
            if not 0 <= weight < math.inf:
                raise ValueError(f"weights are {self.weights}, expected finite numbers of 0 (leave out) or more")
        if self.draws == 0:
            raise ValueError(
                f"parts of {self.sizes} samples with weights {self.weights} hold no sample to train on; add a data set "
                "that is not empty, or raise a weight"
            )

    @property
    def is_same_each_epoch(self) -> bool:
        """True where every epoch has the same samples, only in another order."""
        drawn = zip(self.sizes, self.draws_per_part, strict=True)
        return all(size == 0 or count % size == 0 for size, count in drawn)

    @property
    def index_type(self) -> type[np.signedinteger]:
        """Half the memory, and faster, wherever it is wide enough."""
        return np.int32 if sum(self.sizes) < 2**31 else np.int64

    @property
    def draws_per_part(self) -> list[int]:
        weights = self.weights or (1.0,) * len(self.sizes)
        return [round(n * w) for n, w in zip(self.sizes, weights, strict=True)]

    @property
    def draws(self) -> int:
        """Samples in one epoch."""
        return sum(self.draws_per_part)

    def draw(self, seed: int, epoch: int) -> Order:
        """The samples of an epoch, part by part: windows of an endless row of permutations, so that use stays even."""
        starts = np.cumsum((0, *self.sizes[:-1])).astype(self.index_type)
        parts = [
            start + _window(np.arange(size, dtype=self.index_type), epoch * count, count, (seed, 1, part))
            for part, (start, size, count) in enumerate(zip(starts, self.sizes, self.draws_per_part, strict=True))
        ]
        return np.concatenate(parts)


def _window(items: np.ndarray, start: int, count: int, key: tuple[int, ...]) -> Order:
    """Entries [start, start + count) of permutation 0, permutation 1, ... of the items laid end to end."""
    if count == 0:
        return items[:0]
    size = len(items)
    rounds = range(start // size, (start + count - 1) // size + 1)
    row = np.concatenate([random_stream(*key, r).permutation(items) for r in rounds])
    return row[start - rounds[0] * size :][:count]


class BatchPlan(Sampler[list[int]], ABC):
    """Base of all samplers: yields this rank's batches of the epoch set by `set_epoch`.

    Subclasses answer `batches(epoch)`: all batches of all ranks, their number `len(self)` times the world size.
    """

    def __init__(self, mixture: Mixture, *, seed: int, shard: Shard) -> None:
        self.mixture, self.seed, self.shard = mixture, seed, shard
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @abstractmethod
    def __len__(self) -> int:
        """Batches of one rank in every epoch."""

    @abstractmethod
    def batches(self, epoch: int) -> Batches:
        """All batches of all ranks."""

    def __iter__(self) -> Iterator[list[int]]:
        batches = self.batches(self.epoch)
        return (batches[turn] for turn in range(self.shard.rank, len(batches), self.shard.world_size))


class ShuffledBatches(BatchPlan):
    """Batches of `batch_size` shuffled samples; sizes differ by at most one instead of one small last batch."""

    def __init__(self, mixture: Mixture, *, batch_size: int, seed: int = 0, shard: Shard = Shard()) -> None:
        super().__init__(mixture, seed=seed, shard=shard)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        per_step = batch_size * shard.world_size
        self.num_steps = -(-mixture.draws // per_step)

    def __len__(self) -> int:
        return self.num_steps

    def order(self, epoch: int) -> Order:
        return random_stream(self.seed, 2, epoch).permutation(self.mixture.draw(self.seed, epoch))

    def batches(self, epoch: int) -> Batches:
        slots = self.num_steps * self.shard.world_size
        return evenly(with_stand_ins(self.order(epoch), slots), slots)


class LengthGroupedBatches(ShuffledBatches):
    """Shuffled, but samples of a batch have similar lengths, so that little is padded.

    Samples are sorted by length inside pools of `pool_steps` steps; then the steps are shuffled. With `modalities`,
    batches hold one modality each, except where two modalities meet.

    Args:
        lengths: [n] tokens of every sample.
        modalities: [n] small ints (0 = text only, 1 = pictures, ...), or None.
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        modalities: Sequence[int] | np.ndarray | None = None,
        pool_steps: int = 50,
        seed: int = 0,
        shard: Shard = Shard(),
    ) -> None:
        super().__init__(mixture, batch_size=batch_size, seed=seed, shard=shard)
        self.lengths = _checked_lengths(lengths, mixture)
        self.modalities = None if modalities is None else np.asarray(modalities, np.uint8)
        if self.modalities is not None and len(self.modalities) != len(self.lengths):
            raise ValueError(
                f"{len(self.modalities)} modalities for {len(self.lengths)} samples, expected one per sample"
            )
        self.pool = pool_steps * batch_size * shard.world_size

    def order(self, epoch: int) -> Order:
        order = super().order(epoch)
        if self.modalities is not None:
            order = order[np.argsort(self.modalities[order], kind="stable")]
        return order[longest_first(self.lengths[order], self.pool)]

    def batches(self, epoch: int) -> Batches:
        steps = random_stream(self.seed, 3, epoch).permutation(self.num_steps)
        ranks = np.arange(self.shard.world_size)
        return super().batches(epoch).taking_turns((steps[:, None] * self.shard.world_size + ranks).ravel())


class PackedBatches(BatchPlan):
    """Batches whose token lengths sum to at most `tokens_per_batch`; every drawn sample exactly once per epoch.

    Every batch mixes the lengths of the epoch (`packing.py`). A sample longer than the budget gets one of its own.
    Weights that draw other samples in every epoch change how many batches these need: the number is fixed by epoch 0
    plus a reserve; an epoch with fewer splits batches, one with more raises the budget as little as makes it fit.
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        lengths: Sequence[int] | np.ndarray,
        tokens_per_batch: int,
        seed: int = 0,
        shard: Shard = Shard(),
    ) -> None:
        super().__init__(mixture, seed=seed, shard=shard)
        if tokens_per_batch < 1:
            raise ValueError(f"tokens_per_batch is {tokens_per_batch}, expected at least 1")
        self.lengths = _checked_lengths(lengths, mixture)
        self.tokens_per_batch = tokens_per_batch
        longest = int(self.lengths.max())
        if longest > tokens_per_batch:
            logger.warning(
                "%d of %d samples are longer than tokens_per_batch %d (longest %d); each gets a batch of its own",
                int((self.lengths > tokens_per_batch).sum()), len(self.lengths), tokens_per_batch, longest,
            )  # fmt: skip
        self.num_steps = self._count_steps()

    def _count_steps(self) -> int:
        """Steps of an epoch, with a reserve where epochs differ, never so many that a batch would be empty."""
        drawn = self.lengths[self.mixture.draw(self.seed, 0)]
        needed = sum(batches for _, batches in fill(*kinds_of(drawn), self.tokens_per_batch))
        world = self.shard.world_size
        enough = -(-needed // world)
        if self.mixture.is_same_each_epoch:
            return enough
        return max(enough, min(-(-(needed + needed // 200 + 1) // world), self.mixture.draws // world))

    def __len__(self) -> int:
        return self.num_steps

    def batches(self, epoch: int) -> Batches:
        slots = self.num_steps * self.shard.world_size
        drawn = random_stream(self.seed, 2, epoch).permutation(self.mixture.draw(self.seed, epoch))
        packed = split_until(self._pack(drawn, slots), slots)
        if len(packed) < slots:  # one sample each, and still too few
            packed = evenly(with_stand_ins(packed.samples, slots), slots)
        return packed.taking_turns(random_stream(self.seed, 3, epoch).permutation(slots))

    def _pack(self, drawn: Order, slots: int) -> Batches:
        """At most `slots` batches, of more tokens where the samples of this epoch do not fit otherwise."""
        own, budget = self.lengths[drawn], self.tokens_per_batch
        lengths, counts = kinds_of(own)
        recipes = fill(lengths, counts, budget)
        while sum(batches for _, batches in recipes) > slots:
            budget += max(1, budget // 200)
            recipes = fill(lengths, counts, budget)
        if budget > self.tokens_per_batch:
            logger.warning("samples of this epoch need batches of %d tokens, not %d", budget, self.tokens_per_batch)
        return lay_out(drawn[longest_first(own)], counts, recipes)


def longest_first(lengths: np.ndarray, pool: int | None = None) -> np.ndarray:
    """Places of the longest samples first, of equal ones in the order given; apart in each run of `pool` samples."""
    short = lengths.max() - lengths
    short = short.astype(np.uint16) if short.max() < 2**16 else short  # 16 bits are sorted several times faster
    pool = len(short) if pool is None else pool
    whole = len(short) - len(short) % pool
    begins = np.arange(0, whole, pool)[:, None]
    places = np.argsort(short[:whole].reshape(-1, pool), axis=1, kind="stable") + begins
    return np.concatenate([places.ravel(), np.argsort(short[whole:], kind="stable") + whole])


def with_stand_ins(order: Order, slots: int) -> Order:
    """The samples, and one stand-in for each that is missing to `slots`."""
    missing = slots - len(order)
    return order if missing <= 0 else np.concatenate([order, ~np.resize(order, missing)])


def _checked_lengths(lengths: Sequence[int] | np.ndarray, mixture: Mixture) -> np.ndarray:
    lengths = np.asarray(lengths)
    if len(lengths) != sum(mixture.sizes):
        raise ValueError(f"{len(lengths)} lengths for {sum(mixture.sizes)} samples, expected one per sample")
    if lengths.min() < 0:
        raise ValueError(f"the length of sample {int(lengths.argmin())} is {lengths.min()}, expected none below 0")
    return np.maximum(lengths, 1).astype(np.int32 if lengths.max() < 2**31 else np.int64)


def parse_weights(text: str | None, names: Sequence[str]) -> tuple[float, ...] | None:
    """`"r2r=0.5,human=2"` -> one weight per name, 1.0 where nothing is said."""
    if not text:
        return None
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in names:
            raise ValueError(f"mixture_weights names '{name}', which is not in the mixture{suggest(name, list(names))}")
        weights[name] = _weight(value, part)
    return tuple(weights.get(name, 1.0) for name in names)


def _weight(text: str, part: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise ValueError(f"mixture_weights has {part.strip()!r}, expected name=number with a number of 0 or more")
    return value
