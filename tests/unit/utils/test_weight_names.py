"""Names of weights without a state dict, and that saving given weights makes none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from llava.utils.weight_names import weight_names
from tests.unit.model.autoregressive_reconstruction.surprise_toy import learner, make_model
from tests.unit.model.scene_split.scene_toy import split_model


def reconstructing_model() -> Any:
    """Its teacher is the live tower, so that its fingerprint is taken before training, as a run does it."""
    model = learner(make_model())
    model.autoregressive_reconstruction.teacher.fingerprint()
    return model


class Odd(nn.Module):
    """A weight under two names, a buffer that is kept, one that is not, and an empty place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = self.first
        self.third = nn.Linear(2, 2, bias=False)
        self.third.weight = self.first.weight
        self.register_buffer("kept", torch.zeros(1))
        self.register_buffer("passing", torch.zeros(1), persistent=False)
        self.register_parameter("empty", None)


@pytest.mark.parametrize("build", [Odd, split_model, reconstructing_model])
def test_the_names_are_those_of_the_state_dict(build: Any):
    module = build()
    assert weight_names(module) == set(module.state_dict())


@pytest.mark.parametrize("build", [split_model, reconstructing_model])
def test_given_weights_are_saved_without_a_state_dict(build: Any, tmp_path: Any):
    """Under FSDP2 a state dict takes the whole weights away from a forward pass; a thread writes while one runs."""
    model = build()
    given = {name: weight.clone() for name, weight in model.state_dict().items()}

    def refuse(*_: Any) -> None:
        raise AssertionError("a state dict is made")

    for part in model.modules():
        part.register_state_dict_pre_hook(refuse)
    model.save_pretrained(tmp_path, state_dict=given)
    assert (tmp_path / "vision_tower/model.safetensors").is_file()
