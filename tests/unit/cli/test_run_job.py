"""The process of an allocation, with an srun that starts the command once and a SLURM that answers what it is told."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from llava.cli.slurm import job
from llava.cli.slurm.attempts import End, History, Limits

SRUN = """#!/bin/sh
while :; do case "$1" in --*) shift;; *) break;; esac; done
[ -z "$SRUN_LOSES_THE_NODE" ] || exit 0
exec "$@"
"""
SCONTROL = """#!/bin/sh
if [ "$1" = requeue ]; then echo "$2" >> "$FAKE/requeued"; exit 0; fi
echo "JobId=12 JobState=RUNNING Reason=None Restarts=${RESTARTS:-0} ExitCode=0:0"
"""


@pytest.fixture
def allocation(tmp_path, monkeypatch):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    settings = {"SLURM_JOB_ID": "12", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "FAKE": str(tmp_path)}
    for name, value in (settings | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    monkeypatch.setattr(job, "LONGEST_WAIT_FOR_REPORTS", 0.1)
    numbers = (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)


def run(folder: Path, *words: str, retries: int = 0, notice: float = 60.0) -> tuple[int, list[End]]:
    code = job.run(str(folder / "12"), words, Limits(max_retries=retries), notice, 0.0)
    return code, History.read(folder / "12.attempts.jsonl").ends


def requeued(folder: Path) -> bool:
    return (folder / "requeued").exists()


def test_a_success_needs_the_report_of_every_node(allocation, monkeypatch):
    assert run(allocation, "true")[0] == 0
    monkeypatch.setenv("SRUN_LOSES_THE_NODE", "1")
    code, ends = run(allocation, "true")
    assert (code, ends[-1].outcome) == (1, "failed")
    assert "1 of 1 nodes reported no result" in ends[-1].reason


def test_nothing_is_written_down_for_a_job_that_slurm_has_given_to_other_nodes(allocation, monkeypatch):
    monkeypatch.setenv("RESTARTS", "1")
    code, ends = run(allocation, "bash", "-c", "exit 3", retries=5)
    assert (code, ends) == (3, [])


def test_failures_are_retried_in_the_same_allocation(allocation):
    code, ends = run(allocation, "bash", "-c", f"cd {allocation}; [ -e once ] || {{ touch once; exit 3; }}", retries=1)
    assert code == 0
    assert [end.outcome for end in ends] == ["failed", "finished"]
    assert not requeued(allocation)


def test_124_sends_the_job_back_into_the_queue(allocation):
    code, ends = run(allocation, "bash", "-c", "exit 124")
    assert (code, [end.outcome for end in ends]) == (124, ["stopped"])
    assert requeued(allocation)


def test_an_attempt_without_an_end_counts_as_lost(allocation):
    History(allocation / "12.attempts.jsonl").begin()
    code, ends = run(allocation, "true", retries=1)
    assert (code, [end.outcome for end in ends]) == (0, ["lost", "finished"])
    History.read(allocation / "12.attempts.jsonl").begin()
    code, ends = run(allocation, "true", retries=0)
    assert (code, ends[-1].outcome) == (1, "lost")


def command_that(handler: str) -> list[str]:
    """Signals the runner, its parent's parent, as SLURM does, once it listens itself."""
    program = (
        f"import os, signal, sys, time\nsignal.signal(signal.SIGUSR1, {handler})\n"
        "os.kill(int(sys.argv[1]), signal.Signals[sys.argv[2]])\ntime.sleep(60)"
    )
    return [sys.executable, "-c", program, str(os.getpid())]


@pytest.mark.parametrize(("number", "outcome", "code"), [("SIGUSR1", "stopped", 124), ("SIGINT", "cancelled", 7)])
def test_the_notice_and_the_request_to_stop_both_reach_the_command(allocation, number, outcome, code):
    found, ends = run(allocation, *command_that("lambda *_: sys.exit(7)"), number)
    assert (found, ends[-1].outcome) == (code, outcome)
    assert requeued(allocation) == (outcome == "stopped")


def test_a_command_that_does_not_stop_is_killed_before_the_limit_and_tried_in_another_allocation(allocation):
    begin = time.monotonic()
    code, ends = run(allocation, *command_that("print"), "SIGUSR1", retries=1, notice=2.0)
    assert time.monotonic() - begin < 50
    assert (code, ends[-1].outcome) == (124, "failed")
    assert requeued(allocation)


def note(code: int, node: str, ended: float, told: bool = False) -> dict:
    return {"code": code, "node": node, "ended": ended, "told": told, "out_of_memory": code == 137}


@pytest.mark.parametrize(
    ("notes", "outcome", "code", "reason"),
    [
        ([note(143, "a", 3.0, told=True), note(5, "b", 2.0)], "failed", 5, "exit code 5, on b"),
        ([note(1, "a", 3.0), note(137, "b", 2.0)], "failed", 137, "SIGKILL (exit code 137), on b, the kernel"),
        ([note(0, "a", 3.0), note(124, "b", 2.0)], "stopped", 124, "saved and stopped by itself"),
        ([note(124, "a", 3.0, told=True), note(0, "b", 2.0)], "stopped", 124, "before the time limit"),
        ([note(0, "a", 3.0), note(0, "b", 2.0)], "finished", 0, "finished"),
    ],
)
def test_the_node_that_failed_first_by_itself_has_the_cause(allocation, monkeypatch, notes, outcome, code, reason):
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    end = job.Runner("12", ["true"], 60.0)._judge(137 if outcome == "failed" else 0, notes, "")
    assert (end.outcome, end.code) == (outcome, code)
    assert reason in end.reason
