"""Batches: every sample once per epoch, the same on every machine, over any number of ranks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.train.samplers import (
    LengthGroupedBatches,
    Mixture,
    PackedBatches,
    Shard,
    ShuffledBatches,
    pack_to_budget,
    parse_weights,
    split_until,
)

SIZES = st.integers(1, 200)
WORLDS = st.integers(1, 5)
EPOCHS = st.integers(0, 3)


def over_ranks(make, world: int, epoch: int) -> list[list[list[int]]]:
    """Batches of every rank."""
    plans = [make(Shard(rank=rank, world_size=world)) for rank in range(world)]
    for plan in plans:
        plan.set_epoch(epoch)
    batches = [list(plan) for plan in plans]
    assert [len(b) for b in batches] == [len(plan) for plan in plans], "the length told is the length yielded"
    assert len({len(b) for b in batches}) == 1, "all ranks take the same number of steps"
    assert all(batch for rank in batches for batch in rank), "no batch is empty"
    return batches


def count(batches: list[list[list[int]]]) -> Counter[int]:
    return Counter(index for rank in batches for batch in rank for index in batch)


@given(size=SIZES, batch_size=st.integers(1, 9), world=WORLDS, epoch=EPOCHS)
@settings(max_examples=60, deadline=None)
def test_shuffling_yields_every_sample_once_over_all_ranks(size, batch_size, world, epoch):
    mixture = Mixture(sizes=(size,))
    batches = over_ranks(lambda s: ShuffledBatches(mixture, batch_size=batch_size, shard=s), world, epoch)
    seen = count(batches)
    assert set(seen) == set(range(size))
    slots = len(batches[0]) * world
    assert sum(seen.values()) == max(size, slots)
    assert max(len(b) for rank in batches for b in rank) <= batch_size


@given(size=SIZES, batch_size=st.integers(2, 9), world=WORLDS, epoch=EPOCHS)
@settings(max_examples=60, deadline=None)
def test_grouping_by_length_yields_every_sample_once_over_all_ranks(size, batch_size, world, epoch):
    lengths = np.arange(size) % 17 + 1
    batches = over_ranks(
        lambda s: LengthGroupedBatches(
            Mixture(sizes=(size,)), lengths=lengths, modalities=np.arange(size) % 2, batch_size=batch_size, shard=s
        ),
        world,
        epoch,
    )
    assert set(count(batches)) == set(range(size))


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=120), world=WORLDS, epoch=EPOCHS)
@settings(max_examples=80, deadline=None)
def test_packing_keeps_the_budget_and_yields_every_sample_once(lengths, world, epoch):
    batches = over_ranks(
        lambda s: PackedBatches(Mixture(sizes=(len(lengths),)), lengths=lengths, tokens_per_batch=50, shard=s),
        world,
        epoch,
    )
    seen = count(batches)
    assert set(seen) == set(range(len(lengths)))
    repeated = sum(seen.values()) - len(lengths)
    assert repeated < world
    for rank in batches:
        for batch in rank:
            assert sum(lengths[i] for i in batch) <= 50 or len(batch) == 1


def test_the_same_seed_and_epoch_give_the_same_batches_and_others_do_not():
    def batches(seed: int, epoch: int) -> list[list[int]]:
        plan = ShuffledBatches(Mixture(sizes=(50,)), batch_size=4, seed=seed)
        plan.set_epoch(epoch)
        return list(plan)

    assert batches(1, 0) == batches(1, 0)
    assert batches(1, 0) != batches(1, 1)
    assert batches(1, 0) != batches(2, 0)


def test_skipping_batches_of_an_epoch_continues_at_the_exact_sample():
    plan = PackedBatches(Mixture(sizes=(100,)), lengths=np.arange(100) % 9 + 1, tokens_per_batch=30)
    plan.set_epoch(2)
    whole = list(plan)
    assert list(plan)[7:] == whole[7:]


def test_a_weight_of_one_half_uses_every_sample_once_in_two_epochs():
    mixture = Mixture(sizes=(10, 6), weights=(0.5, 2.0))
    assert mixture.draws == 5 + 12
    first, second = mixture.draw(0, 0), mixture.draw(0, 1)
    assert sorted([*first[:5], *second[:5]]) == list(range(10))
    assert Counter(first[5:].tolist()) == {10 + i: 2 for i in range(6)}


def test_length_groups_need_less_padding_than_shuffling():
    lengths = np.random.default_rng(0).integers(1, 1000, 2000)

    def padding(plan) -> int:
        return sum(int((lengths[batch].max() - lengths[batch]).sum()) for batch in plan)

    mixture = Mixture(sizes=(2000,))
    grouped = LengthGroupedBatches(mixture, lengths=lengths, batch_size=8)
    assert padding(grouped) < 0.1 * padding(ShuffledBatches(mixture, batch_size=8))


def test_modalities_are_not_mixed_in_a_batch_except_where_they_meet():
    modalities = np.arange(400) % 2
    plan = LengthGroupedBatches(
        Mixture(sizes=(400,)), lengths=np.full(400, 5), modalities=modalities, batch_size=8, seed=3
    )
    mixed = sum(len(set(modalities[batch].tolist())) > 1 for batch in plan)
    assert mixed <= 1


def test_packing_fills_the_budget_well():
    lengths = np.random.default_rng(1).integers(20, 400, 5000)
    packed = pack_to_budget(np.arange(5000), lengths, 2048)
    assert lengths.sum() / (len(packed) * 2048) > 0.98


def test_packing_many_samples_is_fast():
    plan = PackedBatches(Mixture(sizes=(200_000,)), lengths=np.arange(200_000) % 97 + 20, tokens_per_batch=2000)
    assert len(plan) > 6000


def test_splitting_halves_the_largest_batches_until_there_are_enough():
    assert sorted(map(len, split_until([[1, 2, 3, 4], [5]], 3))) == [1, 2, 2]
    assert sorted(map(len, split_until([[1]], 2))) == [1, 1]


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="3 lengths for 4 samples"):
        PackedBatches(Mixture(sizes=(4,)), lengths=[1, 2, 3], tokens_per_batch=8)
    with pytest.raises(ValueError, match="hold no sample"):
        Mixture(sizes=(3,), weights=(0.0,))
    with pytest.raises(ValueError, match="did you mean 'r2r'"):
        parse_weights("r2=0.5", ["r2r", "human"])
    with pytest.raises(ValueError, match="batch_size is 0"):
        ShuffledBatches(Mixture(sizes=(3,)), batch_size=0)


def test_weights_name_parts_of_the_mixture():
    assert parse_weights("human=2", ["r2r", "human"]) == (1.0, 2.0)
    assert parse_weights(None, ["r2r"]) is None
