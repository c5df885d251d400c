"""What a step costs, and how many steps a time buys."""

from __future__ import annotations

import json
import sys

import pytest

from playground.experiments.reconstruction.metered import (
    COST_FILE,
    Cost,
    affordable_steps,
    cost_of,
    main,
    read_cost,
)

TRAINING = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[1]); folder.mkdir(parents=True, exist_ok=True)
(folder / "flags.json").write_text(json.dumps(sys.argv[2:]))
for step in (1, 2, 3):
    end = time.process_time() + 0.3
    while time.process_time() < end: pass
    with (folder / "progress.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "elapsed": float(step)}) + "\\n")
    time.sleep(1.2)
sys.exit(7 if "--fail" in sys.argv else 0)
"""


def samples(*rows):
    return [dict(zip(("attempt", "step", "cpu", "wall"), row, strict=True)) for row in rows]


def test_time_before_the_first_log_line_does_not_count():
    found = cost_of(samples(("a", 10, 12.0, 5.0), ("a", 50, 20.0, 25.0)))
    assert found == Cost(steps=50, cpu_per_step=0.2, wall_per_step=0.5)
    assert found.total("cpu") == 10.0 and found.total("wall") == 25.0


def test_a_restart_begins_to_count_anew():
    rows = samples(("a", 10, 12.0, 5.0), ("a", 30, 16.0, 9.0), ("b", 20, 11.0, 7.0), ("b", 40, 15.0, 11.0))
    assert cost_of(rows) == Cost(steps=40, cpu_per_step=0.2, wall_per_step=0.2)


def test_the_time_of_the_baseline_buys_fewer_steps_that_cost_more():
    baseline = Cost(steps=800, cpu_per_step=0.10, wall_per_step=1.0)
    arm = Cost(steps=800, cpu_per_step=0.16, wall_per_step=0.5)
    assert affordable_steps(baseline, arm, "cpu") == 500
    assert affordable_steps(baseline, arm, "wall") == 1600
    assert affordable_steps(Cost(steps=1, cpu_per_step=0.1, wall_per_step=1), arm, "cpu") == 1


def test_a_training_that_logged_once_has_no_cost_a_step(tmp_path):
    (tmp_path / COST_FILE).write_text(json.dumps(samples(("a", 10, 12.0, 5.0))[0]) + "\n")
    with pytest.raises(ValueError, match="span 0 steps"):
        read_cost(tmp_path)
    with pytest.raises(ValueError, match="0 attempts"):
        read_cost(tmp_path / "nothing")


@pytest.mark.slow
def test_a_command_is_run_its_steps_are_timed_and_its_status_handed_on(tmp_path):
    program, folder = tmp_path / "train.py", tmp_path / "out"
    program.write_text(TRAINING)
    code = main([str(folder), "--", sys.executable, str(program), str(folder), "--fail"])
    assert code == 7
    found = read_cost(folder)
    assert found.steps == 3 and found.wall_per_step == 1.0
    assert 0.2 < found.cpu_per_step < 0.6


@pytest.mark.slow
def test_equal_cost_appends_the_number_of_steps(tmp_path):
    program, folder = tmp_path / "train.py", tmp_path / "out"
    program.write_text(TRAINING)
    for name, per_step in (("baseline", 0.1), ("arm", 0.2)):
        (tmp_path / name).mkdir()
        rows = samples(("a", 10, 1.0, 1.0), ("a", 110, 1.0 + 100 * per_step, 101.0))
        (tmp_path / name / COST_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    partners = ["--as-long-as", str(tmp_path / "baseline"), "--one-step-like", str(tmp_path / "arm")]
    assert main([str(folder), *partners, "--", sys.executable, str(program), str(folder)]) == 0
    assert json.loads((folder / "flags.json").read_text()) == ["--max_steps", "55"]


def test_a_call_without_a_command_or_half_a_pair_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "give it behind --" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--as-long-as", "x", "--", "true"])
    assert "go together" in capsys.readouterr().err
