"""Batches: every sample once per epoch, the same on every machine, over any number of ranks."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.data_loader import skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from llava.batch import Sample
from llava.constants import IGNORE_INDEX
from llava.train.loader import WithStandIns, train_loader
from llava.train.samplers import (
    LengthGroupedBatches,
    Mixture,
    PackedBatches,
    Shard,
    ShuffledBatches,
    parse_weights,
    random_stream,
)

SIZES = st.integers(1, 200)
WORLDS = st.integers(1, 5)
EPOCHS = st.integers(0, 3)
EPOCH = 2
PLANS = {
    "shuffle": lambda mixture, lengths, **place: ShuffledBatches(mixture, batch_size=3, **place),
    "length": lambda mixture, lengths, **place: LengthGroupedBatches(mixture, lengths=lengths, batch_size=3, **place),
    "packed": lambda mixture, lengths, **place: PackedBatches(mixture, lengths=lengths, tokens_per_batch=50, **place),
}


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
    """How often each sample is taught; stand-ins (negative) are alone in their batch and are not counted."""
    assert all(min(batch) >= 0 or len(batch) == 1 for rank in batches for batch in rank)
    return Counter(index for rank in batches for batch in rank for index in batch if index >= 0)


def stand_ins(batches: list[list[list[int]]]) -> int:
    return sum(index < 0 for rank in batches for batch in rank for index in batch)


@given(size=SIZES, batch_size=st.integers(1, 9), world=WORLDS, epoch=EPOCHS)
@settings(max_examples=60, deadline=None)
def test_shuffling_yields_every_sample_once_over_all_ranks(size, batch_size, world, epoch):
    mixture = Mixture(sizes=(size,))
    batches = over_ranks(lambda s: ShuffledBatches(mixture, batch_size=batch_size, shard=s), world, epoch)
    assert count(batches) == dict.fromkeys(range(size), 1)
    assert stand_ins(batches) == max(0, len(batches[0]) * world - size) < world
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
    assert count(batches) == dict.fromkeys(range(size), 1)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=120), world=WORLDS, epoch=EPOCHS)
@settings(max_examples=80, deadline=None)
def test_packing_keeps_the_budget_and_yields_every_sample_once(lengths, world, epoch):
    batches = over_ranks(
        lambda s: PackedBatches(Mixture(sizes=(len(lengths),)), lengths=lengths, tokens_per_batch=50, shard=s),
        world,
        epoch,
    )
    assert count(batches) == dict.fromkeys(range(len(lengths)), 1)
    assert stand_ins(batches) < world
    for rank in batches:
        for batch in rank:
            assert sum(lengths[i] for i in batch) <= 50 or len(batch) == 1


@given(
    parts=st.lists(
        st.tuples(st.integers(1, 30), st.sampled_from([0.0, 0.3, 0.5, 1.0, 1.7, 2.0])), min_size=1, max_size=4
    ),
    kind=st.sampled_from(sorted(PLANS)),
    world=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_a_mixture_is_drawn_by_its_weights_over_all_ranks(parts, kind, world):
    sizes, weights = zip(*parts, strict=True)
    wanted = [round(size * weight) for size, weight in parts]
    if sum(wanted) == 0:
        return
    mixture, lengths = Mixture(sizes=sizes, weights=weights), np.arange(sum(sizes)) % 40 + 1
    batches = over_ranks(lambda s: PLANS[kind](mixture, lengths, shard=s), world, EPOCH)
    part_of = np.repeat(np.arange(len(sizes)), sizes)
    taught = count(batches)
    assert [sum(n for index, n in taught.items() if part_of[index] == part) for part in range(len(sizes))] == wanted
    for part, size in enumerate(sizes):
        often = [taught[index] for index in np.flatnonzero(part_of == part)]
        assert max(often) - min(often) <= 1 + (wanted[part] % size > 0), "use stays even inside a part"


@given(size=st.integers(1, 60), kind=st.sampled_from(sorted(PLANS)), world=st.integers(1, 3), where=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_a_run_cut_at_any_step_goes_on_with_the_rest(size, kind, world, where):
    """What transformers does on resumption: another process, the same epoch, so many batches skipped."""

    def loader():
        plan = PLANS[kind](Mixture(sizes=(size,)), np.arange(size) % 40 + 1, shard=Shard(rank=0, world_size=world))
        return train_loader(Numbered(size), plan, collate=lambda samples: [s["sample_id"] for s in samples])

    whole = loader()
    whole.set_epoch(EPOCH)
    expected = list(whole)
    cut = round(where * len(expected))
    rest = skip_first_batches(loader(), cut)
    rest.batch_sampler.batch_sampler.set_epoch(EPOCH)  # the trainer reaches the plan below what skips
    assert list(rest) == expected[cut:]


class Numbered(Dataset[Sample]):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        ids = torch.tensor([index, index])
        return Sample(input_ids=ids, labels=ids.clone(), sample_id=str(index))


def test_a_stand_in_is_read_and_teaches_nothing():
    data = WithStandIns(Numbered(5))
    assert data[3]["labels"].tolist() == [3, 3]
    assert data[~3]["input_ids"].tolist() == [3, 3]
    assert data[~3]["labels"].tolist() == [IGNORE_INDEX, IGNORE_INDEX]


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


@pytest.mark.parametrize("weights", [(1.0,), (0.5,)])
def test_every_epoch_of_packed_batches_has_the_same_number_of_steps(weights):
    lengths = np.random.default_rng(1).integers(1, 60, 300)
    plan = PackedBatches(Mixture(sizes=(300,), weights=weights), lengths=lengths, tokens_per_batch=100)
    assert {len(plan.batches(epoch)) for epoch in range(8)} == {len(plan)}


def test_an_epoch_that_needs_more_batches_than_the_first_raises_its_budget_and_says_so(caplog):
    """Epoch 0 draws the short half: two batches and one in reserve hold it, four are needed for the long half."""
    order = random_stream(0, 1, 0, 0).permutation(8)
    lengths = np.full(8, 10)
    lengths[order[4:]] = 20
    plan = PackedBatches(Mixture(sizes=(8,), weights=(0.5,)), lengths=lengths, tokens_per_batch=20)
    assert (len(plan), len(plan.batches(0))) == (3, 3)
    with caplog.at_level(logging.WARNING):
        second = list(plan.batches(1))
    assert sorted(index for batch in second for index in batch) == sorted(order[4:])
    assert len(second) == 3 and "need batches of 40 tokens, not 20" in caplog.text


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="3 lengths for 4 samples"):
        PackedBatches(Mixture(sizes=(4,)), lengths=[1, 2, 3], tokens_per_batch=8)
    with pytest.raises(ValueError, match="hold no sample"):
        Mixture(sizes=(3,), weights=(0.0,))
    with pytest.raises(ValueError, match="the length of sample 1 is -2"):
        PackedBatches(Mixture(sizes=(2,)), lengths=[1, -2], tokens_per_batch=8)
    with pytest.raises(ValueError, match=r"weights are \(-1.0,\), expected finite numbers of 0"):
        Mixture(sizes=(3,), weights=(-1.0,))
    with pytest.raises(ValueError, match="2 modalities for 3 samples"):
        LengthGroupedBatches(Mixture(sizes=(3,)), lengths=[1, 2, 3], modalities=[0, 1], batch_size=2)
    for wrong in ("r2r=-1", "r2r=much", "r2r", "r2r=nan"):
        with pytest.raises(ValueError, match=f"mixture_weights has '{wrong}', expected name=number"):
            parse_weights(wrong, ["r2r", "human"])
    with pytest.raises(ValueError, match="did you mean 'r2r'"):
        parse_weights("r2=0.5", ["r2r", "human"])
    with pytest.raises(ValueError, match="batch_size is 0"):
        ShuffledBatches(Mixture(sizes=(3,)), batch_size=0)


def test_weights_name_parts_of_the_mixture():
    assert parse_weights("human=2", ["r2r", "human"]) == (1.0, 2.0)
    assert parse_weights(None, ["r2r"]) is None
