"""How far a command is, read from its progress file, its log or the clock."""

from __future__ import annotations

import io
import json
import os
import time

import pytest
from rich.console import Console

from playground.demo import display
from playground.demo.display import Display, clock
from playground.demo.phases import Phase, Progress
from playground.demo.progress import estimate, last_record, log_progress, training_progress


def test_a_training_says_its_own_time_left(tmp_path):
    record = {"step": 50, "total": 200, "share": 0.25, "loss": 1.25, "tokens_per_second": 9000.0, "eta": 33.0}
    (tmp_path / "progress.jsonl").write_text(json.dumps({"step": 1, "total": 200}) + "\n" + json.dumps(record) + "\n")
    progress = training_progress(tmp_path)()
    assert progress is not None and (progress.share, progress.note) == (0.25, "step 50, loss 1.250, 9,000 tokens/s")
    assert progress.seconds_left == pytest.approx(33.0, abs=2.0)


def test_time_goes_on_between_two_lines_of_a_training(tmp_path):
    file = tmp_path / "progress.jsonl"
    file.write_text(json.dumps({"step": 1, "share": 0.5, "eta": 30.0}) + "\n")
    os.utime(file, (time.time() - 10, time.time() - 10))
    assert training_progress(tmp_path)().seconds_left == pytest.approx(20.0, abs=2.0)


def test_the_log_of_an_earlier_try_is_not_this_one(tmp_path):
    log = tmp_path / "eval.log"
    log.write_text("$ vila-eval\n200/200 episodes\n\n$ vila-eval\nloading\n")
    assert log_progress(log)() is None


def test_a_half_written_last_line_is_not_read(tmp_path):
    (tmp_path / "progress.jsonl").write_text('{"step": 3}\n{"step": 4, "to')
    assert last_record(tmp_path / "progress.jsonl") == {"step": 3}


def test_a_log_is_read_for_its_last_count(tmp_path):
    log = tmp_path / "eval.log"
    log.write_text("10/200 episodes, SR 3 %\n50/200 episodes, SR 5 %\nLoading weights: 6/6 [00:00]\n")
    progress = log_progress(log)()
    assert progress is not None and progress.share == 0.25


def test_without_a_word_from_the_phase_the_plan_counts_down():
    phase = Phase(name="a", title="A", commands=(), outputs=(), seconds=100)
    assert estimate(phase, 40.0) == Progress(share=0.4, seconds_left=60.0)
    assert estimate(phase, 500.0).seconds_left == 0


def test_a_share_without_a_time_is_extrapolated():
    phase = Phase(name="a", title="A", commands=(), outputs=(), seconds=9, progress=lambda: Progress(share=0.25))
    assert estimate(phase, 10.0).seconds_left == 30


def test_clocks_read_like_clocks():
    assert [clock(s) for s in (0, 61, 3661)] == ["0:00", "1:01", "1:01:01"]


def test_without_a_terminal_plain_lines_come_now_and_then(monkeypatch):
    sink = io.StringIO()
    phase = Phase(name="a", title="Training", commands=(), outputs=(), seconds=100)
    monkeypatch.setattr(display, "PLAIN_SECONDS", 0.0)
    with Display(Console(file=sink, width=120)) as shown:
        shown.update([(phase, 10.0, Progress(share=0.1, seconds_left=90.0, note="step 3"))], 150.0)
    assert "Training: 10%, 0:10 spent, 1:30 left (step 3); all: 2:30 to go" in sink.getvalue()


def test_in_a_terminal_the_lines_are_live():
    sink = io.StringIO()
    phase = Phase(name="a", title="Training", commands=(), outputs=(), seconds=100)
    with Display(Console(file=sink, width=120, force_terminal=True)) as shown:
        shown.update([(phase, 10.0, Progress(share=0.1, seconds_left=90.0))], 150.0)
    assert "1:30 left" in sink.getvalue()
