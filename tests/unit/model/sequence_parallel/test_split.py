"""Columns are dealt to the ranks of a group so that nothing is lost, doubled or out of order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava.model.sequence_parallel import ColumnSplit, SequenceParallelConfig, group_members


def config(size: int, ring_size: int = 1, zigzag: bool = False) -> SequenceParallelConfig:
    ring_type = "zigzag_ring_varlen" if zigzag else "ring_varlen"
    return SequenceParallelConfig(size=size, ring_size=ring_size, ring_type=ring_type)


@st.composite
def splits(draw) -> ColumnSplit:
    ring_size, ulysses_size = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return ColumnSplit(draw(st.integers(1, 70)), config(ring_size * ulysses_size, ring_size, draw(st.booleans())))


@given(splits())
def test_every_column_lies_in_exactly_one_rank_and_all_hold_equally_many(split):
    dealt = [split.columns(rank) for rank in range(split.config.size)]
    assert {len(columns) for columns in dealt} == {split.per_rank}
    assert sorted(torch.cat(dealt).tolist()) == list(range(split.padded))


@given(splits())
def test_rows_that_were_cut_are_put_together_again(split):
    rows = torch.arange(2 * split.length).view(2, split.length)
    padded = split.pad(rows, -1)
    parts = [split.cut(padded, rank) for rank in range(split.config.size)]
    assert torch.equal(torch.cat(parts, dim=1)[:, split.order][:, : split.length], rows)
    for rank, part in enumerate(parts):
        places = split.places(rank)
        here = places >= 0
        assert torch.equal(part[:, places[here]], padded[:, here])


@given(splits())
def test_a_ring_rank_holds_what_its_ulysses_ranks_hold_together(split):
    step = split.config.ulysses_size
    for ring_rank in range(split.config.ring_size):
        together = torch.cat([split.columns(ring_rank * step + place) for place in range(step)])
        for chunk in split.chunks(ring_rank):
            held = together[chunk.place : chunk.place + chunk.stop - chunk.start]
            assert held.tolist() == list(range(chunk.start, chunk.stop))


def test_padding_is_the_least_that_divides():
    assert [ColumnSplit(length, config(4)).padded for length in (1, 4, 5, 8)] == [4, 4, 8, 8]
    assert ColumnSplit(9, config(2, 2, zigzag=True)).padded == 12
    assert ColumnSplit(9, config(6, 2, zigzag=True)).padded == 12


def test_a_zigzag_ring_rank_holds_a_piece_from_each_end():
    split = ColumnSplit(8, config(2, 2, zigzag=True))
    assert [split.columns(rank).tolist() for rank in (0, 1)] == [[0, 1, 6, 7], [2, 3, 4, 5]]


def test_ulysses_ranks_are_neighbours_and_rings_go_across():
    members = group_members(8, config(4, 2))
    assert members.sequence == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert members.ulysses == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert members.ring == [[0, 2], [1, 3], [4, 6], [5, 7]]


def test_sizes_that_do_not_fit_name_the_ones_that_do():
    with pytest.raises(ValueError, match=r"seq_parallel_size is 3 and the job has 8 processes.*\[1, 2, 4, 8\]"):
        group_members(8, config(3))
    with pytest.raises(ValueError, match=r"seq_parallel_ring_size is 3, expected a divisor.*\[1, 2, 4\]"):
        config(4, 3)
    with pytest.raises(ValueError, match="seq_parallel_size is 0, expected at least 1"):
        config(0)
    with pytest.raises(ValueError, match="'strip', expected one of ring_varlen, zigzag_ring_varlen"):
        SequenceParallelConfig(size=2, ring_size=2, ring_type="strip")
