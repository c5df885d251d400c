"""Packing by groups of equal lengths is packing sample by sample; its work grows with the lengths, not the samples."""

from __future__ import annotations

import bisect

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.train.packing import Batches, evenly, fill, kinds_of, lay_out, split_until
from llava.train.samplers import longest_first


def one_by_one(lengths: list[int], budget: int) -> list[int]:
    """Tokens of each batch of the classical algorithm: longest first, into the fullest batch with room."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        place = bisect.bisect_left(rooms, length)
        room = rooms.pop(place) if place < len(rooms) else budget
        bisect.insort(rooms, room - length)
    return sorted(budget - room for room in rooms)


def pack_to_budget(order: np.ndarray, lengths: np.ndarray, budget: int) -> Batches:
    kinds, counts = kinds_of(lengths[order])
    return lay_out(order[longest_first(lengths[order])], counts, fill(kinds, counts, budget))


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=150), budget=st.integers(10, 90))
@settings(max_examples=150, deadline=None)
def test_groups_are_packed_as_single_samples_would_be(lengths, budget):
    order = np.random.default_rng(len(lengths)).permutation(len(lengths))
    packed = pack_to_budget(order, np.array(lengths), budget)
    assert sorted(packed.samples.tolist()) == list(range(len(lengths)))
    assert sorted(sum(lengths[i] for i in batch) for batch in packed) == one_by_one(lengths, budget)


def test_ten_million_samples_of_a_thousand_lengths_are_few_groups():
    lengths, counts = list(range(1100, 100, -1)), [10_000] * 1000
    groups = fill(lengths, counts, 4096)
    assert len(groups) < 4 * len(lengths)
    assert sum(batches * count for recipe, batches in groups for _, count in recipe) == 10_000_000
    assert all(sum(lengths[kind] * count for kind, count in recipe) <= 4096 for recipe, _ in groups)


def test_batches_are_full():
    lengths = np.random.default_rng(1).integers(20, 400, 5000)
    packed = pack_to_budget(np.arange(5000), lengths, 2048)
    assert lengths.sum() / (len(packed) * 2048) > 0.98


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
