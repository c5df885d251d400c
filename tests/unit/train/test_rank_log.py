"""One line per step and rank, also where a run is killed, goes on, or has fewer processes than before."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from llava.train.callbacks import RankLogCallback
from llava.train.callbacks.rank_log import file_of
from llava.train.callbacks.step_lines import append, keep_until, read_lines
from llava.train.meter import TrainingMeter
from tests.unit.train.test_trainer import losses, make_trainer


def lines(folder, rank: int = 0) -> list[dict]:
    return read_lines(file_of(folder / "logs", rank))


def test_every_step_of_a_run_has_a_line_whose_losses_are_those_of_the_log(tmp_path):
    trainer = make_trainer(tmp_path, size=10, per_device_train_batch_size=2, logging_steps=2.0)
    trainer.add_callback(RankLogCallback(tmp_path, trainer.meter, with_sample_ids=True))
    trainer.train()
    rows = lines(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    pairs = [(rows[i]["main_loss"] + rows[i + 1]["main_loss"]) / 2 for i in (0, 2)]
    assert pairs == pytest.approx(losses(trainer)[:2], rel=1e-5)
    assert sorted(int(name) for row in rows for name in row["sample_ids"]) == list(range(10))
    assert sum(row["tokens"] for row in rows) == sum(trainer.lengths)
    assert all(row["samples"] == 2 and row["seconds"] >= row["data_wait"] >= 0 for row in rows)


def test_names_of_samples_are_written_only_on_demand(tmp_path):
    trainer = make_trainer(tmp_path, size=2, per_device_train_batch_size=2)
    trainer.add_callback(RankLogCallback(tmp_path, trainer.meter))
    trainer.train()
    assert all("sample_ids" not in row for row in lines(tmp_path))


def test_a_run_that_goes_on_has_each_step_once(tmp_path):
    settings = {"size": 12, "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 2.0}
    first = make_trainer(tmp_path, **settings)
    first.add_callback(RankLogCallback(tmp_path, first.meter))
    first.train()
    before = lines(tmp_path)
    again = make_trainer(tmp_path, **settings)
    again.add_callback(RankLogCallback(tmp_path, again.meter))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    after = lines(tmp_path)
    assert [row["step"] for row in after] == [1, 2, 3, 4, 5, 6]
    assert after[:4] == before[:4]
    assert [row["main_loss"] for row in after] == [row["main_loss"] for row in before]


def test_lines_of_ranks_that_no_longer_exist_end_at_the_checkpoint_too(tmp_path):
    for rank in (0, 1):
        file = file_of(tmp_path / "logs", rank)
        file.parent.mkdir(exist_ok=True)
        append(file, [{"step": step} for step in (1, 2, 3)])
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    RankLogCallback(tmp_path, TrainingMeter()).on_train_begin(args, TrainerState(global_step=2), TrainerControl())
    assert [[row["step"] for row in lines(tmp_path, rank)] for rank in (0, 1)] == [[1, 2], [1, 2]]


def test_a_failing_run_still_writes_its_last_steps(tmp_path):
    trainer = make_trainer(tmp_path, size=6, per_device_train_batch_size=2, logging_steps=100.0)
    log = RankLogCallback(tmp_path, trainer.meter)
    trainer.add_callback(log)
    trainer.training_step, step = lambda *args: next(steps)(*args), trainer.training_step

    def fail(*args):
        raise RuntimeError("out of memory")

    steps = iter([step, step, fail])
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    assert lines(tmp_path) == []
    log.flush()
    assert [row["step"] for row in lines(tmp_path)] == [1, 2]


def test_numbers_that_are_not_finite_are_null_for_every_reader_of_json(tmp_path):
    file = tmp_path / "rows.jsonl"
    append(file, [{"step": 1, "main_loss": torch.tensor(float("nan")).item(), "tokens": 3}])
    text = file.read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 1, "main_loss": None, "tokens": 3}


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert [row["step"] for row in read_lines(file)] == [1, 2]
    keep_until(file, 1)
    assert file.read_text() == '{"step": 1}\n'
