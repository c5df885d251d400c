"""What is trained: freezing, learning rates per part, weight decay, and the table that shows it."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import transformers

from llava.train.args import TrainingArguments
from llava.train.parts import (
    RATE_FLAGS,
    check_rates,
    optimizer_groups,
    part_of,
    parts_table,
    save_table,
    set_trainable,
)
from tests.unit.train.test_trainer import make_trainer
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


def test_the_predictor_of_the_next_frame_has_a_row(tmp_path):
    model = toy_model()
    model.initialize_continuous_autoregressive_modules({"embedding_dim": None, "num_layers": 1, "num_heads": 2})
    rows = parts_table(model, learning_rate=1e-3, part_rates={"autoregressive": 1e-4})
    assert [row.part for row in rows] == ["language_model", "vision_tower", "mm_projector", "autoregressive"]
    assert (rows[-1].learning_rate, rows[-1].method) == (1e-4, "whole")
    assert rows[-1].parameters == sum(p.numel() for p in model.autoregressive_reconstruction.parameters())


def test_all_rates_act_in_one_step_at_the_same_time(tmp_path):
    """A step of plain gradient descent moves every weight by its part's rate."""

    def moved(folder: str, **rates: float) -> dict[str, torch.Tensor]:
        settings = {"optim": "sgd", "max_grad_norm": 0.0, "max_steps": 1, "per_device_train_batch_size": 4, **rates}
        trainer = make_trainer(tmp_path / folder, **settings)
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        trainer.train()
        return {name: p.detach() - before[name] for name, p in trainer.model.named_parameters()}

    common = moved("common", learning_rate=1e-2)
    own = moved("own", learning_rate=1e-2, mm_projector_lr=2e-2, vision_tower_lr=0.0)
    factor = {"language_model": 1.0, "mm_projector": 2.0, "vision_tower": 0.0}
    assert {part_of(name) for name in common} == factor.keys()
    for part in factor:
        assert max(float(step.abs().max()) for name, step in common.items() if part_of(name) == part) > 1e-5
    for name, step in own.items():
        assert torch.allclose(step, factor[part_of(name)] * common[name], atol=5e-7), name


def test_the_predictor_of_the_next_frame_has_its_own_rate_beside_the_others():
    model = toy_model()
    model.initialize_continuous_autoregressive_modules({"embedding_dim": None, "predictor_dim": 16, "num_heads": 2})
    rates = {"mm_projector": 1e-2, "vision_tower": 1e-5, "autoregressive": 3e-3}
    groups = optimizer_groups(model, weight_decay=0.0, learning_rate=1e-3, part_rates=rates)
    rate_of_weight = {id(p): group["lr"] for group in groups for p in group["params"]}
    found = {part_of(n): rate_of_weight[id(p)] for n, p in model.named_parameters() if p.requires_grad}
    assert found == {"language_model": 1e-3, **rates}


def test_a_rate_for_a_part_that_is_not_trained_is_refused(tmp_path):
    model = toy_model()
    set_trainable(model, {**ALL, "vision_tower": False})
    with pytest.raises(ValueError, match="--vision_tower_lr 1e-05 has nothing to act on"):
        check_rates(model, {"mm_projector_lr": 1e-2, "vision_tower_lr": 1e-5})
    check_rates(model, {"mm_projector_lr": 1e-2, "vision_tower_lr": None})
    with pytest.raises(ValueError, match="--mm_projector_lr is -1"):
        check_rates(model, {"mm_projector_lr": -1.0})
    with pytest.raises(ValueError, match=r"--autoregressive_lr 0\.001 has nothing to act on"):
        make_trainer(tmp_path, autoregressive_lr=1e-3)


def test_every_flag_with_a_rate_is_watched():
    flags = {f.name for f in dataclasses.fields(TrainingArguments) if f.name.endswith("_lr")}
    assert flags - {f.name for f in dataclasses.fields(transformers.TrainingArguments)} == RATE_FLAGS.keys()


@pytest.mark.parametrize("tuned", [False, True])
def test_a_frozen_language_model_drops_nothing_out(tuned):
    model = toy_model()
    set_trainable(model, {**ALL, "language_model": tuned})
    for module in model.llm.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    batch = {"input_ids": torch.arange(1, 13)[None], "labels": torch.arange(1, 13)[None]}
    model.train()
    first, second = (model(**batch).loss.item() for _ in range(2))
    assert (first == second) != tuned
    assert all(layer.training for layer in model.llm.model.layers), "its activations can be recomputed"
