"""The report of a run: what became of it, its curves, settings and surroundings, on one page without other files."""

from __future__ import annotations

import json
import re

import pytest

from llava.train.callbacks.step_lines import append
from llava.train.checkpointing import FINISHED, write_json
from llava.train.parse import parse_args
from llava.train.report import REPORT_FILE, curves, observed_run, write_report
from llava.train.report.__main__ import main
from llava.train.report.curves import PANELS, Panel, draw, names_of, series, thinned
from llava.train.report.data import SETTINGS_FILE, starts


@pytest.fixture
def run(tmp_path):
    """A folder with three log lines, of a run that is still going."""
    rows = [{"step": s, "loss": 3.0 / s, "grad_norm": 1.0, "elapsed": 10.0 * s, "data_wait": 0.25} for s in (1, 2, 3)]
    append(tmp_path / "progress.jsonl", rows)
    table = {"part": "mm_projector", "parameters": 1234, "trainable": 1234, "learning_rate": 1e-3}
    write_json(tmp_path / "trained_parts.json", [{**table, "dtype": "float32", "method": "whole"}])
    return tmp_path


def arguments(folder):
    return parse_args(["--output_dir", str(folder), "--learning_rate", "2e-5", "--report_to", "none"])


def fail(folder, error: Exception, close) -> None:
    """A run that breaks off."""
    with observed_run(folder, arguments(folder), []) as run:
        run.closing.append(close)
        raise error


def page(folder) -> str:
    return write_report(folder).read_text()


def test_the_page_stands_alone(run):
    text = page(run)
    assert len(re.findall(r'src="data:image/png;base64,', text)) == 3, "loss, gradient norm, waiting"
    assert not re.search(r'(src|href)="(http|//)', text)
    assert "<script" not in text
    assert "<td>mm projector</td>" in text
    assert "1,234" in text


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (None, "still running, or was killed after step 3"),
        ({"status": "failed", "message": "OutOfMemoryError: <3 GiB", "time": 2.0}, "OutOfMemoryError: &lt;3 GiB"),
        ({"status": "stopped", "message": "SIGTERM", "time": 2.0}, "the same command goes on from there"),
    ],
)
def test_the_page_says_what_became_of_the_run(run, end, words):
    with observed_run(run, arguments(run), []):
        pass
    (start,) = starts(run)
    start.pop("end")
    write_json(run / SETTINGS_FILE, {"starts": [start if end is None else {**start, "end": end}]})
    assert words in page(run)


def test_a_run_with_its_marker_is_finished(run):
    write_json(run / FINISHED, {"step": 3})
    assert "Finished at step 3." in page(run)


def test_settings_that_were_given_are_told_apart_from_the_others(run):
    with observed_run(run, arguments(run), ["--learning_rate", "2e-5"]):
        pass
    given, others = page(run).split("<details>")
    assert "<td>learning_rate</td><td>2e-05</td>" in given
    assert "weight_decay" not in given
    assert "<td>weight_decay</td>" in others
    assert "<td>torch</td>" in others


def test_a_failure_is_recorded_closes_the_logs_and_is_raised_on(tmp_path):
    closed = []
    with pytest.raises(RuntimeError, match="out of memory"):
        fail(tmp_path, RuntimeError("out of memory"), lambda: closed.append(True))
    (start,) = starts(tmp_path)
    assert (start["end"]["status"], start["end"]["message"]) == ("failed", "RuntimeError: out of memory")
    assert closed
    assert "out of memory" in (tmp_path / REPORT_FILE).read_text()


def test_a_log_that_cannot_be_closed_does_not_hide_the_first_error(tmp_path):
    def broken():
        raise RuntimeError("device lost")

    with pytest.raises(ValueError, match="the first"):
        fail(tmp_path, ValueError("the first"), broken)


def test_every_start_of_a_run_is_kept(tmp_path):
    for reason in ("SIGTERM", None):
        with observed_run(tmp_path, arguments(tmp_path), []) as run:
            run.stopped_because = reason
    assert [start["end"]["status"] for start in starts(tmp_path)] == ["stopped", "finished"]
    assert starts(tmp_path)[0]["environment"]["torch"]


def test_another_rank_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with observed_run(tmp_path, arguments(tmp_path), []):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_drawn_is_no_failure_of_the_run(run, monkeypatch):
    monkeypatch.setattr("llava.train.report.record.write_report", lambda folder: 1 / 0)
    with observed_run(run, arguments(run), []):
        pass
    assert starts(run)[0]["end"]["status"] == "finished"


def test_without_matplotlib_the_page_says_why_it_has_no_curves(run, monkeypatch):
    def missing(*args):
        raise ImportError("matplotlib")

    monkeypatch.setattr("llava.train.report.page.draw", missing)
    assert "pip install matplotlib" in page(run)


def test_several_ranks_are_compared(run):
    (run / "logs").mkdir()
    for rank in (0, 1):
        append(run / "logs" / f"rank{rank}.jsonl", [{"step": s, "data_wait": 0.1 * rank} for s in (1, 2)])
    assert "waiting for data per step and rank" in page(run)


def test_evaluations_are_drawn_among_the_losses(run):
    write_json(run / "trainer_state.json", {"log_history": [{"step": 2, "eval_loss": 1.0}, {"step": 2, "loss": 9.0}]})
    names = series([{"step": 1, "loss": 1.0}, {"step": 2, "eval_loss": 1.0}])
    assert names_of(PANELS[0], list(names)) == ["loss", "eval_loss"]
    assert page(run)


def test_a_training_by_trl_is_told_from_its_newest_checkpoint(tmp_path):
    rows = [{"step": s, "loss": 1.0 / s, "rewards/margins": 0.1 * s} for s in (1, 2)]
    (tmp_path / "checkpoint-2").mkdir()
    write_json(
        tmp_path / "checkpoint-2" / "trainer_state.json", {"log_history": [*rows, {"step": 2, "train_loss": 1.0}]}
    )
    text = page(tmp_path)
    assert "<b>2</b><span>steps</span>" in text
    assert 'alt="Rewards"' in text


def test_values_that_are_not_finite_are_left_out_of_a_curve():
    rows = [{"step": 1, "loss": None}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": float("inf")}]
    assert series(rows)["loss"] == ([2.0], [2.0])


def test_long_curves_are_thinned_to_what_can_be_seen():
    steps = [float(s) for s in range(10_000)]
    kept, values = thinned((steps, steps))
    assert len(kept) <= curves.LARGEST_CURVE
    assert kept == values


def test_a_panel_is_a_picture():
    assert draw(Panel(title="x", starts=()), {"a": ([1.0, 2.0], [1.0, 2.0])}).startswith(b"\x89PNG")


def test_the_command_writes_the_page_or_says_what_is_missing(run, tmp_path, capsys):
    assert main([str(run), "--out", str(tmp_path / "other.html")]) == 0
    assert (tmp_path / "other.html").is_file()
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main([str(empty)]) == 2
    assert "holds no training run" in capsys.readouterr().err


def test_settings_are_plain_json(run):
    with observed_run(run, arguments(run), []):
        pass
    settings = json.loads((run / SETTINGS_FILE).read_text())["starts"][0]["settings"]
    assert settings["learning_rate"] == 2e-5
    assert settings["output_dir"] == str(run)
