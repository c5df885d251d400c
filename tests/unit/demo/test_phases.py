"""Phases are reused, continued or redone by their marker files; fake commands stand in for training."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from playground.demo.display import Display
from playground.demo.phases import Command, Decision, Phase, settings_hashes
from playground.demo.processes import members
from playground.demo.runner import PhaseFailed, Runner, exclusive, makespan

REPOSITORY = Path(__file__).resolve().parents[3]


def write(path: Path, text: str, seconds: float = 0.0) -> Command:
    code = f"import time, pathlib; time.sleep({seconds}); pathlib.Path({str(path)!r}).write_text({text!r})"
    return Command(argv=(sys.executable, "-c", code))


def phase(tmp_path: Path, name: str, *, text: str = "x", seconds: float = 0.0, **options) -> Phase:
    output = tmp_path / f"{name}.out"
    return Phase(
        name=name,
        title=name.title(),
        commands=(write(output, text, seconds),),
        outputs=(output,),
        seconds=max(seconds, 0.1),
        **options,
    )


def run(tmp_path: Path, *phases: Phase, cores: int = 2) -> tuple[Runner, str]:
    sink = io.StringIO()
    runner = Runner(phases, tmp_path / "run", cores=cores, display=Display(Console(file=sink, width=200)), cwd=tmp_path)
    runner.run()
    return runner, sink.getvalue()


def test_a_second_run_reuses_every_phase_and_says_so(tmp_path):
    phases = (phase(tmp_path, "data"), phase(tmp_path, "train", needs=("data",)))
    first, _ = run(tmp_path, *phases)
    assert set(first.decisions.values()) == {Decision.RUN}
    second, said = run(tmp_path, *phases)
    assert set(second.decisions.values()) == {Decision.REUSE}
    assert said.count("reused") == 2 and "data.out" in said


def test_changed_settings_redo_the_phase_and_all_that_need_it_and_keep_the_old_output(tmp_path):
    data, train, other = phase(tmp_path, "data"), phase(tmp_path, "train", needs=("data",)), phase(tmp_path, "other")
    run(tmp_path, data, train, other)
    again, said = run(tmp_path, replace(data, settings={"seed": 2}), train, other)
    assert again.decisions == {"data": Decision.REDO, "train": Decision.REDO, "other": Decision.REUSE}
    assert "settings changed" in said
    assert sorted(path.name for path in (tmp_path / "run" / "old").rglob("*.out")) == ["data.out", "train.out"]


def test_a_phase_whose_output_was_deleted_runs_again(tmp_path):
    data = phase(tmp_path, "data")
    run(tmp_path, data)
    (tmp_path / "data.out").unlink()
    again, _ = run(tmp_path, data)
    assert again.decisions["data"] is Decision.CONTINUE and (tmp_path / "data.out").exists()


def test_a_failing_command_shows_the_end_of_its_log_and_keeps_finished_phases(tmp_path):
    bad = Phase(
        name="train",
        title="Training",
        commands=(Command(argv=(sys.executable, "-c", "print('no such mixture'); raise SystemExit(3)")),),
        outputs=(),
        seconds=1,
        needs=("data",),
    )
    with pytest.raises(PhaseFailed, match=r"(?s)exit code 3.*no such mixture.*train\.log"):
        run(tmp_path, phase(tmp_path, "data"), bad)
    again, _ = run(tmp_path, phase(tmp_path, "data"))
    assert again.decisions["data"] is Decision.REUSE


def test_a_program_that_is_not_installed_names_the_next_step(tmp_path):
    absent = Phase(name="a", title="A", commands=(Command(argv=("no-such-program",)),), outputs=(), seconds=1)
    with pytest.raises(PhaseFailed, match="make install"):
        run(tmp_path, absent)


def test_an_output_that_a_command_left_out_is_an_error(tmp_path):
    silent = Phase(name="a", title="A", commands=(Command(argv=("true",)),), outputs=(tmp_path / "missing",), seconds=1)
    with pytest.raises(PhaseFailed, match="left out missing"):
        run(tmp_path, silent)


def test_phases_run_side_by_side_as_long_as_their_threads_fit(tmp_path):
    pair = [phase(tmp_path, name, seconds=0.8) for name in ("a", "b")]
    began = time.monotonic()
    run(tmp_path, *pair, cores=2)
    together = time.monotonic() - began
    began = time.monotonic()
    run(tmp_path / "run", *[replace(p, settings={"again": 1}) for p in pair], cores=1)
    assert together < 1.55 < time.monotonic() - began


def test_the_time_left_follows_needs_and_threads(tmp_path):
    data = phase(tmp_path, "data", threads=2)
    a, b = phase(tmp_path, "a", needs=("data",)), phase(tmp_path, "b", needs=("data",))
    report = phase(tmp_path, "report", needs=("a", "b"))
    left = {"data": 10.0, "a": 30.0, "b": 20.0, "report": 1.0}
    assert makespan((data, a, b, report), left, cores=2) == 41
    assert makespan((data, a, b, report), left, cores=1) == 61
    assert makespan((data, a, b, report), left | {"data": 0.0, "a": 0.0}, cores=2) == 21


def test_a_phase_must_stand_after_what_it_needs(tmp_path):
    with pytest.raises(ValueError, match="order the phases"):
        settings_hashes((phase(tmp_path, "train", needs=("data",)), phase(tmp_path, "data")))


def test_two_demos_do_not_share_a_folder(tmp_path):
    with (
        exclusive(tmp_path),
        pytest.raises(RuntimeError, match=f"process {os.getpid()}.*--run-dir"),
        exclusive(tmp_path),
    ):
        pass


RUN_SLOW_PHASE = """
import sys
from pathlib import Path
sys.path.insert(0, {repository!r})
sys.path.insert(0, {tests!r})
from test_phases import Phase, Command, run
slow = Phase(name="slow", title="Slow", commands=(Command(argv=(sys.executable, "-c", {child!r})),),
             outputs=(Path("done.out"),), seconds=5)
run(Path.cwd(), slow)
"""

CHILD = """
import pathlib, time
tries = pathlib.Path("tries"); tries.write_text((tries.read_text() if tries.exists() else "") + "x")
if len(tries.read_text()) == 1:
    time.sleep(60)
pathlib.Path("done.out").write_text("ok")
"""


def test_a_killed_demo_goes_on_and_leaves_no_orphans(tmp_path):
    program = RUN_SLOW_PHASE.format(repository=str(REPOSITORY), tests=str(Path(__file__).parent), child=CHILD)
    demo = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path)
    deadline = time.monotonic() + 30
    while not (tmp_path / "tries").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    demo.send_signal(signal.SIGKILL)
    demo.wait()
    marker = json.loads((tmp_path / "run" / "phases" / "slow.json").read_text())
    assert marker["state"] == "running" and members(marker["token"])
    said = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, timeout=60, check=True)
    assert said.returncode == 0
    assert (tmp_path / "tries").read_text() == "xx" and (tmp_path / "done.out").exists()
    assert members(marker["token"]) == []


def test_timing_is_written_with_the_state_of_every_phase(tmp_path):
    run(tmp_path, phase(tmp_path, "data"))
    (row,) = json.loads((tmp_path / "run" / "timing.json").read_text())["phases"]
    assert row["state"] == "done" and row["this_run"] == "new" and row["seconds"] > 0
