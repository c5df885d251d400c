"""No prediction knows its future: gradients from newer frames are exactly zero, those from older ones are not."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llava.model.autoregressive_reconstruction import describe_clips
from llava.model.autoregressive_reconstruction.module import AutoregressiveReconstructionModule, Rows
from llava.model.autoregressive_reconstruction.outputs import SitePrediction
from tests.unit.model.autoregressive_reconstruction.rows import RowLayout, ToyLanguageModel, lay_out
from tests.unit.model.autoregressive_reconstruction.toy import HIDDEN, SIDE, WIDTH, awake, make_module, make_tower

NUM_FRAMES = 5


def predict_from_pixels(
    module: AutoregressiveReconstructionModule, layout: RowLayout | None, dtype: torch.dtype, **known: Any
) -> tuple[dict[str, SitePrediction], Tensor, Tensor | None]:
    """(predictions, the pixels and the words on which they depend): teacher, tower and language model in one graph."""
    generator = torch.Generator().manual_seed(3)
    tower, module = make_tower(is_frozen=False).to(dtype), module.to(dtype)
    pixels = torch.randn(2, known.pop("num_frames", NUM_FRAMES), 3, SIDE, SIDE, generator=generator, dtype=dtype)
    pixels.requires_grad_(True)
    features = tower(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
    targets = F.layer_norm(features.float(), features.shape[-1:])
    rows, words = Rows(), None
    if layout is not None:
        words = torch.randn(*layout.frame_of.shape, HIDDEN, generator=generator, dtype=dtype).requires_grad_(True)
        hidden = ToyLanguageModel(WIDTH, HIDDEN).to(dtype)(features, words, layout)
        rows = Rows(hidden_states=hidden, segment_ids=layout.segment_ids, branch_ids=layout.branch_ids)
        known = {**layout.known(answers=True), **known}
        known = {key: value for key, value in known.items() if key not in ("segment_ids", "branch_ids")}
    geometry = known.pop("geometry", None)
    clips = describe_clips(*pixels.shape[:2], **known)
    return dict(module.predict_sites(targets, clips, rows, geometry)), pixels, words


def influence(prediction: Tensor, source: Tensor) -> Tensor:
    """Size of the gradient per entry of the two leading dimensions of source."""
    probe = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(7)).to(prediction.dtype)
    (gradient,) = torch.autograd.grad((prediction * probe).sum(), source, retain_graph=True, allow_unused=False)
    return gradient.float().abs().flatten(2).amax(dim=2)


def assert_causal(site: SitePrediction, pixels: Tensor, *, reaches: int | None = None) -> int:
    """Checks each counted prediction against all frames of all clips; reaches: frames back that must matter."""
    times, checked = torch.arange(pixels.shape[1]), 0
    for clip, query in site.plan.is_item.nonzero().tolist():
        now = int(site.plan.clips.indices[query])
        sizes = influence(site.predicted[clip, query], pixels)
        assert sizes[clip][times > now].eq(0).all(), (clip, now, sizes)
        assert sizes[1 - clip].eq(0).all(), (clip, now, sizes)
        first = 0 if reaches is None else max(0, now - reaches + 1)
        assert sizes[clip][first : now + 1].gt(0).all(), (clip, now, sizes)
        if reaches is not None:
            assert sizes[clip][:first].eq(0).all(), (clip, now, sizes)
        checked += 1
    return checked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_through_pixels_and_the_language_model_at_both_sites(dtype, packed):
    layout = lay_out([5, 3], NUM_FRAMES, packed=packed)
    module = awake(make_module(num_hist=3, site="both", predictor_dim=32))
    sites, pixels, _ = predict_from_pixels(module, layout, dtype)
    assert assert_causal(sites["visual"], pixels) == 4 + 2
    assert assert_causal(sites["answer"], pixels) == 4 + 3  # the last frame of the cut row is followed by one on disk


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("num_hist", "window"), [(1, None), (3, None), (5, 2), (9, None)])
def test_from_frames_alone_a_prediction_draws_on_exactly_num_hist_frames(dtype, num_hist, window):
    module = awake(make_module(context="none", num_hist=num_hist, window_size=window, num_layers=2, predictor_dim=32))
    sites, pixels, _ = predict_from_pixels(module, None, dtype)
    reaches = num_hist if window is None else 1 + 2 * (window - 1)
    assert assert_causal(sites["visual"], pixels, reaches=reaches) == 2 * (NUM_FRAMES - 1)


def test_hidden_states_as_input():
    layout = lay_out([5, 4], NUM_FRAMES, packed=False)
    module = awake(make_module(predictor_input="hidden", target_pool=2, predictor_dim=32))
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(2, NUM_FRAMES, 4, WIDTH, generator=generator)
    hidden = torch.randn(*layout.frame_of.shape, HIDDEN, generator=generator).requires_grad_(True)
    known = {k: v for k, v in layout.known().items() if k not in ("segment_ids", "branch_ids")}
    rows = Rows(hidden_states=hidden, segment_ids=layout.segment_ids, branch_ids=layout.branch_ids)
    site = module.predict_sites(targets, describe_clips(2, NUM_FRAMES, **known), rows)["visual"]
    for clip, query in site.plan.is_item.nonzero().tolist():
        sizes = influence(site.predicted[clip, query], hidden)
        end = int(layout.frame_ends[clip, query])
        assert sizes[clip, end + 1 :].eq(0).all() and sizes[1 - clip].eq(0).all()
        assert sizes[clip, end] > 0


@pytest.mark.parametrize("strategy", ["concat", "interleave"])
@pytest.mark.parametrize("with_language", [False, True], ids=["frames", "language"])
def test_fast_and_slow_pathways(strategy, with_language):
    num_frames = 8
    layout = lay_out([8, 8], num_frames, packed=False) if with_language else None
    module = awake(
        make_module(
            context=None if with_language else "none",
            num_hist=9,
            predictor_dim=32,
            use_fast_slow_frames=True,
            num_fast=4,
            num_slow=4,
            merge_strategy=strategy,
        )
    )
    sites, pixels, _ = predict_from_pixels(module, layout, torch.float32, num_frames=num_frames)
    site = sites["visual"]
    assert int(site.plan.is_item[0].sum()) == 3 + 3  # of each pathway all but the newest
    fast, slow = [4, 5, 6, 7], [0, 2, 4, 6]
    for clip, query in site.plan.is_item.nonzero().tolist():
        now = int(site.plan.clips.indices[query])
        sizes = influence(site.predicted[clip, query], pixels)[clip]
        assert sizes[now + 1 :].eq(0).all(), (now, sizes)
        shown = range(now + 1) if with_language else [frame for frame in {*fast, *slow} if frame <= now]
        assert sizes[list(shown)].gt(0).all(), (now, sizes)


def test_a_slow_frame_does_not_tell_a_fast_one_how_the_robot_will_move():
    module = awake(
        make_module(
            context="none",
            condition_on_action="history",
            num_hist=9,
            predictor_dim=32,
            use_fast_slow_frames=True,
            num_fast=4,
            num_slow=4,
        )
    )
    motions = torch.randn(1, 8, 3, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    targets = torch.randn(1, 8, 16, WIDTH, generator=torch.Generator().manual_seed(1))
    site = module.predict_sites(targets, describe_clips(1, 8, motions=motions), Rows())["visual"]
    for clip, query in site.plan.is_item.nonzero().tolist():
        sizes = influence(site.predicted[clip, query], motions)[clip]
        until = int(site.plan.targets[clip, query])
        assert sizes[until:].eq(0).all() and sizes[until - 1] > 0, (query, sizes)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_answers_reach_the_prediction_of_their_own_outcome_only(packed):
    layout = lay_out([5, 5], NUM_FRAMES, packed=packed)
    sites, _, words = predict_from_pixels(awake(make_module(site="both", predictor_dim=32)), layout, torch.float32)
    assert words is not None
    rows = [0, 1] if layout.clip_rows is None else [0, 0]
    for name, site in sites.items():
        for clip, query in site.plan.is_item.nonzero().tolist():
            sizes = influence(site.predicted[clip, query], words)[rows[clip]]
            now = int(site.plan.clips.indices[query])
            own = int(layout.answer_ends[clip, now])
            hidden_from_it = layout.branch_ids[rows[clip]] > 0
            if name == "answer":  # earlier answers are history
                hidden_from_it &= torch.arange(len(hidden_from_it)) > own
            assert sizes[hidden_from_it].eq(0).all(), (name, clip, now)
            assert sizes[own - 1 : own + 1].gt(0).all() == (name == "answer"), (name, clip, now)


def test_the_answer_of_a_whole_prompt_predicts_the_frame_read_from_disk():
    """Four frames, one answer at the end, and a fifth frame that the sequence does not hold."""
    layout = lay_out([4, 4], NUM_FRAMES, packed=False)
    layout.answer_ends[:, :3] = -1
    sites, pixels, _ = predict_from_pixels(awake(make_module(site="both", predictor_dim=32)), layout, torch.float32)
    assert sites["answer"].plan.is_item.sum(dim=1).tolist() == [1, 1]
    assert assert_causal(sites["answer"], pixels) == 2
    assert assert_causal(sites["visual"], pixels) == 2 * 3  # the frame from disk is no target here


def test_states_behind_a_newer_frame_are_not_seen():
    """In the sequence frame 1 stands before frame 0: what follows frame 1 knows it, frame 0 included."""
    module = awake(make_module(predictor_dim=32))
    hidden = torch.randn(1, 9, HIDDEN, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    targets = torch.randn(1, 3, 16, WIDTH, generator=torch.Generator().manual_seed(1))
    clips = describe_clips(1, 3, frame_end_positions=torch.tensor([[5, 2, 8]]))
    site = module.predict_sites(targets, clips, Rows(hidden_states=hidden))["visual"]
    assert site.plan.context_ends is not None and site.plan.context_ends.tolist() == [[-1, 2]]
    assert influence(site.predicted[0, 0], hidden).eq(0).all()
    assert influence(site.predicted[0, 1], hidden)[0].gt(0).tolist() == [True] * 3 + [False] * 6


@pytest.mark.parametrize("times", list(itertools.permutations(range(4)))[1::3])
def test_frames_in_any_order_of_time(times):
    """In the sequence the frames stand as given, at whatever times: only older ones matter, by every path."""
    layout = lay_out([4, 4], 4, packed=False)
    when = torch.tensor([times, times]).float()
    module = awake(make_module(num_hist=4, predictor_dim=32))
    sites, pixels, _ = predict_from_pixels(module, layout, torch.float32, num_frames=4, frame_times=when)
    site = sites["visual"]
    assert int(site.plan.is_item.sum()) == 2 * 3
    for clip, query in site.plan.is_item.nonzero().tolist():
        now = when[clip, site.plan.clips.indices[query]]
        sizes = influence(site.predicted[clip, query], pixels)[clip]
        assert torch.equal(sizes > 0, when[clip] <= now), (times, query, sizes)


def test_a_frame_that_is_in_no_pathway_still_hides_what_stands_behind_it():
    """The sequence begins with the newest frame, which neither pathway shows: no state is clean."""
    config = {"use_fast_slow_frames": True, "num_fast": 2, "num_slow": 1, "fast_stride": 2, "predictor_dim": 32}
    module = awake(make_module(**config))
    times = torch.tensor([[9.0, 5.0, 1.0, 2.0, 3.0]])
    clips = describe_clips(1, 5, frame_end_positions=torch.tensor([[3, 1, 5, 7, 9]]), frame_times=times)
    hidden = torch.randn(1, 10, HIDDEN).requires_grad_(True)
    site = module.predict_sites(torch.randn(1, 5, 16, WIDTH), clips, Rows(hidden_states=hidden))["visual"]
    ((clip, query),) = site.plan.is_item.nonzero().tolist()
    assert site.plan.clips.indices[query] == 2  # fast frames 2 and 4; slow frame 0
    assert influence(site.predicted[clip, query], hidden).eq(0).all()


def test_padding_takes_no_part():
    module = awake(make_module(context="none", num_hist=5, predictor_dim=32))
    is_real = torch.tensor([[False, False, True, True, True], [True, True, True, True, False]])
    sites, pixels, _ = predict_from_pixels(module, None, torch.float32, is_real_frame=is_real)
    site = sites["visual"]
    assert site.plan.is_item.tolist() == [[False, False, True, True], [True, True, True, False]]
    for clip, query in site.plan.is_item.nonzero().tolist():
        sizes = influence(site.predicted[clip, query], pixels)
        assert torch.equal(sizes[clip] > 0, is_real[clip] & (torch.arange(5) <= query))


def test_the_leaking_control_does_leak():
    """The same check on an arm that is built to fail it."""
    module = awake(make_module(context="none", num_hist=5, predictor_dim=32, use_frame_causal_mask=False))
    sites, pixels, _ = predict_from_pixels(module, None, torch.float32)
    assert influence(sites["visual"].predicted[0, 0], pixels)[0, 1] > 0
    with pytest.raises(AssertionError):
        assert_causal(sites["visual"], pixels)


@pytest.mark.parametrize("head", ["residual", "direct"])
@pytest.mark.parametrize("leaks", [False, True], ids=["causal", "leaking"])
def test_the_second_target_is_the_next_frames_and_its_prediction_knows_no_newer_frame(head, leaks):
    """The error of frame t draws on geometry t + 1 (and on t's own with head "residual"), and on no picture after t."""
    config = {"site": "both", "predictor_dim": 32, "geometry_dim": 1, "head": head, "use_frame_causal_mask": not leaks}
    module = awake(make_module(**config))
    layout = lay_out([5, 3], NUM_FRAMES, packed=True)
    depth = torch.rand(2, NUM_FRAMES, 16, 1, generator=torch.Generator().manual_seed(4)).requires_grad_(True)
    sites, pixels, _ = predict_from_pixels(module, layout, torch.float32, geometry=depth)
    times, newer = torch.arange(NUM_FRAMES), []
    for site in sites.values():
        assert site.geometry is not None and site.geometry.is_known[site.plan.is_item].all()
        for clip, query in site.plan.is_item.nonzero().tolist():
            now, error = int(site.plan.clips.indices[query]), site.geometry.errors[clip, query]
            used = influence(error[None], depth)
            expected = (times == now + 1) | ((times == now) & (head == "residual"))
            assert torch.equal(used[clip] > 0, expected) and used[1 - clip].eq(0).all()
            seen = influence(error[None], pixels)
            newer.append(float(seen[clip][times > now].max()))
            assert seen[clip][: now + 1].gt(0).all() and seen[1 - clip].eq(0).all()
    assert len(newer) == 4 + 2 + 4 + 3
    assert sum(size > 0 for size in newer) == (12 if leaks else 0)  # of one, no newer frame is in the sequence
