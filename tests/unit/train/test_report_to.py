"""Where the log goes: TensorBoard by default, other places by name, a clear word where a package is missing."""

from __future__ import annotations

import logging

import pytest

from llava.train import args as arguments
from llava.train.callbacks import tensorboard


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(arguments, "find_spec", lambda name: None)


def test_tensorboard_is_the_default_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(arguments, "find_spec", lambda name: name)
    assert arguments._reporters("auto") == ["tensorboard"]
    assert arguments._reporters("tensorboard, wandb") == ["tensorboard", "wandb"]
    assert arguments._reporters("none") == []


def test_without_tensorboard_one_line_says_so(nothing_installed, caplog):
    with caplog.at_level(logging.INFO):
        assert arguments._reporters("auto") == []
    (record,) = caplog.records
    assert "pip install tensorboard" in record.message


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_place_whose_package_is_missing_is_an_error_with_the_command(nothing_installed, name):
    with pytest.raises(ValueError, match=f"pip install {name}"):
        arguments._reporters(name)


def test_an_unknown_place_is_an_error_with_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'wandb'"):
        arguments._reporters("wanbd")


def test_a_restart_drops_the_points_that_are_trained_again(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from transformers import TrainerControl, TrainerState, TrainingArguments

    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    for begin, loss in ((0, 1.0), (2, 2.0)):
        callback, control = tensorboard(str(tmp_path / "runs")), TrainerControl()
        state = TrainerState(global_step=begin, is_world_process_zero=True)
        callback.on_train_begin(args, state, control)
        for step in range(begin + 1, 5):
            state.global_step = step
            callback.on_log(args, state, control, logs={"loss": loss})
        callback.on_train_end(args, state, control)
    found = event_accumulator.EventAccumulator(str(tmp_path / "runs"))
    found.Reload()
    assert [(point.step, point.value) for point in found.Scalars("train/loss")] == [
        (1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0),
    ]  # fmt: skip
