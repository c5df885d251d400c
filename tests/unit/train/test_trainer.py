"""The trainer: loss over the whole step, samples dealt exactly, checkpoints whole or absent."""

from __future__ import annotations

import json
import logging
from collections import Counter

import pytest
import torch

from llava.data.collate import DataCollator
from llava.train import checkpointing
from llava.train.args import TrainingArguments
from llava.train.callbacks import TimeBudgetCallback
from llava.train.llava_trainer import LLaVATrainer
from llava.train.schedule import TrainClock
from tests.unit.train.toy import IMAGE_TOKEN, ToyData, toy_model


def make_trainer(
    folder, *, size: int = 24, seed: int = 0, clock: TrainClock | None = None, model=None, **settings
) -> LLaVATrainer:
    """A trainer of the toy model; settings are training arguments."""
    chosen = {"logging_steps": 1.0, "save_strategy": "no", "learning_rate": 1e-2, "num_train_epochs": 1.0, **settings}
    args = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", lr_scheduler_type="constant", **chosen
    )
    data = ToyData(size)
    mode = "pack" if args.packing == "True" else "pad"
    collator = DataCollator(pad_token_id=0, max_length=64, mode=mode, rows="one", image_token_id=IMAGE_TOKEN)
    model = toy_model(seed) if model is None else model
    return LLaVATrainer(
        model,
        args,
        clock=clock,
        lengths=data.lengths,
        modalities=[1] * size,
        train_dataset=data,
        data_collator=collator,
    )


def weights(trainer: LLaVATrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def losses(trainer: LLaVATrainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_accumulated_small_batches_train_like_one_large_batch(tmp_path):
    settings = {"num_train_epochs": 2.0, "optim": "sgd"}  # Adam would blow up the rounding of gradients near 0
    large = make_trainer(tmp_path / "a", per_device_train_batch_size=8, **settings)
    small = make_trainer(tmp_path / "b", per_device_train_batch_size=2, gradient_accumulation_steps=4, **settings)
    large.train()
    small.train()
    assert len(losses(small)) == 6
    assert losses(small) == pytest.approx(losses(large), abs=1e-5)
    assert torch.allclose(weights(small), weights(large), atol=1e-6)


@pytest.mark.parametrize("size", [7, 3])
def test_accumulation_over_an_odd_number_of_samples_uses_each_once_per_epoch(tmp_path, size, caplog):
    """7 samples in batches of 2, 3 batches per step: steps of 6 and 1. 3 samples: one step of all."""
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "num_train_epochs": 2.0}
    trainer = make_trainer(tmp_path, size=size, **settings)
    seen: Counter[str] = Counter()
    collate = trainer.data_collator

    def counted(samples):
        seen.update(sample["sample_id"] for sample in samples)
        return collate(samples)

    trainer.data_collator = counted
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert seen == {str(index): 2 for index in range(size)}
    assert trainer.state.global_step == (4 if size == 7 else 2)
    assert ("an epoch has 3 samples, a global batch 6" in caplog.text) == (size == 3)


def test_packed_and_padded_batches_of_the_same_samples_have_the_same_loss(tmp_path):
    padded = make_trainer(tmp_path / "a", per_device_train_batch_size=24, optim="sgd")
    packed = make_trainer(tmp_path / "b", packing=True, tokens_per_batch=10_000, optim="sgd")
    padded.train()
    packed.train()
    assert losses(packed) == pytest.approx(losses(padded), abs=1e-5)
    assert torch.allclose(weights(packed), weights(padded), atol=1e-6)


def test_workers_deliver_the_same_batches_as_the_main_process(tmp_path):
    alone = make_trainer(tmp_path / "a", per_device_train_batch_size=4)
    helped = make_trainer(tmp_path / "b", per_device_train_batch_size=4, dataloader_num_workers=1)
    alone.train()
    helped.train()
    assert losses(alone) == losses(helped)


def test_an_evaluation_loss_is_that_of_all_logits_and_makes_only_the_last_ones(tmp_path):
    trainer = make_trainer(tmp_path, packing=True, per_device_eval_batch_size=24)
    made = []
    trainer.model.llm.lm_head.register_forward_hook(lambda module, arguments, output: made.append(output.shape))
    loss = trainer.evaluate(eval_dataset=trainer.train_dataset)["eval_loss"]
    rows = sum(int((sample["labels"] != -100).sum()) for sample in map(ToyData(24).__getitem__, range(24)))
    assert [shape.numel() // shape[-1] for shape in made] == [1, rows]
    batch = trainer.data_collator([ToyData(24)[index] for index in range(24)])
    inputs = {name: value for name, value in batch.items() if name != "sample_ids"}
    with torch.no_grad():
        output = trainer.model(**inputs)
    assert output.logits.shape[1] == batch["input_ids"].shape[1]
    assert loss == pytest.approx(output.loss.item(), abs=1e-6)


def test_recomputing_activations_changes_no_loss(tmp_path):
    plain = make_trainer(tmp_path / "a", packing=True, tokens_per_batch=64)
    again = make_trainer(tmp_path / "b", packing=True, tokens_per_batch=64, gradient_checkpointing=True)
    plain.train()
    again.train()
    assert losses(again) == pytest.approx(losses(plain), abs=1e-6)


def test_a_log_line_tells_loss_terms_speed_and_waiting(tmp_path):
    trainer = make_trainer(tmp_path, per_device_train_batch_size=4)
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["main_loss"] == pytest.approx(row["loss"])
    assert row["tokens_per_second"] > 0
    assert 0 <= row["data_wait"] <= 1
    assert trainer.meter.total_tokens == sum(ToyData(24).lengths)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_samples(tmp_path):
    """Also before a checkpoint that comes ahead of the next log line: what is broken replaces nothing good."""
    settings = {"per_device_train_batch_size": 4, "logging_steps": 100.0, "save_strategy": "steps", "save_steps": 2.0}
    trainer = make_trainer(tmp_path, **settings)
    with torch.no_grad():
        next(trainer.model.llm.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 1, .*lower --learning_rate"):
        trainer.train()
    (batch,) = json.loads((tmp_path / "loss_not_finite.json").read_text())["batches"]
    assert batch["step"] == 0 and len(batch["sample_ids"]) == 4
    assert checkpointing.complete_checkpoints(tmp_path) == []
    logged = make_trainer(tmp_path, model=trainer.model, per_device_train_batch_size=4)
    with pytest.raises(FloatingPointError, match="expected a finite number"):
        logged.train()


def test_a_loss_that_is_no_number_behind_the_last_log_line_is_found_at_the_end(tmp_path):
    trainer = make_trainer(tmp_path, per_device_train_batch_size=4, logging_steps=100.0)
    with torch.no_grad():
        next(trainer.model.llm.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="loss is nan at step 1"):
        trainer.train()


def test_resuming_repeats_the_losses_of_an_uninterrupted_run_to_the_bit(tmp_path):
    settings = {"per_device_train_batch_size": 4, "num_train_epochs": 2.0, "save_strategy": "steps", "save_steps": 4.0}
    whole = make_trainer(tmp_path / "a", **settings)
    whole.train()
    for step in (4, 8):
        again = make_trainer(tmp_path / "a", seed=1, **settings)
        again.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{step}"))
        assert losses(again) == losses(whole)
        assert torch.equal(weights(again), weights(whole))


def test_checkpoints_are_complete_rotated_and_leave_nothing_half_written(tmp_path):
    trainer = make_trainer(
        tmp_path, per_device_train_batch_size=4, save_strategy="steps", save_steps=2.0, save_total_limit=2
    )
    trainer.train()
    found = checkpointing.complete_checkpoints(tmp_path)
    assert [path.name for path in found] == ["checkpoint-4", "checkpoint-6"]
    assert not (tmp_path / checkpointing.STAGING).exists()
    facts = json.loads((found[-1] / checkpointing.MARKER).read_text())
    assert facts["step"] == 6
    assert facts["tokens"] == trainer.meter.total_tokens


def test_a_checkpoint_without_its_marker_is_skipped_with_a_warning(tmp_path, caplog):
    for step in (10, 20, 3):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (10, 3):
        checkpointing.mark_complete(tmp_path / f"checkpoint-{step}", {"step": step})
    with caplog.at_level(logging.WARNING):
        assert checkpointing.newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert "checkpoint-20 has no checkpoint_complete.json" in caplog.text


def test_a_time_budget_ends_the_run_and_the_rate_follows_the_clock(tmp_path):
    time = iter(range(100_000))
    clock = TrainClock(200.0, now=lambda: float(next(time)))
    trainer = make_trainer(
        tmp_path, clock=clock, per_device_train_batch_size=4, num_train_epochs=1000.0, max_train_seconds=200.0
    )
    trainer.args.lr_scheduler_type = type(trainer.args.lr_scheduler_type)("cosine")
    trainer.add_callback(TimeBudgetCallback(clock))
    trainer.train()
    rates = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    assert 5 < trainer.state.global_step < 100
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.05 * rates[0]


def test_sampling_that_needs_lengths_says_so(tmp_path):
    trainer = make_trainer(tmp_path, tokens_per_batch=64)
    trainer.lengths = None
    with pytest.raises(ValueError, match="--tokens_per_batch needs the length of every sample"):
        trainer.batch_plan()
    trainer = make_trainer(tmp_path, sampler="shufle")
    with pytest.raises(ValueError, match="did you mean 'shuffle'"):
        trainer.batch_plan()
