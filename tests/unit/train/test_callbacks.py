"""Beside the loop: progress lines, signals, the loss curve."""

from __future__ import annotations

import io
import json
import os
import signal

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from llava.train.callbacks import AutoResumeCallback, LossCurveCallback, ProgressCallback, agreement
from llava.train.callbacks.agreement import Agreement
from llava.train.callbacks.loss_curve import smooth
from llava.train.callbacks.progress import PROGRESS_FILE, read_progress
from llava.train.schedule import TrainClock


@pytest.fixture
def args(tmp_path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")


def state_at(step: int, total: int = 10) -> TrainerState:
    return TrainerState(global_step=step, max_steps=total, is_world_process_zero=True)


def test_progress_is_a_plain_line_and_a_json_line_when_there_is_no_terminal(tmp_path, args):
    now = iter(float(n) for n in range(100))
    clock = TrainClock(now=lambda: next(now))
    clock.start()
    out = io.StringIO()
    progress = ProgressCallback(tmp_path, clock, every=0.0, stream=out)
    control = TrainerControl()
    progress.on_train_begin(args, state_at(0), control)
    progress.on_log(args, state_at(5), control, logs={"loss": 2.5, "tokens_per_second": 1234.0})
    progress.on_step_end(args, state_at(5), control)
    assert "50 % | step 5/10 | loss 2.5000 | 1,234 tokens/s" in out.getvalue()
    (row,) = read_progress(tmp_path)
    assert {"step": 5, "total": 10, "share": 0.5, "loss": 2.5}.items() <= row.items()
    assert row["eta"] > 0


def test_under_a_time_budget_progress_follows_the_clock(tmp_path, args):
    clock = TrainClock(100.0, now=iter([0.0, *[25.0] * 20]).__next__)
    clock.start()
    progress = ProgressCallback(tmp_path, clock, stream=io.StringIO())
    progress.on_train_begin(args, state_at(0, total=10**9), TrainerControl())
    progress.on_log(args, state_at(50, total=10**9), TrainerControl(), logs={"loss": 1.0})
    (row,) = read_progress(tmp_path)
    assert (row["share"], row["eta"], row["total"]) == (0.25, 75.0, 200)


def test_resuming_drops_the_lines_of_steps_that_are_trained_again(tmp_path, args):
    lines = [json.dumps({"step": step}) for step in (1, 2, 3)]
    (tmp_path / PROGRESS_FILE).write_text("\n".join([*lines, '{"step": 4, "los']))
    progress = ProgressCallback(tmp_path, TrainClock(), stream=io.StringIO())
    progress.on_train_begin(args, state_at(2), TrainerControl())
    assert [row["step"] for row in read_progress(tmp_path)] == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_stops_at_the_end_of_the_step(args, number):
    callback, control = AutoResumeCallback(), TrainerControl()
    before = signal.getsignal(number)
    callback.on_train_begin(args, state_at(1), control)
    try:
        os.kill(os.getpid(), number)
        callback.on_step_end(args, state_at(1), control)
    finally:
        callback.on_train_end(args, state_at(1), control)
    assert control.should_save
    assert control.should_training_stop
    assert callback.stopped_because == signal.Signals(number).name
    assert signal.getsignal(number) is before


def test_a_time_limit_saves_before_it_is_reached(args):
    now = iter([0.0, 59.0, 61.0])
    callback, control = AutoResumeCallback(time_limit=100.0, reserve=40.0, now=lambda: next(now)), TrainerControl()
    callback.on_step_end(args, state_at(1), control)
    assert callback.stopped_because is None
    callback.on_step_end(args, state_at(2), control)
    assert callback.stopped_because == "time limit"


def test_behind_the_last_step_a_run_is_finished_not_stopped(args):
    callback, control = AutoResumeCallback(time_limit=1.0, reserve=0.0, now=lambda: 9.0, began=0.0), TrainerControl()
    callback.on_step_end(args, state_at(10), control)
    assert callback.stopped_because is None and not control.should_save
    callback.on_step_end(args, state_at(9), control)
    assert callback.stopped_because == "time limit"


def test_a_time_limit_runs_from_the_start_that_is_named(args):
    callback = AutoResumeCallback(time_limit=100.0, reserve=40.0, now=lambda: 61.0, began=0.0)
    callback.on_step_end(args, state_at(1), TrainerControl())
    assert callback.stopped_because == "time limit"


@pytest.mark.parametrize(("seconds", "every"), [(0.01, 10), (1.0, 5), (2.0, 2), (60.0, 1)])
def test_ranks_agree_every_ten_steps_or_five_seconds(monkeypatch, seconds, every):
    """A step of a minute is no longer than the notice of ten: the ranks ask after each."""
    monkeypatch.setattr(agreement, "_world_size", lambda: 2)
    monkeypatch.setattr(agreement.dist, "all_reduce", lambda votes, op: None)
    now = iter([0.0, seconds, 100.0])
    asks = Agreement(now=lambda: next(now))
    asks.begin(7)
    assert asks.due(8)
    assert asks.any_rank(8, True, False, device=torch.device("cpu")) == (True, False)
    assert [asks.due(8 + step) for step in (every - 1, every)] == [False, True]


def test_the_slowest_rank_says_how_often_they_agree(monkeypatch):
    monkeypatch.setattr(agreement, "_world_size", lambda: 2)
    monkeypatch.setattr(agreement.dist, "all_reduce", lambda votes, op: votes.copy_(torch.tensor([1.0, 2.5])))
    asks = Agreement(now=lambda: 0.0)
    asks.begin(0)
    assert asks.any_rank(1, False, device=torch.device("cpu")) == (True,)
    assert asks.every == 2


def test_the_loss_curve_is_drawn_at_the_end(tmp_path, args):
    state = state_at(3)
    state.log_history = [{"step": step, "loss": 3.0 / step} for step in (1, 2, 3)]
    LossCurveCallback(tmp_path).on_train_end(args, state, TrainerControl())
    assert (tmp_path / "loss_curve.png").read_bytes().startswith(b"\x89PNG")


def test_smoothing_a_constant_gives_the_constant():
    assert smooth([2.0] * 30) == pytest.approx([2.0] * 30)
