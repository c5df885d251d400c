"""Pre-fusion: objects meet their background and text meets both, never the other way round."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llava.model.multimodal_projector.prefusion import (
    BACKGROUND,
    OBJECT,
    OUTSIDE,
    TEXT,
    FusionPlan,
    Prefusion,
    prefusion_config,
)
from tests.unit.model.scene_split.toy import worst

WIDTH = 16
LETTERS = {"t": TEXT, "b": BACKGROUND, "o": OBJECT, "-": OUTSIDE}
ROW, FRAMES = "tbbbootto-", [[0, 0, 0, 0, 0, 0, 0, 0, 1, 0]]
TOLERANCE = 1e-5


def make_prefusion(layers: int = 2, *, awake: bool = True) -> Prefusion:
    torch.manual_seed(0)
    llm = SimpleNamespace(
        hidden_size=WIDTH,
        intermediate_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    module = Prefusion(prefusion_config(llm, layers))
    if awake:  # layers that begin as the identity would hide a leak
        for parameter in module.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return module


def plan_of(*rows: str, frames: Any = None, scenes: Any = None, segments: Any = None) -> FusionPlan:
    kinds = torch.tensor([[LETTERS[letter] for letter in row] for row in rows])
    zeros = torch.zeros_like(kinds)
    positions = torch.arange(kinds.shape[1]).expand_as(kinds)
    return FusionPlan(
        kinds=kinds,
        scene_ids=zeros if scenes is None else torch.tensor(scenes),
        frame_ids=zeros if frames is None else torch.tensor(frames),
        position_ids=positions,
        segment_ids=None if segments is None else torch.tensor(segments),
    )


def tokens_of(plan: FusionPlan, seed: int = 0) -> Tensor:
    return torch.randn(*plan.kinds.shape, WIDTH, generator=torch.Generator().manual_seed(seed))


def gradient_of(module: Prefusion, plan: FusionPlan, outputs: Tensor) -> Tensor:
    """Per token of row 0, whether the chosen outputs react to it: sum of absolute gradients [S]."""
    tokens = tokens_of(plan).requires_grad_()
    (gradient,) = torch.autograd.grad(module(tokens, plan)[0][outputs].square().sum(), tokens)
    return gradient[0].abs().sum(-1)


def test_who_sees_whom_by_hand():
    seen = plan_of("tbbot-").may_attend()[0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0],  # text before the picture
        [0, 1, 1, 0, 0, 0],  # background: itself, both ways
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],  # object: its background
        [1, 1, 1, 1, 1, 0],  # text: what was read before
        [0, 0, 0, 0, 0, 1],  # outside: nobody but itself
    ]


def test_fresh_layers_change_nothing():
    plan = plan_of(ROW, frames=FRAMES)
    assert torch.equal(make_prefusion(awake=False)(tokens_of(plan), plan), tokens_of(plan))


def test_the_background_has_a_gradient_of_exactly_zero_to_all_that_is_not_background():
    plan = plan_of(ROW, frames=FRAMES)
    is_background = plan.kinds[0] == BACKGROUND
    gradient = gradient_of(make_prefusion(), plan, is_background)
    assert gradient[~is_background].max() == 0
    assert gradient[is_background].min() > 0


def test_objects_react_to_background_and_objects_only_and_text_to_what_was_before():
    plan, module = plan_of(ROW, frames=FRAMES), make_prefusion()
    of_objects = gradient_of(module, plan, plan.kinds[0] == OBJECT)
    assert (of_objects > 0).tolist() == [letter in "bo" for letter in ROW]
    of_first_text = gradient_of(module, plan, torch.arange(len(ROW)) == 6)
    assert (of_first_text > 0).tolist() == [True] * 7 + [False] * 3


def test_pictures_of_a_row_do_not_mix_but_text_behind_them_sees_both():
    plan = plan_of("bobot", scenes=[[0, 0, 1, 1, 9]])
    module = make_prefusion()
    assert (gradient_of(module, plan, torch.arange(5) == 3) > 0).tolist() == [False, False, True, True, False]
    assert (gradient_of(module, plan, torch.arange(5) == 4) > 0).all()


def test_frames_see_the_background_of_their_clip_and_no_later_frame():
    plan = plan_of("booo", frames=[[0, 0, 1, 2]])
    assert (gradient_of(make_prefusion(), plan, torch.arange(4) == 2) > 0).tolist() == [True, True, True, False]


def test_samples_packed_in_a_row_do_not_mix():
    plan = plan_of("tbot" + "bt", segments=[[0, 0, 0, 0, 1, 1]])
    gradient = gradient_of(make_prefusion(), plan, torch.arange(6) >= 4)
    assert (gradient > 0).tolist() == [False] * 4 + [True] * 2


@settings(max_examples=10, deadline=None)
@given(padding=st.integers(1, 4), seed=st.integers(0, 9))
def test_padding_and_batch_mates_change_nothing_and_come_back_untouched(padding: int, seed: int):
    module, alone = make_prefusion(), plan_of("tbbot")
    tokens = tokens_of(alone)
    batch = plan_of("tbbot" + "-" * padding, "bbbbb" + "o" * padding)
    mates = tokens_of(batch, seed)
    mates[:1, :5] = tokens
    with torch.no_grad():
        found = module(mates, batch)
        assert worst(found[:1, :5], module(tokens, alone)) <= TOLERANCE
    assert torch.equal(found[0, 5:], mates[0, 5:])


def test_a_known_background_gives_what_the_whole_row_gives():
    plan, module = plan_of(ROW, frames=FRAMES), make_prefusion()
    tokens, is_background = tokens_of(plan), plan.kinds[0] == BACKGROUND
    with torch.no_grad():
        whole = module(tokens, plan)
        background, known = module.fuse_background(tokens[:, is_background], plan.position_ids[:, is_background])
        before = [each.clone() for each in (*known.keys, *known.values)]
        rest = module.fuse_rest(tokens[:, ~is_background], plan, is_background, known)
    assert worst(background, whole[:, is_background]) <= TOLERANCE  # measured: 4.8e-7
    assert worst(rest, whole[:, ~is_background]) <= TOLERANCE
    assert all(torch.equal(a, b) for a, b in zip((*known.keys, *known.values), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_background_fused_alone_has_the_same_bits_every_time(dtype: torch.dtype):
    module, tokens = make_prefusion().to(dtype), tokens_of(plan_of("bbbb")).to(dtype)
    with torch.no_grad():
        first, _ = module.fuse_background(tokens, torch.arange(4)[None])
        module(tokens_of(plan_of(ROW, frames=FRAMES)).to(dtype), plan_of(ROW, frames=FRAMES))
        again, _ = module.fuse_background(tokens.clone(), torch.arange(4)[None])
    assert torch.equal(first, again)
    assert not torch.equal(first, tokens)


def test_every_weight_of_fresh_layers_learns():
    module, plan = make_prefusion(awake=False), plan_of("tbbot")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):  # behind projections of zero gradients arrive at the second step
        optimizer.zero_grad()
        (module(tokens_of(plan), plan) - tokens_of(plan, seed=1)).square().sum().backward()
        optimizer.step()
    assert [name for name, p in module.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_mistakes_are_named():
    plan, module = plan_of("tbbot"), make_prefusion()
    with pytest.raises(ValueError, match=r"plan is for \[1, 5\] tokens, found \[1, 4\]"):
        module(tokens_of(plan)[:, :4], plan)
    with pytest.raises(ValueError, match="prefusion_layers is 0"):
        make_prefusion(0)
    _, known = module.fuse_background(tokens_of(plan)[:, 1:3], torch.arange(2)[None])
    with pytest.raises(ValueError, match="1 background tokens and 4 others, found 2 and 3"):
        module.fuse_rest(tokens_of(plan)[:, :3], plan, torch.arange(5) == 1, known)
    with pytest.raises(ValueError, match="have shapes"):
        FusionPlan(kinds=plan.kinds, scene_ids=plan.kinds[:, :2], frame_ids=plan.kinds, position_ids=plan.kinds)
