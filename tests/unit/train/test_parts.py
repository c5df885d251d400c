"""What is trained: freezing, learning rates per part, weight decay, and the table that shows it."""

from __future__ import annotations

import json

import pytest

from llava.train.parts import optimizer_groups, part_of, parts_table, save_table, set_trainable
from tests.unit.train.toy import toy_model

ALL = {"language_model": True, "vision_tower": True, "mm_projector": True}
RATES = {"mm_projector": 1e-2, "vision_tower": 1e-5}


def test_a_parameter_belongs_to_the_part_in_its_name():
    assert part_of("llm.model.layers.0.mlp.up_proj.weight") == "language_model"
    assert part_of("module.vision_tower.encoder.weight") == "vision_tower"
    assert part_of("mm_projector.layers.1.bias") == "mm_projector"


def test_tuning_the_projector_alone_freezes_the_rest():
    model = toy_model()
    set_trainable(model, {**ALL, "language_model": False, "vision_tower": False})
    trained = {part_of(name) for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"mm_projector"}


def test_nothing_to_train_is_an_error_that_names_the_flags():
    with pytest.raises(ValueError, match="--tune_language_model True"):
        set_trainable(toy_model(), dict.fromkeys(ALL, False))


def test_every_part_has_its_own_learning_rate_at_the_same_time():
    model = toy_model()
    groups = optimizer_groups(model, weight_decay=0.1, learning_rate=1e-3, part_rates=RATES)
    rate_of = {id(p): group["lr"] for group in groups for p in group["params"]}
    expected = {"language_model": 1e-3, **RATES}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rate_of[id(parameter)] == expected[part_of(name)], name
    assert groups[0]["lr"] == 1e-3, "the first rate is the one that is logged"


def test_norms_and_biases_are_not_decayed():
    model = toy_model()
    groups = optimizer_groups(model, weight_decay=0.1, learning_rate=1e-3, part_rates={})
    decay_of = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    norms = {id(p) for m in model.modules() if "Norm" in type(m).__name__ for p in m.parameters()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_exempt = id(parameter) in norms or name.endswith("bias")
            assert decay_of[id(parameter)] == (0.0 if is_exempt else 0.1), name


def test_frozen_parameters_are_in_no_group():
    model = toy_model()
    set_trainable(model, {**ALL, "vision_tower": False})
    grouped = {
        id(p) for g in optimizer_groups(model, weight_decay=0.0, learning_rate=1.0, part_rates={}) for p in g["params"]
    }
    assert not grouped & {id(p) for p in model.vision_tower.parameters()}


def test_the_table_counts_parameters_and_is_saved(tmp_path):
    model = toy_model()
    set_trainable(model, {**ALL, "vision_tower": False})
    rows = {row.part: row for row in parts_table(model, learning_rate=1e-3, part_rates=RATES)}
    assert sum(row.parameters for row in rows.values()) == sum(p.numel() for p in model.parameters())
    assert rows["vision_tower"].trainable == 0
    assert rows["vision_tower"].learning_rate is None
    assert rows["mm_projector"].learning_rate == 1e-2
    assert rows["language_model"].dtype == "float32"
    save_table(list(rows.values()), tmp_path / "trained_parts.json")
    assert {row["part"] for row in json.loads((tmp_path / "trained_parts.json").read_text())} == rows.keys()
