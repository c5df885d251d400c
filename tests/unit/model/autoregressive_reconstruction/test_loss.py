"""The number that is minimised: what counts, by what it is divided, and where its gradients go."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from llava.model.autoregressive_reconstruction import (
    SkillSums,
    count_items,
    create_autoregressive_reconstruction_module,
    describe_clips,
)
from llava.model.autoregressive_reconstruction.losses import frame_errors
from tests.unit.model.autoregressive_reconstruction.toy import (
    HIDDEN,
    NUM_PATCHES,
    SIDE,
    WIDTH,
    awake,
    make_module,
    make_tower,
    noise_clips,
)

ENDS = torch.tensor([[2, 5, 8, 11], [3, 6, 9, -1], [2, 4, 6, 8], [1, -1, -1, -1]])  # 3, 2, 3 and 0 predictions
HORIZON = ENDS.shape[1]


@pytest.fixture
def frames():
    return noise_clips(4, HORIZON, torch.Generator().manual_seed(0))


@pytest.fixture
def states():
    return torch.randn(4, 13, HIDDEN, generator=torch.Generator().manual_seed(1))


def gradients(module) -> dict[str, Tensor]:
    found = {name: weight.grad.clone() for name, weight in module.named_parameters() if weight.grad is not None}
    module.zero_grad()
    return found


def test_the_documented_calls():
    module = create_autoregressive_reconstruction_module(
        vision_tower=make_tower(),
        hidden_size=HIDDEN,
        config={"embedding_dim": WIDTH, "num_hist": 3, "loss_weight": 0.1, "num_heads": 8, "num_layers": 3},
    )
    loss = module.compute_autoregressive_loss(
        hidden_states=torch.randn(2, 7, HIDDEN), video_frames=torch.randn(2, 4, 3, SIDE, SIDE)
    )
    assert loss.shape == () and loss.requires_grad and float(loss.detach()) > 0


def test_without_positions_it_predicts_from_frames_alone_and_says_so_once(frames, states, caplog):
    module = awake(make_module(predictor_dim=32))
    with caplog.at_level(logging.WARNING):
        first = module.compute_autoregressive_loss(states, frames)
        assert torch.equal(module.compute_autoregressive_loss(2 * states, frames), first)
    assert [record.message for record in caplog.records].count(
        "no frame_end_positions: frames are predicted from frames alone (context='none')"
    ) == 1


def test_a_residual_head_begins_as_a_copy_of_the_current_frame(frames):
    output = make_module(predictor_dim=32)(None, frames)
    skill = output.skill.read()
    assert skill["autoregressive_skill"] == pytest.approx(0.0, abs=1e-6)
    assert float(output.loss().detach()) == pytest.approx(skill["autoregressive_copy_mse"], rel=1e-6)


@pytest.mark.parametrize("num_batches", [1, 2, 4])
def test_accumulation_and_ranks_do_not_change_the_gradient(frames, states, num_batches):
    """Micro-batches of one step and ranks of one world are the same thing: shares of one sum."""
    module = awake(make_module(predictor_dim=32))
    total = count_items(describe_clips(4, HORIZON, frame_end_positions=ENDS), module.config)
    assert total == 3 + 2 + 3 + 0
    module(states, frames, frame_end_positions=ENDS).loss().backward()
    whole = gradients(module)
    summed = 0.0
    for part in torch.arange(4).chunk(num_batches):
        output = module(states[part], frames[part], frame_end_positions=ENDS[part])
        share = output.loss(torch.tensor(total))
        summed += float(share.detach())
        share.backward()
    again = module(states, frames, frame_end_positions=ENDS).loss().detach()
    assert summed == pytest.approx(float(again), rel=1e-5)
    for name, gradient in gradients(module).items():
        assert torch.allclose(gradient, whole[name], atol=1e-6), name


def test_each_predicted_frame_counts_the_same_whatever_clip_it_is_in(frames, states):
    output = awake(make_module(predictor_dim=32))(states, frames, frame_end_positions=ENDS)
    site = output.sites["visual"]
    by_hand = [float(site.errors[clip, query].detach()) for clip, query in site.plan.is_item.nonzero().tolist()]
    assert output.num_items == len(by_hand) == 8
    assert float(output.loss().detach()) == pytest.approx(sum(by_hand) / 8, rel=1e-5)


@pytest.mark.parametrize(
    "config",
    [{}, {"site": "both", "condition_on_action": "answer", "geometry_dim": 2}, {"head": "direct", "context": "none"}],
    ids=["default", "everything", "direct"],
)
def test_what_cannot_be_predicted_gives_a_zero_that_reaches_every_weight(config):
    module = make_module(predictor_dim=32, **config)
    states = torch.randn(2, 7, HIDDEN).requires_grad_(True)
    one_frame = torch.zeros(2, 1, 3, SIDE, SIDE, dtype=torch.uint8)
    for frames in (None, one_frame, one_frame[:0]):
        output = module(states, frames)
        assert (float(output.loss().detach()), output.num_items, output.skill.read()) == (0.0, 0, {})
        output.loss().backward()
        found = gradients(module)
        assert set(found) == {name for name, _ in module.named_parameters()}
        assert all(gradient.eq(0).all() for gradient in found.values())
        assert states.grad is not None and states.grad.eq(0).all()


def test_a_batch_in_which_nothing_counts_gives_a_zero_too(frames, states):
    module = awake(make_module(predictor_dim=32))
    output = module(states, frames, frame_end_positions=torch.full((4, HORIZON), -1))
    output.loss().backward()
    assert float(output.loss().detach()) == 0.0
    assert all(gradient.eq(0).all() for gradient in gradients(module).values())


@pytest.mark.parametrize("with_positions", [True, False])
def test_every_weight_gets_a_gradient_with_and_without_the_language_model(frames, states, with_positions):
    module = awake(make_module(predictor_dim=32))
    module(states, frames, frame_end_positions=ENDS if with_positions else None).loss().backward()
    assert set(gradients(module)) == {name for name, _ in module.named_parameters()}


def test_states_are_not_detached_unless_a_control_asks_for_it(frames, states):
    reached = []
    for control in (None, "detached_states"):
        leaf = states.clone().requires_grad_(True)
        module = awake(make_module(predictor_dim=32, control=control))
        module(leaf, frames, frame_end_positions=ENDS).loss().backward()
        reached.append(leaf.grad is not None and bool(leaf.grad.ne(0).any()))
    assert reached == [True, False]


def test_a_frozen_predictor_still_trains_the_language_model(frames, states):
    module = awake(make_module(predictor_dim=32, control="frozen_predictor", head="direct"))
    leaf = states.clone().requires_grad_(True)
    module(leaf, frames, frame_end_positions=ENDS).loss().backward()
    assert gradients(module) == {}
    assert leaf.grad is not None and leaf.grad.ne(0).any()


def test_controls_put_another_frame_in_the_place_of_the_target(frames, states):
    other = make_module(predictor_dim=32, control="other_clip")(None, frames).sites["visual"]
    plain = make_module(predictor_dim=32)(None, frames).sites["visual"]
    assert torch.equal(other.target, plain.target.roll(1, dims=0))
    current = make_module(
        predictor_dim=32, control="current_frame", predictor_input="hidden", head="direct", target_pool=4
    )(states, frames, frame_end_positions=ENDS).sites["visual"]
    assert torch.equal(current.target, current.current)
    assert other.plan.num_masked == 0


@pytest.mark.parametrize("site", ["visual", "answer"])
def test_what_has_no_other_clip_does_not_count_and_is_counted(frames, site):
    """Alone: all 3. Beside a clip of 3 real frames, the last of the longer clip has nothing to be compared with."""
    module = awake(make_module(predictor_dim=32, context="none", control="other_clip", site=site))
    answers = torch.arange(HORIZON).expand(4, -1)
    alone = module(None, frames[:1], answer_end_positions=answers[:1])
    assert (alone.num_items, alone.num_masked, float(alone.loss().detach())) == (0, 3, 0.0)
    alone.loss().backward()
    assert all(gradient.eq(0).all() for gradient in gradients(module).values())
    is_real = torch.tensor([[True] * 4, [True, True, True, False]])
    pair = module(None, frames[:2], is_real_frame=is_real, answer_end_positions=answers[:2])
    assert (pair.num_items, pair.num_masked) == (2 + 2, 1)
    clips = describe_clips(2, HORIZON, is_real_frame=is_real, answer_end_positions=answers[:2])
    assert count_items(clips, module.config) == pair.num_items


def test_losses_by_hand():
    predicted, target = torch.tensor([[[[3.0, 0.0]]]]), torch.tensor([[[[0.0, 0.5]]]])
    expected = {"mse": (9 + 0.25) / 2, "l1": 3.5 / 2, "smooth_l1": (2.5 + 0.125) / 2, "cosine": 1.0}
    for name, value in expected.items():
        assert float(frame_errors(predicted, target, name)) == pytest.approx(value)


def test_mse_of_normalised_vectors_is_twice_their_cosine_loss():
    predicted, target = (torch.nn.functional.layer_norm(torch.randn(1, 2, 3, 32), (32,)) for _ in range(2))
    mse, cosine = (frame_errors(predicted, target, name) for name in ("mse", "cosine"))
    assert torch.allclose(mse, 2 * cosine, atol=1e-4)


def test_skill_adds_up_over_batches_and_ranks(frames):
    module = awake(make_module(predictor_dim=32, context="none"))
    whole = module(None, frames).skill
    parts = module(None, frames[:1]).skill + module(None, frames[1:]).skill + SkillSums.zero()
    for name in ("num_items", "squared_error", "copy_squared_error", "delta_cosine"):
        assert torch.allclose(getattr(parts, name), getattr(whole, name), rtol=1e-5), name
    assert SkillSums.unstack(whole.stack()).read() == whole.read()


def test_a_skill_without_anything_to_compare_with_is_left_out():
    """Pictures that stand still, or the current frame as target: copying makes no error."""
    still = noise_clips(1, 1, torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1, -1)
    read = awake(make_module(predictor_dim=32, context="none"))(None, still).skill.read()
    assert "autoregressive_skill" not in read
    assert read["autoregressive_copy_mse"] == 0 and read["autoregressive_mse"] > 0


def test_surprise_is_largest_at_a_cut():
    still = noise_clips(1, 1, torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1, -1)
    cut = torch.cat([still, noise_clips(1, 1, torch.Generator().manual_seed(1)).expand(-1, 3, -1, -1, -1)], dim=1)
    surprise = make_module(predictor_dim=32)(None, cut).surprise(6)[0]
    assert math.isnan(surprise[0]) and surprise[1:].argmax() == 2
    assert surprise[[1, 2, 4, 5]].eq(0).all()


def test_errors_that_are_not_finite_name_their_clips(frames):
    module = make_module(predictor_dim=32, context="none")
    features = module.teacher(frames).clone()
    features[2, 1] = math.nan
    assert module(None, frame_features=features).broken_clips() == [2]
    assert module(None, frames).broken_clips() == []


def test_whatever_stands_in_padding_has_no_influence(frames):
    module = awake(make_module(predictor_dim=32, context="none"))
    is_real = torch.tensor([[False, True, True, True]]).expand(4, -1)
    features = module.teacher(frames)
    expected = module(None, frame_features=features, is_real_frame=is_real).loss()
    features[:, 0] = math.nan
    loss = module(None, frame_features=features, is_real_frame=is_real).loss()
    assert torch.equal(loss, expected)
    loss.backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(module).values())


def test_a_second_target_adds_its_error_where_it_is_known(frames):
    module = make_module(predictor_dim=32, context="none", geometry_dim=1, geometry_weight=2.0)
    geometry = torch.zeros(4, HORIZON, NUM_PATCHES, 1)
    geometry[0, 1] = 3.0  # a copying head errs by 9 from frame 0 to 1 and from 1 to 2
    geometry[1, 2, 0] = math.nan
    errors = module(None, frames, geometry=geometry).sites["visual"].errors
    plain = make_module(predictor_dim=32, context="none")(None, frames).sites["visual"].errors
    extra = [[18.0, 18.0, 0.0], [0.0] * 3, [0.0] * 3, [0.0] * 3]
    assert torch.allclose(errors - plain, torch.tensor(extra), atol=1e-5)


def test_the_second_target_has_figures_of_its_own(frames):
    """A direct head that says 0: its mean error over known frames, copying beside it, and the unknown ones counted."""
    module = make_module(predictor_dim=32, context="none", geometry_dim=1, geometry_weight=0.5, head="direct")
    torch.nn.init.zeros_(module.predictor.geometry_projection.weight)
    geometry = torch.full((4, HORIZON, NUM_PATCHES, 1), 2.0)
    geometry[0, 3] = 4.0  # errors 4, 4, 16; a copy errs by 0, 0, 4
    geometry[1, 1] = math.nan  # neither a target nor predicted from: 2 of 3 are unknown
    geometry[2:] = math.nan
    output = module(None, frames, geometry=geometry)
    sums = output.geometry
    assert [float(value) for value in sums.stack()] == [4, 8, 4 + 4 + 16 + 4, 4]
    read = sums.read()
    assert read == {
        "autoregressive_geometry_unknown": 8, "autoregressive_geometry_loss": 7, "autoregressive_geometry_skill": -6,
    }  # fmt: skip
    assert float(output.loss_sum) == pytest.approx(
        float(module(None, frames, geometry=torch.full_like(geometry, math.nan)).loss_sum) + 0.5 * 28, rel=1e-5
    )


def test_controls_change_the_second_target_along(frames, states):
    geometry = torch.arange(16.0).view(4, HORIZON, 1, 1).expand(-1, -1, NUM_PATCHES, -1)  # 4 * clip + frame
    common = {"predictor_dim": 32, "context": "none", "geometry_dim": 1}
    other = make_module(**common, control="other_clip")(None, frames, geometry=geometry).sites["visual"].geometry
    assert other.errors[:, 0].tolist() == [13**2, 3**2, 3**2, 3**2]  # 0 against 13, 4 against 1, ...
    plain = make_module(**common)(None, frames, geometry=geometry).sites["visual"].geometry
    assert plain.errors.eq(1).all()


def test_an_answer_counts_where_its_motion_and_the_frame_behind_it_are_known(frames, states):
    module = awake(make_module(predictor_dim=32, site="answer", condition_on_action="answer"))
    answers = torch.where(ENDS >= 0, ENDS + 1, ENDS)
    motions = torch.zeros(4, HORIZON, 3)
    motions[2] = math.nan  # a record without poses
    output = module(states, frames, frame_end_positions=ENDS, answer_end_positions=answers, motions=motions)
    assert output.sites["answer"].plan.is_item.sum(dim=1).tolist() == [3, 3, 0, 1]


def test_motions_unlike_each_other_lead_to_predictions_unlike_each_other(frames):
    left, right = torch.tensor([0.0, 15.0, 1.0]), torch.tensor([0.0, -15.0, 1.0])
    told = awake(make_module(predictor_dim=32, context="none", condition_on_action="history"))
    predictions = [
        told(None, frames, motions=motion.expand(4, HORIZON, 3)).sites["visual"].predicted
        for motion in (left, right, torch.full((3,), math.nan))
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(predictions[one], predictions[other])


def test_slots_laid_out_by_columns_are_brought_into_the_order_of_the_targets(frames, states):
    by_row, by_column = (
        create_autoregressive_reconstruction_module(
            make_tower(),
            HIDDEN,
            {"embedding_dim": None, "num_heads": 4, "predictor_input": "hidden", "target_pool": 2, "predictor_dim": 32},
            token_order=order,
        )
        for order in ("row", "column")
    )
    awake(by_row)
    by_column.load_state_dict(by_row.state_dict())
    ends = torch.tensor([[3, 7, 11, -1]]).expand(4, -1)
    swapped = states[:, [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12]]
    inputs: Any = {"frame_end_positions": ends}
    blind = [m.predictor for m in (by_row, by_column)]
    for predictor in blind:  # compare the slots alone
        torch.nn.init.zeros_(predictor.fusion.out.weight)
    assert torch.allclose(
        by_row(states, frames, **inputs).loss(), by_column(swapped, frames, **inputs).loss(), atol=1e-6
    )


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {},
        {"frame_end_positions": torch.where(ENDS == 11, 13, ENDS)},
        "do not fit a sequence of 13 tokens, expected -1..12",
    ),
    ({}, {"frame_end_positions": ENDS[:, :3]}, r"frame_end_positions has shape \[4, 3\], expected \[4, 4\]"),
    ({}, {"frame_end_positions": ENDS, "hidden_states": torch.zeros(4, 13, 7)}, r"expected \[rows, tokens, 48\]"),
    ({}, {"frame_end_positions": ENDS, "hidden_states": None}, "come with no hidden_states"),
    ({}, {"frame_end_positions": ENDS, "hidden_states": torch.zeros(2, 13, HIDDEN)}, "give clip_rows|say in clip_rows"),
    ({}, {"frame_end_positions": ENDS, "clip_rows": torch.tensor([0, 1, 2, 4])}, r"clip_rows are \[0, 1, 2, 4\]"),
    ({}, {"frame_times": torch.full((4, HORIZON), math.nan)}, "expected finite numbers"),
    ({}, {"geometry": torch.zeros(4, HORIZON, 4, 1)}, "geometry_dim is None"),
    ({"context": "language"}, {}, "no frame_end_positions, expected"),
    ({"predictor_input": "hidden"}, {}, "no frame_end_positions, expected"),
    ({"predictor_input": "hidden"}, {"frame_end_positions": ENDS}, "leave no room for the 16 slots"),
    ({"condition_on_action": "history"}, {}, "the batch has no motions"),
    ({"site": "answer"}, {"frame_end_positions": ENDS}, "no answer_end_positions"),
    ({"site": "answer"}, {"answer_end_positions": ENDS}, "no frame_end_positions"),
    (
        {"site": "answer"},
        {"frame_end_positions": ENDS, "answer_end_positions": torch.where(ENDS >= 0, 12, -1)},
        "behind newer frames",
    ),
    ({"geometry_dim": 1}, {}, "the batch has no geometry"),
    ({"geometry_dim": 1}, {"geometry": torch.zeros(4, 2, 4, 1)}, r"expected \[4, 4, tokens, 1\]"),
    ({"geometry_dim": 1}, {"geometry": torch.zeros(4, HORIZON, 4, 3)}, "set geometry_dim to 3"),
    ({}, {"frame_features": torch.zeros(4, HORIZON, 9, WIDTH)}, r"expected \[clips, frames, 16, 32\]"),
]


@pytest.mark.parametrize(("config", "given", "message"), BAD, ids=[message[:30] for *_, message in BAD])
def test_bad_input_is_named(frames, states, config, given, message):
    arguments = {"hidden_states": states, "video_frames": frames, **given}
    with pytest.raises(ValueError, match=message):
        make_module(predictor_dim=32, **config)(**arguments)


def test_fast_and_slow_counts_beyond_the_clip_use_the_frames_that_exist(frames):
    output = make_module(predictor_dim=32, context="none", use_fast_slow_frames=True, num_fast=8, num_slow=8)(
        None, frames
    )
    assert output.num_items == 4 * (3 + 3)
