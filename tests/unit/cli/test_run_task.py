"""The process around a command on one node: who is told to stop, and what is written down."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llava.cli.slurm.task import Command, catches

CATCHES = """
import signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(124))
print('ready', flush=True)
time.sleep(60)
"""
PYTHON = [sys.executable, "-c"]


def started(words: list[str]) -> Command:
    command = Command(words, os.environ, subprocess.PIPE)
    assert command.process.stdout is not None
    assert command.process.stdout.readline() == b"ready\n"
    return command


def task(tmp_path: Path, *words: str) -> "subprocess.Popen[str]":
    program = [sys.executable, "-m", "llava.cli.slurm.task", "--record", str(tmp_path / "1.1"), "--", *words]
    return subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def record(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "1.1.node0.json").read_text())


def test_the_process_that_listens_is_told_and_its_parents_are_not():
    # as bash starts torchrun and torchrun starts the ranks: SIGUSR1 would end both
    parent = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {CATCHES!r}]) + 1)"
    command = started(["bash", "-c", '"$@"; exit $?', "bash", *PYTHON, parent])
    command.ask_to_stop()
    assert command.wait(30.0) == 125


def test_a_command_without_a_handler_is_terminated_with_all_that_it_started():
    command = started(["bash", "-c", "sleep 60 & echo ready; wait"])
    family = command._family()
    assert len(family) == 2
    command.ask_to_stop()
    assert command.wait(30.0) == 128 + signal.SIGTERM
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() and "Z" not in state(pid) for pid in family):
        assert time.monotonic() < until, "the child lives on"
        time.sleep(0.05)


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_killing_leaves_nothing():
    command = started(["bash", "-c", "trap '' TERM USR1; echo ready; sleep 60"])
    command.kill()
    assert command.wait(30.0) == 137


def test_telling_a_command_that_has_ended_does_nothing():
    command = Command(["true"], os.environ)
    command.wait(30.0)
    command.ask_to_stop()
    assert not command.was_told


def test_a_handler_is_seen_from_outside():
    command = started([*PYTHON, CATCHES])
    assert catches(command.process.pid, signal.SIGUSR1)
    assert not catches(command.process.pid, signal.SIGUSR2)
    command.kill()
    command.wait(30.0)
    assert not catches(command.process.pid, signal.SIGUSR1)


@pytest.mark.parametrize("how", ["line", "signal"])
def test_stopped_nodes_end_with_0_so_that_srun_leaves_the_others_time_to_save(tmp_path, how):
    process = task(tmp_path, *PYTHON, CATCHES)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    if how == "signal":
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    else:
        process.communicate("stop\n", timeout=60)
    assert process.returncode == 0
    assert (record(tmp_path)["code"], record(tmp_path)["told"]) == (124, True)


def test_a_failure_is_passed_on_and_written_down(tmp_path):
    process = task(tmp_path, "bash", "-c", "exit 5")
    process.communicate(timeout=60)
    assert process.returncode == 5
    assert (record(tmp_path)["code"], record(tmp_path)["told"]) == (5, False)


def test_a_success_is_written_down_too_because_srun_ends_with_0_also_when_a_node_is_lost(tmp_path):
    process = task(tmp_path, "true")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert record(tmp_path)["code"] == 0


def test_each_node_has_its_rank_and_the_command_reads_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_NODEID", "3")
    process = task(tmp_path, "bash", "-c", "echo $CURRENT_RANK $NODE_RANK $(wc -c)")
    output, _ = process.communicate("a line for nobody\n", timeout=60)
    assert output == "3 3 0\n"
    assert [path.name for path in tmp_path.iterdir()] == ["1.1.node3.json"]


def test_a_program_that_does_not_exist_is_named(tmp_path):
    process = task(tmp_path, "no-such-program")
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (
        127,
        "vila-run: 'no-such-program' cannot be started: No such file or directory\n",
    )
