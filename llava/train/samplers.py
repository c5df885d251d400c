"""Which samples form which batch: pure functions of (seed, epoch), the same on every rank.

Every sampler follows one scheme: *draw* the epoch's samples, put them in *order*, *cut* the order into batches,
*deal* the batches to the ranks. The number of batches is the same in every epoch and on every rank, so that a run can
be resumed at the exact sample by counting batches, and no rank waits for another one.
"""

from __future__ import annotations

import bisect
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from llava.utils.registry import suggest

logger = logging.getLogger(__name__)

Order = np.ndarray
"""int64 [n], sample indices in the order of one epoch."""


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
        if min(self.weights or (1.0,)) < 0:
            raise ValueError(f"weights are {self.weights}, expected none below 0")
        if self.draws == 0:
            raise ValueError(f"parts of {self.sizes} samples with weights {self.weights} hold no sample to train on")

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
        starts = np.cumsum((0, *self.sizes[:-1]))
        parts = [
            start + _window(size, epoch * count, count, (seed, 1, part))
            for part, (start, size, count) in enumerate(zip(starts, self.sizes, self.draws_per_part, strict=True))
        ]
        return np.concatenate(parts)


def _window(size: int, start: int, count: int, key: tuple[int, ...]) -> Order:
    """Entries [start, start + count) of permutation 0, permutation 1, ... of `size` items laid end to end."""
    if count == 0:
        return np.empty(0, np.int64)
    rounds = range(start // size, (start + count - 1) // size + 1)
    row = np.concatenate([random_stream(*key, r).permutation(size) for r in rounds])
    return row[start - rounds[0] * size :][:count]


class BatchPlan(Sampler[list[int]], ABC):
    """Base of all samplers: yields this rank's batches of the epoch set by `set_epoch`.

    Subclasses answer `batches(epoch)`: all batches of all ranks, their number a multiple of the world size.
    """

    def __init__(self, mixture: Mixture, *, seed: int, shard: Shard) -> None:
        self.mixture, self.seed, self.shard = mixture, seed, shard
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @abstractmethod
    def batches(self, epoch: int) -> list[list[int]]:
        """All batches of all ranks."""

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches(self.epoch)[self.shard.rank :: self.shard.world_size]


class ShuffledBatches(BatchPlan):
    """Batches of `batch_size` shuffled samples; sizes differ by at most one instead of one small last batch.

    Every drawn sample comes exactly once per epoch over all ranks. Only where there are fewer samples than batches
    (batch_size 1 on several ranks) are up to world_size - 1 of them repeated, because every rank needs a batch.
    """

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

    def batches(self, epoch: int) -> list[list[int]]:
        order = self.order(epoch)
        slots = self.num_steps * self.shard.world_size
        if len(order) < slots:
            order = np.resize(order, slots)
        return [piece.tolist() for piece in np.array_split(order, slots)]


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
        self.modalities = np.zeros_like(self.lengths) if modalities is None else np.asarray(modalities)
        self.pool = pool_steps * batch_size * shard.world_size

    def order(self, epoch: int) -> Order:
        order = super().order(epoch)
        pool_of = np.arange(len(order)) // self.pool
        return order[np.lexsort((-self.lengths[order], pool_of, self.modalities[order]))]

    def batches(self, epoch: int) -> list[list[int]]:
        dealt = super().batches(epoch)
        world = self.shard.world_size
        steps = random_stream(self.seed, 3, epoch).permutation(self.num_steps)
        return [dealt[step * world + rank] for step in steps for rank in range(world)]


class PackedBatches(BatchPlan):
    """Batches whose token lengths sum to at most `tokens_per_batch`; every drawn sample exactly once per epoch.

    Best fit, longest first, inside windows of shuffled samples: O(n log n). A sample longer than the budget gets a
    batch of its own. The number of batches is fixed by epoch 0 plus a small reserve: an epoch that packs tighter
    splits batches, one that would need more uses epoch 0's batches in a new order.
    """

    window = 4096

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
        """Steps of an epoch, with half a per cent in reserve, never so many that a batch would be empty."""
        needed = len(self._pack(0))
        wanted = -(-(needed + needed // 200) // self.shard.world_size)
        possible = self.mixture.draws // self.shard.world_size
        return max(1, min(wanted, possible)) if possible * self.shard.world_size >= needed else wanted

    def __len__(self) -> int:
        return self.num_steps

    def _pack(self, epoch: int) -> list[list[int]]:
        rng = random_stream(self.seed, 2, epoch)
        order = rng.permutation(self.mixture.draw(self.seed, epoch))
        packed: list[list[int]] = []
        for start in range(0, len(order), self.window):
            packed += pack_to_budget(order[start : start + self.window], self.lengths, self.tokens_per_batch)
        return packed

    def batches(self, epoch: int) -> list[list[int]]:
        slots = self.num_steps * self.shard.world_size
        packed = self._pack(epoch)
        if len(packed) > slots:
            packed = self._pack(0)
        packed = split_until(packed, slots)
        return [packed[i] for i in random_stream(self.seed, 3, epoch).permutation(len(packed))]


def pack_to_budget(order: Order, lengths: np.ndarray, budget: int) -> list[list[int]]:
    """Best-fit decreasing: the longest first, each into the fullest batch that still takes it."""
    batches: list[list[int]] = []
    room: list[tuple[int, int]] = []  # sorted (free tokens, batch)
    for index in order[np.argsort(-lengths[order], kind="stable")].tolist():
        length = int(lengths[index])
        place = bisect.bisect_left(room, (length, -1))
        if place == len(room):
            batches.append([index])
            bisect.insort(room, (budget - length, len(batches) - 1))
            continue
        free, batch = room.pop(place)
        batches[batch].append(index)
        bisect.insort(room, (free - length, batch))
    return batches


def split_until(batches: list[list[int]], count: int) -> list[list[int]]:
    """Halve the batches with the most samples until there are `count`; single samples are repeated only at the end."""
    batches = sorted((list(b) for b in batches), key=len)
    while len(batches) < count and len(batches[-1]) > 1:
        largest = batches.pop()
        for half in (largest[::2], largest[1::2]):
            bisect.insort(batches, half, key=len)
    return batches + [list(batches[i % len(batches)]) for i in range(count - len(batches))]


def _checked_lengths(lengths: Sequence[int] | np.ndarray, mixture: Mixture) -> np.ndarray:
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) != sum(mixture.sizes):
        raise ValueError(f"{len(lengths)} lengths for {sum(mixture.sizes)} samples, expected one per sample")
    return lengths


def parse_weights(text: str | None, names: Sequence[str]) -> tuple[float, ...] | None:
    """`"r2r=0.5,human=2"` -> one weight per name, 1.0 where nothing is said."""
    if not text:
        return None
    weights: Mapping[str, float] = {
        n.strip(): float(w) for n, _, w in (part.partition("=") for part in text.split(","))
    }
    for name in weights:
        if name not in names:
            raise ValueError(f"mixture_weights names '{name}', which is not in the mixture{suggest(name, list(names))}")
    return tuple(weights.get(name, 1.0) for name in names)
