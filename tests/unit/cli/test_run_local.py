"""vila-run without SLURM: the same environment, files, restarts and exit codes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llava.cli.run import main
from llava.cli.slurm.local import copy
from tests.end_to_end.runs import ROOT

READY_THEN_SAVES = (
    "import signal, sys, time\nsignal.signal(signal.SIGUSR1, lambda *_: sys.exit(124))\n"
    "print('ready', flush=True)\ntime.sleep(60)"
)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_SLURM", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("OUTPUT", "GPUS_PER_NODE", "MASTER_PORT", "MASTER_ADDR", "n_node"):
        monkeypatch.delenv(name, raising=False)


def logs(tmp_path: Path, name: str, mode: str = "train") -> dict[str, str]:
    """Ending of the file's name -> content."""
    folder = tmp_path / "runs" / mode / name / "logs"
    return {"".join(path.suffixes): path.read_text() for path in folder.iterdir()}


def outcomes(tmp_path: Path, name: str, mode: str = "train") -> list[tuple[str, int]]:
    lines = map(json.loads, logs(tmp_path, name, mode)[".attempts.jsonl"].splitlines())
    return [(line["outcome"], line["code"]) for line in lines if line["event"] == "end"]


def test_the_command_runs_here_with_its_words_and_the_environment_of_the_scripts(tmp_path, capfdbinary):
    words = ["", "a b", "$HOME", "x\ny", "'\"", "--nodes", "--", "-J"]
    names = "RUN_NAME OUTPUT_DIR OUTPUT n_node CURRENT_RANK MASTER_ADDR GPUS_PER_NODE".split()
    program = f"import os, sys, json; print(json.dumps([sys.argv[1:], [os.environ.get(n) for n in {names}]]))"
    assert main(["-J", "here", "-N", "1", sys.executable, "-c", program, *words]) == 0
    folder = tmp_path / "runs" / "train" / "here"
    wanted = [words, ["here", str(folder), str(folder / "model"), "1", "0", "127.0.0.1", None]]
    output, errors = capfdbinary.readouterr()
    assert json.loads(output) == wanted
    assert json.loads(logs(tmp_path, "here")[".out"]) == wanted
    assert json.loads(logs(tmp_path, "here")[".json"])["request"]["job_name"] == "here"
    assert b"runs here: NO_SLURM is set" in errors and b"attempt 1: finished" in errors


def test_visible_gpus_are_counted_unless_their_number_is_given(tmp_path, monkeypatch, capfdbinary):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert main(["-J", "all", "bash", "-c", "echo $GPUS_PER_NODE"]) == 0
    assert main(["-J", "one", "--gpus-per-node", "1", "bash", "-c", "echo $GPUS_PER_NODE"]) == 0
    assert capfdbinary.readouterr().out == b"2\n1\n"


def test_124_starts_it_again_until_it_is_finished(tmp_path):
    program = "echo x >> count; [ $(wc -l < count) = 3 ] || exit 124"
    assert main(["-J", "again", "bash", "-c", program]) == 0
    assert outcomes(tmp_path, "again") == [("stopped", 124), ("stopped", 124), ("finished", 0)]


def test_the_last_requeue_leaves_124():
    assert main(["-J", "ever", "--max-requeues", "1", "bash", "-c", "exit 124"]) == 124


@pytest.mark.parametrize(("mode", "tries"), [("train", 4), ("eval", 1)])
def test_trainings_are_retried_three_times_and_the_exit_code_is_the_commands(tmp_path, capfd, mode, tries):
    assert main(["-J", "bad", "-m", mode, "--retry-wait", "0", "bash", "-c", "exit 9"]) == 9
    assert outcomes(tmp_path, "bad", mode) == [("failed", 9)] * tries
    assert f"attempt {tries}: exit code 9" in capfd.readouterr().err


def test_a_program_that_does_not_exist_is_127(capfd):
    assert main(["-J", "none", "-m", "eval", "no-such-program"]) == 127
    assert "'no-such-program' cannot be started" in capfd.readouterr().err


def test_the_chunks_run_one_after_the_other_and_a_failure_does_not_end_the_rest(capfdbinary):
    program = "echo $CHUNK_IDX of $NUM_CHUNKS; [ $CHUNK_IDX != 1 ] || exit 6"
    assert main(["-J", "parts", "-m", "eval", "-a", "3", "bash", "-c", program]) == 6
    assert capfdbinary.readouterr().out == b"0 of 3\n1 of 3\n2 of 3\n"


def test_a_time_limit_holds_here_too(tmp_path):
    program = READY_THEN_SAVES.replace("print(", "open('told', 'a').write('x'); print(")
    options = ["-J", "clock", "-t", "0:04", "--timedelta", "0.04", "--max-requeues", "0"]
    assert main([*options, sys.executable, "-c", program]) == 124
    assert outcomes(tmp_path, "clock") == [("stopped", 124)]


def test_a_command_that_does_not_stop_at_the_limit_is_killed_and_that_is_a_failure(tmp_path, capfd):
    options = ["-J", "deaf", "-m", "eval", "-t", "0:02", "--timedelta", "0.02"]
    assert main([*options, "bash", "-c", "trap '' USR1 TERM; while :; do sleep 0.1; done"]) == 124
    assert outcomes(tmp_path, "deaf", "eval") == [("failed", 124)]
    assert "a longer --timedelta" in capfd.readouterr().err


def in_the_foreground(*words: str) -> "subprocess.Popen[str]":
    program = [sys.executable, "-m", "llava.cli.run", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_lets_it_save_and_ends_everything(tmp_path, number):
    process = in_the_foreground("-J", "stop", sys.executable, "-c", READY_THEN_SAVES)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert outcomes(tmp_path, "stop") == [("cancelled", 124)]


def test_a_second_ctrl_c_kills():
    process = in_the_foreground(
        "-J", "kill", "bash", "-c", "trap 'echo told' USR1; echo ready; while :; do sleep 0.1; done"
    )
    assert process.stdout is not None
    for line in ("ready\n", "told\n"):
        assert process.stdout.readline() == line
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "SIGKILL" in errors


@pytest.mark.slow
def test_ranks_of_torchrun_that_saved_are_no_failure(tmp_path):
    rank = tmp_path / "rank.py"
    rank.write_text("import os, sys\nif os.path.exists('saved'): sys.exit(0)\nopen('saved', 'w')\nsys.exit(124)\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1", str(rank)]
    assert main(["-J", "ranks", *torchrun]) == 0
    assert outcomes(tmp_path, "ranks") == [("stopped", 124), ("finished", 0)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-N", "2", "true"], "--nodes is 2, but this machine is all there is"),
        (["--detach", "true"], "--detach needs SLURM"),
        (["--pty", "-a", "2", "true"], "--pty gives one terminal"),
        (["-t", "soon", "true"], "time is 'soon'"),
        (["--max-retry", "-2", "true"], "--max-retry is -2"),
        (["--poll", "0", "true"], "--poll is 0"),
        (["--time", "5", "--timedelta", "5", "true"], "--timedelta is 5 minutes"),
        ([], "there is no command"),
    ],
)
def test_requests_that_make_no_sense_here_end_with_2(words, message, capfd, tmp_path):
    assert main(words) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_closed_terminal_does_not_end_the_log(tmp_path, capsys):
    (tmp_path / "text").write_bytes(b"one\ntwo\n")
    with (tmp_path / "text").open("rb") as source, (tmp_path / "log").open("wb") as log:
        full = open("/dev/full", "wb")  # noqa: SIM115  closing it fails as well
        copy(source, full, log)
        with pytest.raises(OSError, match="No space"):
            full.close()
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
    assert "/dev/full takes nothing more" in capsys.readouterr().err


def test_options_for_slurm_alone_are_named(capfd):
    assert main(["-J", "x", "-A", "lab", "--sbatch=--mem=0", "true"]) == 0
    assert "SLURM alone uses --account, --sbatch" in capfd.readouterr().err


def test_a_terminal_is_given_as_it_is(tmp_path, capfd):
    assert main(["-J", "tty", "--pty", "bash", "-c", "echo $RUN_NAME; exit 3"]) == 3
    assert capfd.readouterr().out == "tty\n"


def test_a_dry_run_shows_what_would_run_and_touches_nothing(tmp_path, capsys):
    assert main(["-J", "dry", "--dry-run", "echo", "a b"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("# runs here: NO_SLURM is set\n") and shown.endswith("\necho 'a b'\n")
    assert list(tmp_path.iterdir()) == []
