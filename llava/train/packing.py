"""Samples into batches of a token budget: as few batches as best fit needs, and every batch mixes the lengths.

The length of a sample goes with what it asks: batches of one length, as best fit makes them, drift from task to task,
and a small model learns later from them or not at all. So best fit only says how many batches there are; then samples
are dealt out, the longest first and each into the emptiest batch, which gives every batch its share of long and short
ones. Where that needs more batches (two or three samples fill one), those of best fit are taken.

Samples of one length are alike, so whole groups of batches are filled at once: the decisions grow with the number of
different lengths, not with the number of samples.

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

MORE_TO_MIX = 0.1
"""Share of batches that mixing lengths may cost on top. They hold fewer tokens each: a packed row has no padding."""


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
    """Recipes of batches and how many batches follow each; a sample longer than the budget gets one of its own.

    Args:
        lengths: the different lengths, longest first.
        counts: samples of each length, all above 0.
    """
    fewest = best_fit(lengths, counts, budget)
    count = number_of_batches(fewest)
    mixed = deal_out(lengths, counts, budget, count)
    if (needed := number_of_batches(mixed)) > count:  # opened last, with nothing but short samples: once more, evenly
        mixed = deal_out(lengths, counts, budget, needed)
    return mixed if number_of_batches(mixed) <= (1 + MORE_TO_MIX) * count else fewest


def number_of_batches(recipes: list[tuple[Recipe, int]]) -> int:
    return sum(batches for _, batches in recipes)


class _Open:
    """Batches by the room that is left in them; those of one recipe are one group."""

    def __init__(self) -> None:
        self.rooms: list[int] = []
        """That any batch has, sorted."""
        self._groups: dict[int, list[tuple[Recipe, int]]] = {}

    def put(self, room: int, recipe: Recipe, batches: int) -> None:
        if room not in self._groups:
            self._groups[room] = []
            bisect.insort(self.rooms, room)
        self._groups[room].append((recipe, batches))

    def take(self, place: int) -> tuple[int, Recipe, int]:
        """A group whose room is `rooms[place]`: (room, recipe, batches)."""
        room = self.rooms[place]
        recipe, batches = self._groups[room].pop()
        if not self._groups[room]:
            del self._groups[room], self.rooms[place]
        return room, recipe, batches

    def recipes(self) -> list[tuple[Recipe, int]]:
        return [group for groups in self._groups.values() for group in groups if group[0]]


def best_fit(lengths: list[int], counts: list[int], budget: int) -> list[tuple[Recipe, int]]:
    """Each sample into the fullest batch that still takes it. Arguments and result as of `fill`."""
    open_ = _Open()

    def fill_with(kind: int, room: int, recipe: Recipe, batches: int, left: int) -> int:
        """Put samples of a kind into equal batches, each as full as it gets; how many samples are left over."""
        length = lengths[kind]
        most = max(1, room // length)  # in a new batch one sample that is longer than the budget
        full = min(batches, left // most)
        rest = left - full * most if full < batches else 0
        untouched = batches - full - (rest > 0) if recipe else 0
        for some, each in ((full, most), (int(rest > 0), rest)):
            if some:
                open_.put(room - each * length, (*recipe, (kind, each)), some)
        if untouched:
            open_.put(room, recipe, untouched)
        return left - full * most - rest

    for kind, left in enumerate(counts):
        while left:
            place = bisect.bisect_left(open_.rooms, lengths[kind])
            if place == len(open_.rooms):
                left = fill_with(kind, budget, (), left, left)
            else:
                left = fill_with(kind, *open_.take(place), left)
    return open_.recipes()


def deal_out(lengths: list[int], counts: list[int], budget: int, batches: int) -> list[tuple[Recipe, int]]:
    """Each sample into the emptiest of so many batches; more are opened where none takes it. As `fill` else."""
    open_ = _Open()
    open_.put(budget, (), batches)
    for kind, (length, left) in enumerate(zip(lengths, counts, strict=True)):
        while left:
            if open_.rooms[-1] >= min(length, budget):
                room, recipe, count = open_.take(-1)
            else:
                room, recipe, count = budget, (), -(-left // max(1, budget // length))
            served = min(count, left)
            open_.put(room - length, _with_one(recipe, kind), served)
            if served < count:
                open_.put(room, recipe, count - served)
            left -= served
    return open_.recipes()


def _with_one(recipe: Recipe, kind: int) -> Recipe:
    if recipe and recipe[-1][0] == kind:
        return (*recipe[:-1], (kind, recipe[-1][1] + 1))
    return (*recipe, (kind, 1))


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
