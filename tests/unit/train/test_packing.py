"""Packing by groups of equal lengths is packing sample by sample; batches are full, and each mixes the lengths."""

from __future__ import annotations

import bisect
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.train.packing import (
    Batches,
    Recipe,
    best_fit,
    deal_out,
    evenly,
    fill,
    kinds_of,
    lay_out,
    split_until,
)  # fmt: skip
from llava.train.samplers import longest_first


def best_fit_one_by_one(lengths: list[int], budget: int) -> list[int]:
    """Tokens of each batch: the longest sample first, into the fullest batch with room."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        place = bisect.bisect_left(rooms, length)
        room = rooms.pop(place) if place < len(rooms) else budget
        bisect.insort(rooms, room - length)
    return sorted(budget - room for room in rooms)


def dealt_one_by_one(lengths: list[int], budget: int, batches: int) -> list[int]:
    """Tokens of each batch: the longest sample first, into the emptiest batch; as many more as a length needs."""
    rooms = [budget] * batches
    for length, equal in itertools.groupby(sorted(lengths, reverse=True)):
        left = len(list(equal))
        while left:
            if max(rooms) < min(length, budget):
                rooms += [budget] * -(-left // max(1, budget // length))
            rooms[rooms.index(max(rooms))] -= length
            left -= 1
    return sorted(budget - room for room in rooms if room < budget)


def pack_to_budget(order: np.ndarray, lengths: np.ndarray, budget: int) -> Batches:
    kinds, counts = kinds_of(lengths[order])
    return lay_out(order[longest_first(lengths[order])], counts, fill(kinds, counts, budget))


def tokens_of(recipes: list[tuple[Recipe, int]], lengths: list[int]) -> list[int]:
    sums = [(sum(lengths[kind] * count for kind, count in recipe), batches) for recipe, batches in recipes]
    return sorted(tokens for tokens, batches in sums for _ in range(batches))


some_lengths = st.lists(st.integers(1, 30), min_size=1, max_size=150)


@given(lengths=some_lengths, budget=st.integers(10, 90), batches=st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_groups_are_packed_as_single_samples_would_be(lengths, budget, batches):
    kinds, counts = kinds_of(np.array(lengths))
    assert tokens_of(best_fit(kinds, counts, budget), kinds) == best_fit_one_by_one(lengths, budget)
    assert tokens_of(deal_out(kinds, counts, budget, batches), kinds) == dealt_one_by_one(lengths, budget, batches)


@given(lengths=some_lengths, budget=st.integers(10, 90))
@settings(max_examples=150, deadline=None)
def test_every_sample_is_in_one_batch_within_the_budget(lengths, budget):
    packed = pack_to_budget(np.random.default_rng(0).permutation(len(lengths)), np.array(lengths), budget)
    assert sorted(packed.samples.tolist()) == list(range(len(lengths)))
    assert all(len(batch) == 1 or sum(lengths[i] for i in batch) <= budget for batch in packed)
    assert len(packed) <= 1.1 * len(best_fit_one_by_one(lengths, budget))


def test_ten_million_samples_of_a_thousand_lengths_are_few_groups():
    lengths, counts = list(range(1100, 100, -1)), [10_000] * 1000
    groups = fill(lengths, counts, 4096)
    assert len(groups) < 4 * len(lengths)
    assert sum(batches * count for recipe, batches in groups for _, count in recipe) == 10_000_000
    assert all(sum(lengths[kind] * count for kind, count in recipe) <= 4096 for recipe, _ in groups)


SPREADS = {
    "even": lambda draw: draw.integers(20, 400, 5000),
    "most are short": lambda draw: np.minimum(draw.lognormal(4.5, 1.0, 5000).astype(int) + 8, 2048),
    "two or three fill a batch": lambda draw: draw.integers(500, 1000, 5000),
    "one kind": lambda draw: np.full(5000, 199),
    "a few tokens apart": lambda draw: draw.choice([96, 104], 5000, p=[0.7, 0.3]),
    "long and short": lambda draw: np.where(draw.random(5000) < 0.3, 1800, 150),
}


@pytest.mark.parametrize(
    ("name", "most"),
    [("even", 1.005), ("most are short", 1.005), ("two or three fill a batch", 1.1), ("one kind", 1.0),
     ("long and short", 1.02), ("a few tokens apart", 1.06)],
)  # fmt: skip
def test_batches_are_as_full_as_by_best_fit(name, most):
    lengths = SPREADS[name](np.random.default_rng(1))
    packed = pack_to_budget(np.arange(5000), lengths, 2048)
    assert len(packed) <= most * len(best_fit_one_by_one(lengths.tolist(), 2048))


@pytest.mark.parametrize("name", ["even", "a few tokens apart"])
def test_every_batch_has_its_share_of_long_and_short_samples(name):
    lengths = SPREADS[name](np.random.default_rng(1))
    means = [lengths[batch].mean() for batch in pack_to_budget(np.arange(5000), lengths, 2048)]
    assert abs(np.array(means) / lengths.mean() - 1).max() < 0.15
    assert lengths.sum() / (len(means) * 2048) > 0.93


def test_an_epoch_is_three_flat_arrays_of_numbers():
    packed = pack_to_budget(np.arange(1000), np.full(1000, 7), 70)
    assert packed.samples.nbytes == 8 * 1000
    assert packed.starts.nbytes == 8 * 101
    assert packed.turns.nbytes == 8 * 100


def test_lengths_beyond_any_table_are_packed_too():
    lengths = np.array([2**40, 5, 2**40])
    assert list(pack_to_budget(np.arange(3), lengths, 2**40 + 5)) == [[0, 1], [2]]


def test_even_batches_differ_by_at_most_one_sample():
    assert list(evenly(np.arange(8), 3)) == [[0, 1, 2], [3, 4, 5], [6, 7]]


def sizes(batches: Batches) -> list[int]:
    return sorted(map(len, batches))


def test_splitting_halves_the_largest_batches_until_there_are_enough():
    batches = Batches.in_order(np.arange(7), np.array([0, 6, 7]))
    assert sizes(split_until(batches, 3)) == [1, 3, 3]
    assert list(split_until(batches, 4)) == [[0, 4], [2], [1, 3, 5], [6]]
    assert sizes(split_until(batches, 100)) == [1] * 7
    assert split_until(batches, 2) is batches


@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=20), more=st.integers(0, 60))
@settings(max_examples=80, deadline=None)
def test_splitting_loses_no_sample(counts, more):
    starts = np.concatenate([[0], np.cumsum(counts)])
    split = split_until(Batches.in_order(np.arange(sum(counts)), starts), len(counts) + more)
    assert len(split) == min(len(counts) + more, sum(counts))
    assert sorted(index for batch in split for index in batch) == list(range(sum(counts)))
    assert max(sizes(split)) <= max(counts)
