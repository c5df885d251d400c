"""Gradient clipping: the predictor of the next frame and the rest of the model, each by its own norm."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llava.train.clipping import AUXILIARY_NORM, clip_in_groups, clip_to, split_by_loss
from tests.unit.train.test_reconstruction import make_trainer, rows, toy_learner
from tests.unit.train.toy import toy_model


class TwoParts(nn.Module):
    """One weight of each group, with gradients (3, 4) and (0, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.llm = nn.Linear(2, 1, bias=False)
        self.autoregressive_reconstruction = nn.Linear(2, 1, bias=False)
        self.llm.weight.grad = torch.tensor([[3.0, 4.0]])
        self.autoregressive_reconstruction.weight.grad = torch.tensor([[0.0, 10.0]])


def test_each_group_is_scaled_by_its_own_norm():
    model = TwoParts()
    norms = clip_in_groups(model, 6.0)
    assert [float(norm) for norm in norms] == [5.0, 10.0]
    assert torch.equal(model.llm.weight.grad, torch.tensor([[3.0, 4.0]]))  # 5 < 6: untouched
    assert model.autoregressive_reconstruction.weight.grad.tolist() == [[0.0, pytest.approx(6.0)]]


def test_an_infinite_limit_measures_only():
    model = TwoParts()
    assert [float(norm) for norm in clip_in_groups(model, math.inf)] == [5.0, 10.0]
    assert model.autoregressive_reconstruction.weight.grad.tolist() == [[0.0, 10.0]]


def test_a_group_without_gradients_has_norm_nought():
    assert float(clip_to([nn.Parameter(torch.ones(2))], 1.0)) == 0.0


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=5), st.floats(0.1, 10.0))
def test_a_group_is_clipped_as_torch_does(values, limit):
    ours, theirs = (nn.Parameter(torch.zeros(len(values))) for _ in range(2))
    ours.grad, theirs.grad = torch.tensor(values), torch.tensor(values)
    assert torch.equal(clip_to([ours], limit), nn.utils.clip_grad_norm_([theirs], limit))
    assert torch.equal(ours.grad, theirs.grad)


def test_the_predictor_is_the_second_group_also_inside_a_wrapper():
    wrapped = nn.ModuleDict({"module": toy_learner()})
    main, auxiliary = split_by_loss(wrapped)
    assert sum(p.numel() for p in main) == sum(p.numel() for p in toy_model().parameters())
    assert len(auxiliary) == len(list(wrapped["module"].autoregressive_reconstruction.parameters()))


@pytest.mark.parametrize("max_grad_norm", [0.05, 0.0])
def test_a_huge_gradient_of_the_predictor_leaves_the_language_models_step_alone(tmp_path, max_grad_norm):
    """Four steps with and without; weights outside the predictor are equal to the bit, and both norms are logged."""
    settings = {"per_device_train_batch_size": 6, "optim": "sgd", "max_grad_norm": max_grad_norm}
    # the states that the predictor reads carry no gradient back: what is left of the loss trains the predictor only
    calm, wild = (make_trainer(tmp_path / n, config={"control": "detached_states"}, **settings) for n in ("a", "b"))
    for parameter in wild.model.autoregressive_reconstruction.parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient: gradient * 1e4)
    start = {name: p.detach().clone() for name, p in calm.model.named_parameters()}
    calm.train()
    wild.train()
    main, _ = split_by_loss(calm.model)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(main, split_by_loss(wild.model)[0], strict=True))
    assert not torch.equal(start["llm.lm_head.weight"], calm.model.llm.lm_head.weight)
    assert rows(calm, "grad_norm") == rows(wild, "grad_norm")
    first = [rows(trainer, AUXILIARY_NORM)[0] for trainer in (calm, wild)]
    assert first[1] == pytest.approx(1e4 * first[0], rel=1e-4) and first[0] > 0
