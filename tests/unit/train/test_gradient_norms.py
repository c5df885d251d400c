"""Gradient norms of parts, told as they were before clipping."""

from __future__ import annotations

import pytest
import torch

from llava.train.gradient_norms import part_norms
from tests.unit.train.test_trainer import make_trainer
from tests.unit.train.toy import toy_model


def with_gradients(**values: float) -> torch.nn.Module:
    """A model in which each part has one gradient, with one entry that is not zero."""
    model = toy_model()
    for folder, value in values.items():
        weight = next(p for name, p in model.named_parameters() if name.startswith(folder) and p.requires_grad)
        weight.grad = torch.zeros_like(weight)
        weight.grad.view(-1)[0] = value
    return model


def test_each_part_has_its_own_norm():
    model = with_gradients(llm=3.0, vision_tower=4.0)
    assert part_norms(model, 5.0) == {"grad_norm_language_model": 3.0, "grad_norm_vision_tower": 4.0}


def test_norms_are_those_before_clipping():
    model = with_gradients(llm=3.0, mm_projector=4.0)
    total = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    norms = part_norms(model, total)
    assert norms["grad_norm_language_model"] == pytest.approx(3.0, rel=1e-4)
    assert norms["grad_norm_mm_projector"] == pytest.approx(4.0, rel=1e-4)


def test_no_gradient_anywhere_gives_zero_not_nan():
    assert part_norms(with_gradients(llm=0.0), 0.0) == {"grad_norm_language_model": 0.0}
    assert part_norms(toy_model(), 0.0) == {}


def test_the_squares_of_the_parts_add_up_in_the_log_of_a_run(tmp_path):
    trainer = make_trainer(
        tmp_path, size=8, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_grad_norm=1e-3
    )
    trainer.train()
    for row in trainer.state.log_history[:2]:
        parts = [value for name, value in row.items() if name.startswith("grad_norm_")]
        assert len(parts) == 3
        assert sum(value**2 for value in parts) == pytest.approx(row["grad_norm"] ** 2, rel=1e-4)


def test_lines_that_are_not_written_cost_no_measuring(tmp_path):
    trainer = make_trainer(tmp_path, size=8, per_device_train_batch_size=2, logging_steps=2.0)
    trainer.train()
    assert [("grad_norm_language_model" in row) for row in trainer.state.log_history if "loss" in row] == [True, True]
    assert [row["step"] for row in trainer.state.log_history if "loss" in row] == [2, 4]
