"""A run goes on at the sample where it was, or says why it cannot."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.train.batch_plans import DataPlan, build_plan
from llava.train.data_position import _read, check_position
from tests.unit.train.test_trainer import make_trainer

TWO_RANKS = DataPlan(
    sampler="shuffle", seed=0, sizes=(24,), weights=None, batch_size=4, tokens_per_batch=-1, groups=2, accumulation=1
)
ONE_RANK = replace(TWO_RANKS, groups=1, batch_size=8)
LENGTHS = [1 + i % 7 for i in range(24)]


def check(before: DataPlan, now: DataPlan, step: int = 2, lengths=LENGTHS) -> None:
    check_position(before, now, step=step, plan_of=partial(build_plan, lengths=lengths))


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"sizes": (25,)}, {"weights": (0.5,)}, {"sampler": "length"}, {"tokens_per_batch": 64}]
)
def test_other_data_or_another_order_is_refused_with_what_changed(change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match="checkpoint of step 2") as error:
        check(TWO_RANKS, replace(TWO_RANKS, **change))
    assert f"({name} {getattr(TWO_RANKS, name)} -> {value})" in str(error.value)
    assert "--ignore_data_skip True" in str(error.value)


@pytest.mark.parametrize("now", [ONE_RANK, replace(ONE_RANK, batch_size=4, accumulation=2)])
def test_other_ranks_with_the_same_samples_per_step_go_on_in_silence(now, caplog):
    with caplog.at_level(logging.WARNING):
        for step in (0, 2, 3, 5):  # of three steps per epoch
            check(TWO_RANKS, now, step)
    assert caplog.text == ""


def test_a_sample_that_two_ranks_read_a_step_earlier_is_told(caplog):
    """Ten samples: two ranks read 3 + 3, then 2 + 2; one rank reads 5, then 5."""
    with caplog.at_level(logging.WARNING):
        check(replace(TWO_RANKS, sizes=(10,)), replace(ONE_RANK, sizes=(10,)), step=1)
    assert "at step 1: 1 samples will be repeated, 0 left out" in caplog.text


def test_packed_batches_that_fall_differently_are_refused():
    """Seven full batches: one rank takes seven turns, two ranks take eight in another order."""
    plan = replace(ONE_RANK, sizes=(70,), tokens_per_batch=10, batch_size=1)
    check(plan, plan, step=3, lengths=[1] * 70)
    with pytest.raises(ValueError, match=r"batches are dealt otherwise than at step 3: \d+ samples will be repeated"):
        check(plan, replace(plan, groups=2), step=3, lengths=[1] * 70)


@given(
    size=st.integers(1, 24),
    batch_size=st.integers(1, 5),
    groups=st.integers(1, 3),
    accumulation=st.integers(1, 3),
    kind=st.sampled_from(["shuffle", "length", "packed"]),
    step=st.integers(0, 12),
)
def test_what_was_read_is_what_the_ranks_were_dealt(size, batch_size, groups, accumulation, kind, step):
    plan = DataPlan(
        sampler="length" if kind == "length" else "shuffle", seed=3, sizes=(size,), weights=None, batch_size=batch_size,
        tokens_per_batch=9 if kind == "packed" else -1, groups=groups, accumulation=accumulation,
    )  # fmt: skip
    seen: Counter[int] = Counter()
    for rank in range(groups):
        batches = build_plan(plan, rank=rank, lengths=LENGTHS[:size])
        steps = -(-len(batches) // accumulation)
        for epoch in range(step // steps + 1):
            batches.set_epoch(epoch)
            until = (step % steps) * accumulation if epoch == step // steps else len(batches)
            seen.update(index for batch in list(batches)[:until] for index in batch if index >= 0)
    counts = _read(build_plan(plan, lengths=LENGTHS[:size]), plan, step)
    assert counts.tolist() == [seen[index] for index in range(size)]


def test_a_plan_survives_its_way_through_json():
    plan = replace(TWO_RANKS, sizes=(3, 4), weights=(1.0, 0.5))
    assert DataPlan.read(json.loads(json.dumps(plan.as_dict()))) == plan
    assert DataPlan.read(json.loads(json.dumps(TWO_RANKS.as_dict()))) == TWO_RANKS


def test_a_run_whose_data_grew_is_refused_unless_its_place_is_given_up(tmp_path):
    settings = {"per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 2.0, "max_steps": 3}
    make_trainer(tmp_path, **settings).train()
    checkpoint = str(tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match=r"sizes \(24,\) -> \(25,\)"):
        make_trainer(tmp_path, size=25, **settings).train(resume_from_checkpoint=checkpoint)
    again = make_trainer(tmp_path, size=25, ignore_data_skip=True, **settings)
    again.train(resume_from_checkpoint=checkpoint)
    assert again.state.global_step == 3
