"""Paired differences with numbers that can be checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from playground.experiments.statistics import (
    bootstrap,
    compare,
    compare_by_length,
    paired,
    tables_of,
    verdict,
)


def test_the_difference_is_the_mean_over_seeds_and_episodes():
    arm = np.array([[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]])
    baseline = np.array([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0]])
    found = paired(arm, baseline)
    assert (found.arm, found.baseline, found.difference) == (5 / 8, 4 / 8, 1 / 8)
    assert found.per_seed == (0.25, 0.0) and found.num_episodes == 4
    assert (found.only_arm, found.only_baseline) == (2, 1)


def test_mcnemar_counts_the_pairs_of_all_seeds():
    arm, baseline = np.zeros((2, 5)), np.zeros((2, 5))
    arm[:, :3] = 1.0  # 6 pairs won, none lost: 2 / 2^6
    assert paired(arm, baseline).p_value == pytest.approx(2 / 64)


def test_a_measure_in_metres_has_no_p_value():
    found = paired(np.array([[2.0, 3.0]]), np.array([[2.5, 3.5]]))
    assert found.difference == -0.5 and found.p_value is None
    assert (found.low, found.high) == (-0.5, -0.5)  # the same in every episode: nothing varies


def test_the_interval_of_many_episodes_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(0.1, 1.0, size=(1, 400))
    low, high = bootstrap(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_seeds_that_disagree_widen_the_interval_although_episodes_do_not_vary():
    apart = np.array([[0.3] * 50, [-0.3] * 50, [0.0] * 50])
    low, high = bootstrap(apart)
    assert low == pytest.approx(-0.3) and high == pytest.approx(0.3)
    assert bootstrap(np.zeros((3, 50))) == (0.0, 0.0)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(0, 5))
def test_the_interval_holds_the_mean_of_every_small_table(seeds, episodes, draw):
    values = np.random.default_rng(draw).integers(-1, 2, size=(seeds, episodes)).astype(float)
    low, high = bootstrap(values)
    assert low <= values.mean() <= high
    assert bootstrap(values) == (low, high)  # the same data, the same interval


def test_only_shared_seeds_and_finite_episodes_are_compared():
    arm = {0: {"a": 1.0, "b": 0.0, "c": math.inf}, 1: {"a": 1.0, "b": 1.0, "c": 1.0}}
    baseline = {0: {"b": 0.0, "a": 0.0, "c": 1.0}, 2: {"a": 1.0, "b": 1.0, "c": 1.0}}
    ours, theirs, names = tables_of(arm, baseline)
    assert names == ["a", "b"] and ours.tolist() == [[1.0, 0.0]] and theirs.tolist() == [[0.0, 0.0]]
    assert compare({0: {"a": 1.0}}, {1: {"a": 1.0}}) is None


def test_gains_are_told_apart_by_the_length_of_the_way():
    lengths = {"near": 3.0, "far": 9.0, "further": 20.0}
    arm = {0: {"near": 0.0, "far": 1.0, "further": 1.0}}
    baseline = {0: {"near": 1.0, "far": 0.0, "further": 1.0}}
    rows = compare_by_length(arm, baseline, lengths, edges=(0.0, 6.0, 8.0, math.inf))
    assert [(row["from"], row["to"], row["difference"], row["num_episodes"]) for row in rows] == [
        (0.0, 6.0, -1.0, 1),
        (8.0, None, 0.5, 2),
    ]


@pytest.mark.parametrize(
    ("values", "word"),
    [([0.2, 0.2], "better"), ([0.0, 0.0], "no worse"), ([-0.5, -0.5], "worse"), ([1.0, -1.0], "open")],
)
def test_a_default_may_cost_one_point(values, word):
    difference = np.array([values])
    assert verdict(paired(difference, np.zeros((1, 2)))) == word


def test_tables_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(1, 3\)"):
        paired(np.zeros((1, 2)), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="not finite"):
        paired(np.array([[math.nan]]), np.zeros((1, 1)))
