"""Frames and events chosen by surprise."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.video.frames_by_surprise import cut_events, select_by_surprise

NAN = math.nan
VALUES = st.lists(st.one_of(st.just(NAN), st.integers(0, 5).map(float)), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("surprise", "num_frames", "options", "chosen"),
    [
        ([NAN, 1, 5, 4, 0, 2], 3, {}, [0, 2, 5]),
        ([NAN, 1, 5, 4, 0, 2], 3, {"keep_ends": False}, [2, 3, 5]),
        ([NAN, 1, 5, 4, 3, 2], 3, {"keep_ends": False, "min_gap": 1}, [0, 2, 4]),  # 0 is unknown: taken last
        ([0, 1, 5, 4], 4, {"keep_ends": False, "min_gap": 2}, [2]),
        ([NAN, 1, 5], 8, {}, [0, 1, 2]),
        ([3, 3, 3, 3], 2, {"keep_ends": False}, [0, 1]),
        ([9, 1, 1], 1, {}, [2]),
        ([NAN], 4, {}, [0]),
        ([NAN, NAN, NAN], 2, {"keep_ends": False}, [0, 1]),
    ],
)
def test_the_most_surprising_frames_in_order(surprise, num_frames, options, chosen):
    assert select_by_surprise(surprise, num_frames, **options) == chosen


@settings(deadline=None)
@given(VALUES, st.integers(1, 8), st.booleans(), st.integers(0, 3))
def test_a_choice_keeps_its_rules(values, num_frames, keep_ends, min_gap):
    chosen = select_by_surprise(np.array(values), num_frames, keep_ends=keep_ends, min_gap=min_gap)
    assert chosen == sorted(set(chosen)) and 1 <= len(chosen) <= num_frames
    assert all(b - a > min_gap for a, b in pairwise(chosen))
    assert not keep_ends or len(values) - 1 in chosen
    if min_gap == 0:
        assert len(chosen) == min(num_frames, len(values))
        if not keep_ends:
            left = [values[i] for i in range(len(values)) if i not in chosen and not math.isnan(values[i])]
            kept = [values[i] for i in chosen if not math.isnan(values[i])]
            assert not left or not kept or max(left) <= min(kept)


def test_a_clip_is_cut_where_the_surprise_rises():
    surprise = [NAN, 0.1, 0.1, 0.9, 0.8, 0.1, 0.7]
    assert cut_events(surprise, threshold=0.5) == [(0, 3), (3, 4), (4, 6), (6, 7)]
    assert cut_events(surprise, threshold=0.5, min_length=2) == [(0, 3), (3, 6), (6, 7)]
    assert cut_events(surprise, quantile=0.8) == [(0, 3), (3, 7)]  # of six known values one is above 0.8
    assert cut_events(surprise, quantile=1.0) == cut_events([NAN] * 7, quantile=0.5) == [(0, 7)]


@settings(deadline=None)
@given(VALUES, st.floats(0, 1), st.integers(1, 4))
def test_events_tile_the_clip(values, quantile, min_length):
    events = cut_events(values, quantile=quantile, min_length=min_length)
    assert events[0][0] == 0 and events[-1][1] == len(values)
    assert all(a[1] == b[0] for a, b in pairwise(events))
    assert all(stop - start >= min_length for start, stop in events[:-1])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: select_by_surprise([1.0], 0), "num_frames is 0"),
        (lambda: select_by_surprise([[1.0]], 1), r"shape \[1, 1\], expected \[frames\]"),
        (lambda: select_by_surprise([], 1), r"shape \[0\]"),
        (lambda: cut_events([1.0]), "expected exactly one of them"),
        (lambda: cut_events([1.0], threshold=0, quantile=0.5), "expected exactly one of them"),
        (lambda: cut_events([1.0], quantile=2), "quantile is 2, expected 0 to 1"),
        (lambda: cut_events([1.0], threshold=0, min_length=0), "min_length is 0"),
    ],
)
def test_what_has_no_meaning_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
