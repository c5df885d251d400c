"""Training with the next-frame loss: a step however it is cut, figures, weight, checkpoints, resuming."""

from __future__ import annotations

import json
import logging
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import llava
from llava.constants import IGNORE_INDEX
from llava.data.clips import ClipOptions
from llava.data.collate import DataCollator
from llava.data.geometry import GeometryOptions
from llava.model.autoregressive_reconstruction.targets import grid_side_of
from llava.model.checkpoints import autoregressive
from llava.train.args import TrainingArguments
from llava.train.autoregressive_trainer import AutoregressiveTrainer
from llava.train.data_setup import data_options
from llava.train.parse import parse_args
from llava.train.reconstruction import ReconstructionMonitor, compare_gradients
from llava.train.reconstruction_setup import attach_reconstruction, read_keys
from tests.unit.train.toy import IMAGE_TOKEN, ToyClips, ToyData, toy_model

SETTINGS = {"embedding_dim": None, "predictor_dim": 16, "num_heads": 2, "num_layers": 1, "gradient_every": 0}


def toy_learner(**settings):
    model = toy_model()
    model.set_trainable(language_model=True, vision_tower=True, mm_projector=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        module = model.initialize_continuous_autoregressive_modules({**SETTINGS, **settings})
        torch.nn.init.normal_(module.predictor.output_projection.weight, std=0.1)
    return model


def make_trainer(folder, *, model=None, data=None, config=None, trainer_class=AutoregressiveTrainer, **settings):
    chosen = {"logging_steps": 1.0, "save_strategy": "no", "learning_rate": 1e-2, "num_train_epochs": 1.0, **settings}
    args = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", lr_scheduler_type="constant", **chosen
    )
    data = data or ToyClips(24)
    collator = DataCollator(pad_token_id=0, max_length=64, mode="pad", image_token_id=IMAGE_TOKEN)
    model = toy_learner(**(config or {})) if model is None else model
    return trainer_class(model, args, train_dataset=data, data_collator=collator, lengths=data.lengths)


def rows(trainer, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


def predictor_weights(trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.autoregressive_reconstruction.parameters()])


@pytest.mark.parametrize("micro", [4, 2])
def test_accumulation_does_not_change_the_auxiliary_step(tmp_path, micro):
    """Weights that only the auxiliary loss reaches, after steps over the same samples in 1, 2 or 4 micro-batches."""
    settings = {"optim": "sgd", "max_grad_norm": 0.0}
    whole = make_trainer(tmp_path / "a", per_device_train_batch_size=8, **settings)
    cut = make_trainer(
        tmp_path / "b", per_device_train_batch_size=micro, gradient_accumulation_steps=8 // micro, **settings
    )
    start = predictor_weights(whole)
    whole.train()
    cut.train()
    assert (predictor_weights(whole) - start).abs().max() > 1e-4
    assert torch.allclose(predictor_weights(whole), predictor_weights(cut), atol=1e-6)
    for name in ("loss", "main_loss", "autoregressive_loss", "autoregressive_skill"):
        assert rows(cut, name) == pytest.approx(rows(whole, name), abs=1e-5), name


def test_a_log_line_tells_both_losses_their_ratio_and_the_skill(tmp_path):
    trainer = make_trainer(tmp_path, per_device_train_batch_size=4, config={"loss_weight": 0.5})
    trainer.train()
    first = next(row for row in trainer.state.log_history if "loss" in row)
    assert first["loss"] == pytest.approx(first["main_loss"] + 0.5 * first["autoregressive_loss"], rel=1e-4)
    assert first["autoregressive_ratio"] == pytest.approx(
        0.5 * first["autoregressive_loss"] / first["main_loss"], rel=1e-6
    )
    assert {"autoregressive_skill", "autoregressive_centred_cosine", "autoregressive_skill_forward"} <= first.keys()
    ratio = first["autoregressive_mse"] / first["autoregressive_copy_mse"]
    assert first["autoregressive_skill"] == pytest.approx(1 - ratio, abs=1e-6)


def test_mixed_batches_train_and_batches_without_clips_count_nothing(tmp_path):
    trainer = make_trainer(tmp_path, data=ToyClips(12, blank=2), per_device_train_batch_size=1)
    trainer.train()
    losses = rows(trainer, "autoregressive_loss")
    assert len(losses) == 12 and sum(loss == 0 for loss in losses) == 6


class Unsupervised(ToyClips):
    """Video without text: what the record type `clips` gives."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return {**sample, "labels": torch.full_like(sample["labels"], IGNORE_INDEX)}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_video_without_a_supervised_token_trains_by_the_next_frame_alone(tmp_path, accumulation):
    """The main loss of such a step is 0, its gradient too: weights behind the states, the head's, stay as they are."""
    trainer = make_trainer(
        tmp_path, data=Unsupervised(8), per_device_train_batch_size=4 // accumulation, optim="sgd",
        gradient_accumulation_steps=accumulation, config={"loss_weight": 0.5},
    )  # fmt: skip
    model = trainer.model
    head, states = (w.detach().clone() for w in (model.llm.lm_head.weight, model.llm.model.norm.weight))
    start = predictor_weights(trainer)
    trainer.train()
    for row in (row for row in trainer.state.log_history if "autoregressive_loss" in row):
        assert row["main_loss"] == 0 and row["autoregressive_loss"] > 0
        assert row["loss"] == pytest.approx(0.5 * row["autoregressive_loss"], rel=1e-4)
        assert all(math.isfinite(value) for value in row.values())
    assert torch.equal(model.llm.lm_head.weight, head)
    assert not torch.equal(model.llm.model.norm.weight, states)
    assert not torch.equal(predictor_weights(trainer), start)


def test_data_without_clips_is_warned_of_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        make_trainer(tmp_path, data=ToyData(8), per_device_train_batch_size=2).train()
    assert sum("the batches hold no clips" in record.message for record in caplog.records) == 1


def test_off_means_the_plain_trainer(tmp_path):
    trainer = make_trainer(tmp_path, model=toy_model(), trainer_class=lambda *a, **k: AutoregressiveTrainer(
        *a, enable_autoregressive=False, **k))  # fmt: skip
    trainer.train()
    assert trainer.reconstruction is None and not rows(trainer, "autoregressive_loss")
    with pytest.raises(ValueError, match="enable_autoregressive is False"):
        AutoregressiveTrainer(toy_model(), trainer.args, enable_autoregressive=False, autoregressive_config={})


def test_the_documented_trainer_adds_the_modules_itself(tmp_path):
    trainer = make_trainer(tmp_path, model=toy_model(), per_device_train_batch_size=8)
    trainer.train()
    assert trainer.model.autoregressive_reconstruction is not None and rows(trainer, "autoregressive_loss")


# ---- weight ----


def test_the_weight_can_fall_to_nothing_over_the_training(tmp_path):
    trainer = make_trainer(
        tmp_path, per_device_train_batch_size=6, config={"weight_decay": "linear", "loss_weight": 0.4}
    )
    trainer.train()
    assert rows(trainer, "autoregressive_weight") == pytest.approx([0.3, 0.2, 0.1, 0.0])


def test_the_cap_keeps_the_ratio_from_the_second_log_line_on(tmp_path):
    config = {"loss_weight": 50.0, "max_loss_ratio": 0.2}
    trainer = make_trainer(tmp_path, per_device_train_batch_size=6, config=config)
    trainer.train()
    ratios = rows(trainer, "autoregressive_ratio")
    assert ratios[0] > 0.5
    assert max(ratios[1:]) < 0.3


def test_a_large_ratio_and_a_small_share_are_warned_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        make_trainer(tmp_path / "a", per_device_train_batch_size=8, config={"loss_weight": 50.0}).train()
        config = {"loss_weight": 1e-6, "gradient_every": 1}
        make_trainer(tmp_path / "b", per_device_train_batch_size=8, config=config).train()
    messages = " ".join(record.message for record in caplog.records)
    assert "expected at most 0.5; lower loss_weight" in messages
    assert "expected at least 1% to have an effect" in messages


def test_the_weight_follows_a_share_of_the_gradient(tmp_path):
    config = {"gradient_share": 0.2, "gradient_every": 1}
    trainer = make_trainer(tmp_path, per_device_train_batch_size=24, config=config)
    trainer.train()
    row = trainer.state.log_history[0]
    parts = ("language_model", "vision_tower")
    assert len({row[f"gradient_ratio_{part}"] for part in parts}) == 2
    assert min(row[f"gradient_ratio_{p}"] for p in parts) < 0.2 < max(row[f"gradient_ratio_{p}"] for p in parts)


def test_a_share_begins_at_the_weight_and_rises_tenfold_at_most(tmp_path):
    """A head of zeros pulls at nothing at step 0, at next to nothing at step 1: the share asks for thousands."""
    config = {"gradient_share": 0.2, "gradient_every": 1}
    model = toy_learner(**config)
    torch.nn.init.zeros_(model.autoregressive_reconstruction.predictor.output_projection.weight)
    trainer = make_trainer(tmp_path, model=model, per_device_train_batch_size=8)
    trainer.train()
    weights = rows(trainer, "autoregressive_weight")
    assert weights[0] == 0.1 and weights[1] == pytest.approx(1.0)
    assert all(later <= 10.001 * before for before, later in pairwise(weights))
    again = ReconstructionMonitor(trainer.reconstruction.config)
    again.restore(json.loads(json.dumps(trainer.reconstruction.state())))
    assert again.base_weight == trainer.reconstruction.base_weight != 0.1


def test_skills_without_anything_to_compare_with_are_counted_and_in_no_mean(tmp_path):
    config = {"control": "current_frame", "predictor_input": "hidden", "head": "direct", "target_pool": 2}
    trainer = make_trainer(tmp_path, per_device_train_batch_size=8, config=config)
    trainer.train()
    row = trainer.state.log_history[0]
    assert not any(name.startswith("autoregressive_skill") for name in row)
    assert row["autoregressive_undefined_skills"] == 1 + 2  # overall, forward and turn
    assert all(math.isfinite(value) for row in trainer.state.log_history for value in row.values())


def test_frames_without_another_clip_are_counted_in_the_log(tmp_path, caplog):
    trainer = make_trainer(tmp_path, data=ToyClips(3), per_device_train_batch_size=1, config={"control": "other_clip"})
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert rows(trainer, "autoregressive_loss") == [0, 0, 0]
    assert sorted(rows(trainer, "autoregressive_masked")) == [1, 2, 3]
    assert "the batches hold no clips" not in caplog.text


def test_gradients_are_compared_weight_by_weight():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.llm = nn.Linear(2, 1, bias=False)

    model = Two()
    main, auxiliary = (3 * model.llm.weight).sum(), (4 * model.llm.weight[:, :1]).sum()
    (found,) = compare_gradients(main, auxiliary, model).values()
    assert found.main == pytest.approx(18**0.5)
    assert found.auxiliary == 4
    assert found.cosine == pytest.approx(0.5**0.5)


def test_measuring_gradients_changes_no_step(tmp_path):
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    without = make_trainer(tmp_path / "a", **settings)
    measured = make_trainer(tmp_path / "b", config={"gradient_every": 1}, **settings)
    without.train()
    measured.train()
    assert rows(measured, "loss") == rows(without, "loss")
    assert rows(measured, "gradient_cosine_language_model") and not rows(without, "gradient_cosine_language_model")


def test_a_loss_that_is_not_finite_names_step_and_samples(tmp_path):
    data = ToyClips(4)
    trainer = make_trainer(tmp_path, data=data, per_device_train_batch_size=2)
    weight = trainer.model.autoregressive_reconstruction.predictor.place
    with torch.no_grad():
        weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"not finite at step 0, samples \['clip \d', 'clip \d'\]"):
        trainer.train()


# ---- checkpoints ----


def test_the_folder_holds_the_predictor_and_says_who_the_teacher_was(tmp_path):
    model = toy_learner()
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / autoregressive.FOLDER / "config.json").read_text())
    assert settings["config"]["predictor_dim"] == 16
    assert settings["teacher"] == {
        "is_live_tower": False, "fingerprint": model.autoregressive_reconstruction.teacher.fingerprint(),
    }  # fmt: skip
    plain = toy_model()
    plain.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / autoregressive.FOLDER).exists()


def test_loading_builds_none_of_it(tmp_path):
    model = toy_learner()
    model.save_pretrained(tmp_path)
    loaded = llava.load(tmp_path)
    assert loaded.autoregressive_reconstruction is None
    assert set(loaded.state_dict()) == {n for n in model.state_dict() if not autoregressive.is_of_predictor(n)}


def resumed(tmp_path, **settings):
    """(losses of a whole run, losses of one that stopped after two of four steps and went on)."""
    common = {"per_device_train_batch_size": 6, "save_strategy": "steps", "save_steps": 2, "config": settings}
    whole = make_trainer(tmp_path / "whole", **common)
    whole.train()
    again = make_trainer(tmp_path / "again", **common)
    autoregressive.read_into(again.model.autoregressive_reconstruction, tmp_path / "whole" / "checkpoint-2")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    return rows(whole, "loss")[2:], rows(again, "loss")[-2:]


@pytest.mark.parametrize("settings", [{}, {"loss_weight": 3.0, "max_loss_ratio": 0.1, "weight_decay": "linear"}])
def test_a_resumed_run_goes_on_to_the_bit(tmp_path, settings):
    whole, again = resumed(tmp_path, **settings)
    assert again == whole


def test_a_resumed_run_gets_the_teacher_of_its_first_start(tmp_path):
    first = toy_learner()
    kept = {name: value.clone() for name, value in first.vision_tower.state_dict().items()}
    with torch.no_grad():
        for weight in first.vision_tower.parameters():
            weight.add_(0.1)
    first.save_pretrained(tmp_path)
    config = first.autoregressive_reconstruction.config
    again = llava.load(tmp_path)
    again.set_trainable(language_model=True, vision_tower=True, mm_projector=True)
    attach_reconstruction(again, config, tmp_path, toy_model)
    teacher = again.autoregressive_reconstruction.teacher.tower.state_dict()
    assert all(torch.equal(teacher[name], value) for name, value in kept.items())
    other = llava.load(tmp_path)
    other.set_trainable(language_model=True, vision_tower=True, mm_projector=True)
    with pytest.raises(ValueError, match=r"the teacher of .* has the fingerprint"):
        attach_reconstruction(other, config, tmp_path, lambda: toy_model(seed=3))


def test_a_checkpoint_without_the_loss_cannot_be_resumed_with_it(tmp_path):
    model = toy_model()
    model.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="trained without the next-frame loss"):
        attach_reconstruction(model, toy_learner().autoregressive_reconstruction.config, tmp_path, toy_model)


# ---- settings ----


def test_settings_come_as_text_or_as_a_file(tmp_path):
    file = tmp_path / "loss.yaml"
    file.write_text("num_hist: 5\nhead: direct\n")
    assert read_keys('{"num_hist": 5, "head": "direct"}') == read_keys(str(file)) == {"num_hist": 5, "head": "direct"}
    assert read_keys(None) == {}
    for wrong in ("{num_hist: 5", "nowhere.yaml"):
        with pytest.raises(ValueError, match="or a YAML or JSON file"):
            read_keys(wrong)


def options_of(*flags):
    model = toy_model()
    args = parse_args(["--output_dir", "out", "--enable_autoregressive", "True", *flags])
    return data_options(args, model.config, model.vision_tower)


def test_flags_tell_the_data_how_pictures_were_taken_and_which_second_target_is_wanted():
    options = options_of("--turn_degrees", "30", "--frame_per_action", "False", "--autoregressive_depth", "True")
    assert (options.turn_degrees, options.frame_per_action) == (30, False)
    side = grid_side_of(toy_model().vision_tower.num_patches)
    assert options.clips == ClipOptions(geometry=GeometryOptions(side=side, pool=2))
    keys = {"geometry_dim": 8, "geometry_origin": "vggt", "target_pool": 1, "site": "both"}
    expected = GeometryOptions(origin="vggt", width=8, side=side)
    assert options_of("--autoregressive_config", json.dumps(keys)).clips == ClipOptions(
        answer_targets=True, geometry=expected
    )
    plain = options_of()
    assert (plain.turn_degrees, plain.frame_per_action, plain.clips) == (15, True, ClipOptions())
    with pytest.raises(ValueError, match="geometry_dim is 3 and geometry_origin 'depth', expected 1"):
        options_of("--autoregressive_config", '{"geometry_dim": 3}')


def test_every_rank_sees_the_same_weight_after_a_restart():
    monitor = ReconstructionMonitor(toy_learner(max_loss_ratio=0.5).autoregressive_reconstruction.config)
    monitor._follow_cap(main=1.0, auxiliary=100.0)
    other = ReconstructionMonitor(monitor.config)
    other.restore(json.loads(json.dumps(monitor.state())))
    assert other.weight(0.3) == monitor.weight(0.3) == 0.005
