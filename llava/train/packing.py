"""Samples into batches of a token budget: best fit, longest first, counted by length instead of sample by sample.

Samples of one length are alike, so whole groups of batches are filled at once. The batches are those of the classical
algorithm (each sample into the fullest batch that still takes it); the decisions grow with the number of different
lengths, not with the number of samples.

    lengths, counts = kinds_of(lengths_of_samples)             # longest first
    recipes = fill(lengths, counts, budget)                    # which lengths share a batch
    batches = lay_out(samples_longest_first, counts, recipes)  # which samples do
"""

from __future__ import annotations

import bisect
import heapq
from dataclasses import dataclass

import numpy as np

Recipe = tuple[tuple[int, int], ...]
"""What one batch holds: (kind of length, how many samples of it)."""


@dataclass(frozen=True, kw_only=True)
class Batches:
    """All batches of an epoch in flat arrays: ten million samples are 40 MB and no Python objects.

    Attributes:
        samples: int [n], the batches end to end.
        starts: int64 [batches + 1], where each begins; the last is n.
        turns: int64 [batches], which batch comes when.
    """

    samples: np.ndarray
    starts: np.ndarray
    turns: np.ndarray

    @classmethod
    def in_order(cls, samples: np.ndarray, starts: np.ndarray) -> Batches:
        return cls(samples=samples, starts=starts, turns=np.arange(len(starts) - 1))

    def taking_turns(self, turns: np.ndarray) -> Batches:
        return Batches(samples=self.samples, starts=self.starts, turns=turns)

    def __len__(self) -> int:
        return len(self.turns)

    def __getitem__(self, turn: int) -> list[int]:
        batch = self.turns[turn]
        return self.samples[self.starts[batch] : self.starts[batch + 1]].tolist()


def evenly(samples: np.ndarray, count: int) -> Batches:
    """`count` batches of consecutive samples whose sizes differ by at most one, the larger ones first."""
    size, larger = divmod(len(samples), count)
    place = np.arange(count + 1)
    return Batches.in_order(samples, place * size + np.minimum(place, larger))


def kinds_of(lengths: np.ndarray) -> tuple[list[int], list[int]]:
    """The different lengths, longest first, and how many samples have each."""
    if lengths.max(initial=0) < 2**24:  # a table of all lengths is several times faster than sorting
        table = np.bincount(lengths)
        kinds = table.nonzero()[0]
        counts = table[kinds]
    else:
        kinds, counts = np.unique(lengths, return_counts=True)
    return kinds[::-1].tolist(), counts[::-1].tolist()


def fill(lengths: list[int], counts: list[int], budget: int) -> list[tuple[Recipe, int]]:
    """Recipes of batches and how many batches follow each.

    Args:
        lengths: the different lengths, longest first.
        counts: samples of each length, all above 0.
    """
    groups: dict[int, list[tuple[Recipe, int]]] = {}  # by room left: (recipe, batches)
    rooms: list[int] = []  # the keys of `groups`, sorted

    def put(room: int, recipe: Recipe, batches: int) -> None:
        if room not in groups:
            groups[room] = []
            bisect.insort(rooms, room)
        groups[room].append((recipe, batches))

    def fill_with(kind: int, room: int, recipe: Recipe, batches: int, left: int) -> int:
        """Put samples of a kind into equal batches, each as full as it gets; how many samples are left over."""
        length = lengths[kind]
        most = max(1, room // length)  # in a new batch one sample that is longer than the budget
        full = min(batches, left // most)
        rest = left - full * most if full < batches else 0
        untouched = batches - full - (rest > 0) if recipe else 0
        for some, each in ((full, most), (int(rest > 0), rest)):
            if some:
                put(room - each * length, (*recipe, (kind, each)), some)
        if untouched:
            put(room, recipe, untouched)
        return left - full * most - rest

    for kind, left in enumerate(counts):
        while left:
            place = bisect.bisect_left(rooms, lengths[kind])
            if place == len(rooms):
                left = fill_with(kind, budget, (), left, left)
                continue
            room = rooms[place]
            recipe, batches = groups[room].pop()
            if not groups[room]:
                del groups[room], rooms[place]
            left = fill_with(kind, room, recipe, batches, left)
    return [group for listed in groups.values() for group in listed]


def lay_out(samples: np.ndarray, counts: list[int], recipes: list[tuple[Recipe, int]]) -> Batches:
    """The batches of the recipes, each kind of sample taken in its order.

    Args:
        samples: [n], the longest first.
        counts: samples of each kind, as `fill` got them.
    """
    nexts = (np.cumsum(counts) - counts).tolist()  # of each kind the first sample that is not placed yet
    placed = np.empty_like(samples)
    sizes = []
    end = 0
    for recipe, batches in recipes:
        size = sum(count for _, count in recipe)
        block = placed[end : end + size * batches].reshape(batches, size)
        column = 0
        for kind, count in recipe:
            taken = samples[nexts[kind] : nexts[kind] + count * batches]
            block[:, column : column + count] = taken.reshape(batches, count)
            nexts[kind] += count * batches
            column += count
        sizes.append(np.full(batches, size))
        end += size * batches
    return Batches.in_order(placed, np.concatenate([[0], np.cumsum(np.concatenate(sizes))]))


def split_until(batches: Batches, count: int) -> Batches:
    """Halve the batches with the most samples until there are `count`, or until each holds one sample."""
    missing = count - len(batches)
    if missing <= 0:
        return batches
    samples, starts = batches.samples.copy(), batches.starts
    sizes = np.diff(starts)
    largest = np.argpartition(-sizes, min(missing, len(sizes)) - 1)[:missing]  # no other batch can be reached
    heap = [(-int(sizes[i]), int(starts[i])) for i in np.sort(largest)]
    heapq.heapify(heap)
    cuts = []
    while len(cuts) < missing and heap[0][0] < -1:
        size, start = heapq.heappop(heap)
        part = samples[start : start - size]
        part[:] = np.concatenate([part[::2], part[1::2]])  # long and short samples to both halves
        middle = start + (1 - size) // 2
        cuts.append(middle)
        for half in ((start - middle, start), (middle - start + size, middle)):
            heapq.heappush(heap, half)
    return Batches.in_order(samples, np.sort(np.concatenate([starts, np.array(cuts, dtype=starts.dtype)])))
