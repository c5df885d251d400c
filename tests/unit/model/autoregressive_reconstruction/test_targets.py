"""What is predicted, by hand: pooled and normalised features, and which frame is whose target."""

from __future__ import annotations

import math

import pytest
import torch

from llava.model.autoregressive_reconstruction import ReconstructionConfig, describe_clips
from llava.model.autoregressive_reconstruction.clips import into_pathways, motion_between
from llava.model.autoregressive_reconstruction.plan import plan_site
from llava.model.autoregressive_reconstruction.targets import make_geometry, make_targets, next_of_pathway

NAN = math.nan


def test_incomplete_squares_average_the_patches_that_exist():
    features = torch.arange(9.0).view(1, 1, 9, 1)  # 3 x 3 patches: 0 1 2 / 3 4 5 / 6 7 8
    assert make_targets(features, 2, "none").flatten().tolist() == [2.0, 3.5, 6.5, 8.0]


def test_tokens_before_the_grid_are_no_targets():
    features = torch.cat([torch.full((1, 1, 1, 2), 99.0), torch.zeros(1, 1, 4, 2)], dim=2)
    assert make_targets(features, 1, "none").eq(0).all()


def test_every_target_token_has_mean_0_and_variance_1():
    features = 7 + 5 * torch.randn(2, 3, 16, 32, dtype=torch.bfloat16)
    targets = make_targets(features, 2, "layer_norm")
    assert targets.dtype == torch.float32
    assert targets.mean(dim=-1).abs().max() < 1e-5
    assert (targets.var(dim=-1, unbiased=False) - 1).abs().max() < 1e-3


def test_the_target_is_the_next_moment_of_the_same_pathway():
    times = torch.tensor([[0.0, 4.0, 8.0, 6.0, 7.0, 8.0]])
    pathway = torch.tensor([0, 0, 0, 1, 1, 1])
    everyone = torch.ones(1, 6, dtype=torch.bool)
    assert next_of_pathway(times, everyone, pathway).tolist() == [[1, 2, -1, 4, 5, -1]]
    assert next_of_pathway(times, everyone & (times != 4), pathway).tolist() == [[2, -1, -1, 4, 5, -1]]


def test_a_repeated_picture_is_nobodys_future():
    """Short clips repeat frames: the same moment twice is no prediction."""
    times = torch.tensor([[0.0, 0.0, 1.0]])
    target = next_of_pathway(times, torch.ones(1, 3, dtype=torch.bool), torch.zeros(3, dtype=torch.long))
    assert target.tolist() == [[2, 2, -1]]


def test_motions_add_up_over_frames_that_are_left_out():
    motions = torch.tensor([[[0.25, 0.0, 1.0], [0.0, 15.0, 1.0], [NAN, NAN, NAN], [0.5, 0.0, 2.0], [0.0, 0.0, 0.0]]])
    clips = describe_clips(1, 5, motions=motions)
    start, stop = torch.tensor([[0, 1, 3, 2, -1]]), torch.tensor([[2, 3, 4, 1, 2]])
    between = motion_between(clips, start, stop)[0]
    assert between[0].tolist() == [0.25, 15.0, 2.0]
    assert between[2].tolist() == [0.5, 0.0, 2.0]
    assert between[[1, 3, 4]].isnan().all()  # unknown on the way, backwards, none


def test_a_pathway_is_told_the_motion_until_its_own_next_frame():
    config = ReconstructionConfig(
        use_fast_slow_frames=True, num_fast=2, num_slow=2, condition_on_action="history", num_hist=4
    )
    motions = torch.tensor([[0.25, 0.0, 1.0]]).expand(1, 6, 3)
    clips = into_pathways(describe_clips(1, 6, motions=motions), config)
    plan = plan_site(clips, config, "visual")
    assert plan.clips.indices.tolist() == [0, 4, 4]  # slow 0 and 4, fast 4 and 5, of which none sees the last
    assert plan.targets.tolist() == [[4, -1, 5]]
    assert plan.motion_out is not None and plan.motion_out[0, :, 2].tolist()[::2] == [4.0, 1.0]
    assert plan.gap.tolist() == [[4.0, 0.0, 1.0]]


def test_frames_that_no_prediction_needs_are_not_computed():
    plan = plan_site(describe_clips(3, 8), ReconstructionConfig(), "visual")
    assert plan.clips.indices.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert [int(visible[0].sum()) for visible in plan.visible] == [13, 13, 7]  # windows 2, 2, 1


def test_a_second_target_comes_on_any_square_grid():
    depth = torch.arange(16.0).view(1, 1, 16, 1)
    assert make_geometry(depth, 4, 1).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    two = torch.tensor([[[[1.0, 3.0]]]])  # one token of two channels
    assert torch.allclose(make_geometry(two, 1, 2, "layer_norm"), torch.tensor([-1.0, 1.0]), atol=1e-4)
    for shape in ((1, 1, 15, 1), (1, 1, 16, 3)):
        with pytest.raises(ValueError, match=r"expected \[clips, frames, a square number of tokens, 1\]"):
            make_geometry(torch.zeros(shape), 4, 1)
