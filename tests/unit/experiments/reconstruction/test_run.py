"""The command: its choices, its mistakes, and what happens when an arm fails."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from playground.demo.display import Display
from playground.demo.phases import Command, Phase
from playground.demo.runner import Runner
from playground.experiments.reconstruction.run import EXPERIMENT

ROOT = Path(__file__).resolve().parents[4]


def phase(tmp_path, name, code=0, needs=()):
    output = tmp_path / f"{name}.out"
    script = f"import pathlib, sys; pathlib.Path({str(output)!r}).write_text('x'); sys.exit({code})"
    return Phase(
        name=name, title=name, commands=(Command(argv=(sys.executable, "-c", script)),), outputs=(output,),
        seconds=0.1, needs=needs,
    )  # fmt: skip


def run_phases(tmp_path, *phases):
    sink = io.StringIO()
    display = Display(Console(file=sink, width=200))
    runner = Runner(phases, tmp_path / "run", cores=2, display=display, cwd=tmp_path, keep_going=True)
    runner.run()
    return runner, sink.getvalue()


def test_a_phase_that_fails_takes_only_what_needs_it_along(tmp_path):
    bad, good = phase(tmp_path, "bad", code=3), phase(tmp_path, "good")
    after_bad = phase(tmp_path, "walk-bad", needs=("bad",))
    later = phase(tmp_path, "later", needs=("walk-bad", "good"))
    after_good = phase(tmp_path, "walk-good", needs=("good",))
    runner, said = run_phases(tmp_path, bad, good, after_bad, later, after_good)
    assert set(runner.failed) == {"bad"} and "exit code 3" in runner.failed["bad"]
    assert runner.finished == {"good", "walk-good"} and runner.given_up == {"bad", "walk-bad", "later"}
    assert "exit code 3" in said and not (tmp_path / "walk-bad.out").exists()
    states = {row["name"]: row["state"] for row in runner.write_timing()["phases"]}
    assert states["bad"] == "failed" and states["good"] == "done" and states["later"] == "waiting"


def test_a_repaired_phase_is_run_again_and_finished_ones_are_reused(tmp_path):
    mark = tmp_path / "repaired"
    script = f"import pathlib, sys; pathlib.Path({str(tmp_path / 'arm.out')!r}).touch(); sys.exit(not pathlib.Path({str(mark)!r}).exists())"  # noqa: E501
    arm = Phase(name="arm", title="arm", commands=(Command(argv=(sys.executable, "-c", script)),),
                outputs=(tmp_path / "arm.out",), seconds=0.1)  # fmt: skip
    other = phase(tmp_path, "other")
    first, _ = run_phases(tmp_path, arm, other)
    assert set(first.failed) == {"arm"}
    mark.touch()
    second, said = run_phases(tmp_path, arm, other)
    assert not second.failed and "other: reused" in said


def test_arms_formats_and_seeds_are_chosen_on_the_command_line():
    options = EXPERIMENT.parser().parse_args(
        ["--arms", "leaking", "--formats", "8frames", "--seeds", "7", "--equal-cost", "leaking"]
    )
    names = [run.name for run in EXPERIMENT.choose(options).runs()]
    assert names == ["8frames-baseline-s7", "8frames-leaking-s7", "8frames-leaking-cost-s7"]


def test_mistakes_in_the_call_are_one_line(capsys):
    assert EXPERIMENT.main(["--setting", "smal"]) == 2
    assert "did you mean 'small'" in capsys.readouterr().err
    assert EXPERIMENT.main(["--arms", "leakin"]) == 2
    assert "did you mean 'leaking'" in capsys.readouterr().err


def test_the_plan_can_be_printed_and_copied(capsys, tmp_path):
    assert EXPERIMENT.main(["--plan", "--run-dir", str(tmp_path), "--cores", "2"]) == 0
    said = capsys.readouterr().out
    assert "bash scripts/train/sft_episodes.sh" in said and "21 trainings" in said


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quick_experiment_runs_from_nothing_to_its_page_and_is_reused(tmp_path):
    call = [sys.executable, "-m", "playground.experiments.reconstruction.run", "--setting", "quick"]
    call += ["--run-dir", str(tmp_path / "run"), "--cores", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.run(call, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    assert "equal computing time" in first.stdout and (tmp_path / "run" / "report.html").is_file()
    again = subprocess.run(call, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and again.stdout.count("reused") == 17
