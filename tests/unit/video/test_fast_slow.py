"""Fast = the newest frames, slow = spread over the whole clip; both as one sequence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava.video.fast_slow import VideoFrameSampler, fast_slow_indices, merged_order, preset_for_length

SAMPLER = VideoFrameSampler()


def numbered(num_frames: int) -> torch.Tensor:
    """Clips whose pixels are the number of the frame: [2, T, 3, 2, 2]."""
    return torch.arange(num_frames, dtype=torch.float)[None, :, None, None, None].expand(2, -1, 3, 2, 2)


def test_the_documented_call():
    fast, slow = SAMPLER.sample_fast_slow_frames(
        video_frames=numbered(16), fast_stride=1, slow_stride=4, num_fast=8, num_slow=8
    )
    assert fast[0, :, 0, 0, 0].tolist() == [8, 9, 10, 11, 12, 13, 14, 15]
    assert slow[0, :, 0, 0, 0].tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    assert SAMPLER.merge_fast_slow_frames(fast, slow, merge_strategy="concat")[1, :, 0, 0, 0].tolist() == [
        *[0, 2, 4, 6, 8, 10, 12, 14],
        *[8, 9, 10, 11, 12, 13, 14, 15],
    ]


def test_time_stamps_are_sampled_and_merged_as_the_pictures_are():
    times = torch.arange(16).expand(2, -1) * 0.5
    fast, slow = SAMPLER.sample_fast_slow_frames(times, num_fast=3, num_slow=2, slow_stride=4)
    merged = SAMPLER.merge_fast_slow_frames(fast, slow, "interleave")
    assert merged[0].tolist() == [0.0, 6.5, 4.0, 7.0, 7.5]


def test_strides():
    assert fast_slow_indices(20, fast_stride=3, num_fast=4, num_slow=2).fast == [10, 13, 16, 19]
    assert fast_slow_indices(50, slow_stride=8, num_slow=4).slow == [0, 8, 24, 40]  # of 0, 8, ..., 48
    assert fast_slow_indices(12, slow_stride=8, num_slow=4).slow == [0, 3, 6, 9]  # too short for the stride


def test_a_clip_shorter_than_the_counts_gives_fewer_frames_and_repeats_none():
    assert fast_slow_indices(3) == ([0, 1, 2], [0, 1, 2])
    assert fast_slow_indices(5, fast_stride=2, num_fast=8, num_slow=2) == ([0, 2, 4], [0, 4])


@given(st.integers(1, 200), st.integers(1, 5), st.integers(1, 9), st.integers(1, 20), st.integers(1, 20))
def test_indices_grow_stay_inside_and_reach_the_newest_frame(num_frames, fast_stride, slow_stride, num_fast, num_slow):
    chosen = fast_slow_indices(
        num_frames, fast_stride=fast_stride, slow_stride=slow_stride, num_fast=num_fast, num_slow=num_slow
    )
    for indices, most in ((chosen.fast, num_fast), (chosen.slow, num_slow)):
        assert 1 <= len(indices) <= most
        assert indices == sorted(set(indices))
        assert indices[0] >= 0 and indices[-1] < num_frames
    assert chosen.fast[-1] == num_frames - 1
    assert chosen.slow[0] == 0 and len(chosen.slow) == min(num_slow, num_frames)


def test_interleaving_unequal_pathways_keeps_the_rest_at_the_end():
    assert merged_order(1, 3, "interleave") == [0, 3, 1, 2]


def test_presets_follow_the_length_of_the_clip():
    assert preset_for_length(29) == {"use_fast_slow_frames": False}
    assert (preset_for_length(60)["num_fast"], preset_for_length(61)["num_fast"]) == (8, 16)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="num_fast is 0"):
        fast_slow_indices(4, num_fast=0)
    with pytest.raises(ValueError, match="num_frames is 0"):
        SAMPLER.sample_fast_slow_frames(numbered(0))
    with pytest.raises(ValueError, match="merge_strategy is 'zip'"):
        SAMPLER.merge_fast_slow_frames(numbered(2), numbered(2), "zip")  # pyright: ignore
