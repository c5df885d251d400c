"""Following a job on a SLURM that answers what a test wrote down: states that no small cluster makes at will."""

import json
import os
from pathlib import Path

import pytest

from llava.cli.run import main
from llava.cli.slurm import client, follow

PROGRAM = """\
#!/bin/sh
# answers of {name}: answers/{name}.1, answers/{name}.2, ...; the last one for ever
echo "{name} $*" >> "$FAKE/calls"
number=$(( $(grep -c "^{name} " "$FAKE/calls") ))
while [ "$number" -gt 0 ] && [ ! -e "$FAKE/{name}.$number" ]; do number=$((number - 1)); done
[ "$number" -gt 0 ] || exit 0
. "$FAKE/{name}.$number"
"""
SCONTROL = """\
#!/bin/sh
if [ "$1" = requeue ]; then exec "$FAKE/requeue" "$2"; fi
exec "$FAKE/show" "$@"
"""


class Fake:
    """Commands of SLURM as shell scripts, which keep a list of their calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("sbatch", "squeue", "show", "requeue", "scancel", "sacct", "srun"):
            self._program(name, PROGRAM.format(name=name))
        self._program("scontrol", SCONTROL)
        self.answer("sbatch", "echo 12")

    def _program(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def answer(self, name: str, *shell: str) -> None:
        for number, line in enumerate(shell, 1):
            (self.folder / f"{name}.{number}").write_text(line + "\n")

    def states(self, *states: str) -> None:
        """What the controller says one time after the other; `STATE key=value ...`."""
        self.answer("show", *(f"echo 'JobId=12 JobName=train/x JobState={state}'" for state in states))

    def calls(self, name: str) -> list[str]:
        lines = (self.folder / "calls").read_text().splitlines() if (self.folder / "calls").exists() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(f"{name} ")]


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Fake:
    (tmp_path / "bin").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path / "bin"))
    for name in ("SLURM_JOB_ID", "NO_SLURM", "VILA_SLURM_ACCOUNT", "VILA_SLURM_PARTITION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(follow, "READ_EVERY", 0.01)
    return Fake(tmp_path / "bin")


def vila_run(*words: str) -> int:
    return main(["-J", "x", "--poll", "0.01", *words])


def write_history(task: str, *events: dict) -> None:
    folder = Path("runs/train/x/logs")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{task}.attempts.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


BEGIN = {"event": "begin"}
FAILED_5 = {"event": "end", "outcome": "failed", "code": 5, "reason": "exit code 5"}


@pytest.mark.parametrize(
    ("state", "code", "reason"),
    [
        ("COMPLETED ExitCode=0:0", 0, "finished"),
        ("FAILED Reason=NonZeroExitCode ExitCode=3:0", 3, "FAILED, exit code 3"),
        ("FAILED ExitCode=0:11", 139, "SIGSEGV (exit code 139)"),
        ("FAILED Reason=launch_failed ExitCode=0:0", 1, "launch_failed"),
        ("CANCELLED ExitCode=0:15", 143, "cancelled"),
        ("DEADLINE ExitCode=0:0", 1, "its deadline passed"),
        ("NEW_STATE_OF_THE_FUTURE ExitCode=0:0", 1, "NEW_STATE_OF_THE_FUTURE"),
    ],
)
def test_the_exit_code_is_that_of_the_job(slurm, capfd, state, code, reason):
    slurm.states("PENDING Reason=Resources", "RUNNING NodeList=n7", state)
    assert vila_run("true") == code
    errors = capfd.readouterr().err
    assert "pending (Resources)" in errors and "running on n7" in errors and reason in errors
    assert slurm.calls("requeue") == []


@pytest.mark.parametrize(
    ("state", "code", "reason"),
    [
        ("OUT_OF_MEMORY ExitCode=0:125", 137, "want of memory"),
        ("NODE_FAIL ExitCode=0:0", 1, "a node failed"),
        ("TIMEOUT ExitCode=0:15", 124, "the time limit passed"),
        ("PREEMPTED ExitCode=0:15", 143, "another job took its place"),
    ],
)
def test_a_job_that_slurm_ended_goes_back_into_the_queue_as_often_as_allowed(slurm, capfd, state, code, reason):
    write_history("12", BEGIN)
    slurm.states("RUNNING", state, "PENDING Reason=BeginTime Restarts=1", "RUNNING Restarts=1", "COMPLETED Restarts=1")
    assert vila_run("--max-retry", "1", "true") == 0
    assert slurm.calls("requeue") == ["12"]
    assert f"{reason}" in capfd.readouterr().err

    (slurm.folder / "calls").unlink()
    assert vila_run("--max-retry", "0", "true") == code
    assert slurm.calls("requeue") == []


def test_a_job_that_cannot_be_launched_is_tried_again_but_not_for_ever(slurm, capfd):
    slurm.states("FAILED Reason=JobLaunchFailure", "PENDING Restarts=1", "FAILED Reason=JobLaunchFailure Restarts=1")
    assert vila_run("--max-retry", "1", "true") == 1
    assert slurm.calls("requeue") == ["12"]
    assert "SLURM could not start it on its node" in capfd.readouterr().err


def test_a_restart_that_never_began_is_not_reported_as_the_attempt_before_it(slurm, capfd):
    write_history("12", BEGIN, {"event": "end", "outcome": "stopped", "code": 124, "reason": "stopped in time"})
    slurm.states("RUNNING", "PENDING Reason=BeginTime Restarts=1", "FAILED Reason=JobLaunchFailure Restarts=1")
    assert vila_run("--max-retry", "0", "true") == 1
    assert "job 12: SLURM could not start it on its node" in capfd.readouterr().err


def test_a_refused_restart_ends_with_the_reason(slurm, capfd):
    write_history("12", BEGIN)
    slurm.states("NODE_FAIL")
    slurm.answer("requeue", "echo 'Requested operation is presently disabled' >&2; exit 1")
    assert vila_run("true") == 1
    assert (
        "a node failed; SLURM refuses to restart it: Requested operation is presently disabled"
        in capfd.readouterr().err
    )


def test_what_the_runner_wrote_down_counts_more_than_what_slurm_says(slurm, capfd):
    write_history("12", BEGIN, FAILED_5)
    slurm.states("RUNNING", "FAILED ExitCode=1:0")
    assert vila_run("true") == 5
    assert "exit code 5" in capfd.readouterr().err


def test_a_controller_that_does_not_answer_for_a_while_is_asked_again(slurm, capfd):
    silence = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
    slurm.answer("show", "echo JobState=RUNNING", silence, silence, "echo JobState=COMPLETED")
    assert vila_run("true") == 0
    assert capfd.readouterr().err.count("SLURM does not answer") == 1


FORGOTTEN = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"


def test_a_job_that_the_controller_has_forgotten_is_looked_up_in_the_accounts(slurm):
    slurm.answer("show", FORGOTTEN)
    slurm.answer("sacct", "echo '12|FAILED|4:0'")
    assert vila_run("true") == 4


def test_without_accounts_the_jobs_own_files_say_how_it_ended(slurm, capfd):
    slurm.answer("show", "echo JobState=RUNNING", FORGOTTEN)
    slurm.answer("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    write_history("12", BEGIN, FAILED_5)
    assert vila_run("true") == 5
    write_history("12", BEGIN)
    assert vila_run("true") == 1
    assert "it left no result" in capfd.readouterr().err


def test_the_log_is_copied_to_the_terminal_as_it_grows(slurm, capfdbinary):
    Path("runs/train/x/logs").mkdir(parents=True)
    log = Path("runs/train/x/logs/12.out").absolute()
    grow = "printf '{}' >> '" + str(log) + "'; echo JobState={}"
    slurm.answer(
        "show", grow.format("one\\n", "RUNNING"), grow.format("two \\377", "RUNNING"), grow.format("", "COMPLETED")
    )
    assert vila_run("true") == 0
    assert capfdbinary.readouterr().out == b"one\ntwo \xff"


def test_a_log_that_is_nowhere_is_explained(slurm, capfd):
    slurm.states("COMPLETED")
    assert vila_run("true") == 0
    assert "it has to be on a file system of all nodes" in capfd.readouterr().err


def test_the_tasks_of_an_array_are_followed_to_the_last_one_and_the_first_failure_counts(slurm, capfd):
    line = "echo 'JobId={} ArrayJobId=12 ArrayTaskId={} JobState={}'"
    first = [line.format(13, 0, "RUNNING"), line.format(12, "1-2%1", "PENDING Reason=JobArrayTaskLimit")]
    second = [line.format(13, 0, "COMPLETED"), line.format(14, 1, "FAILED ExitCode=6:0"), line.format(12, 2, "RUNNING")]
    third = [line.format(12, 2, "COMPLETED")]  # the others have been forgotten
    slurm.answer("show", *("\n".join(lines) for lines in (first, second, third)))
    assert vila_run("-a", "3%1", "true") == 6
    errors = capfd.readouterr().err
    assert "chunk 0 of job 12: finished" in errors and "chunk 1 of job 12: FAILED, exit code 6" in errors
    assert "chunk 2 of job 12: pending (JobArrayTaskLimit)" in errors


def test_what_was_submitted_lies_beside_the_log(slurm):
    slurm.states("COMPLETED")
    assert vila_run("-t", "2-00:00:00", "bash", "-c", "echo a b") == 0
    logs = Path("runs/train/x/logs")
    assert sorted(path.name for path in logs.iterdir()) == ["12.json", "12.sh"]
    assert "#SBATCH --time=2-00:00:00\n" in (logs / "12.sh").read_text()
    request = json.loads((logs / "12.json").read_text())["request"]
    assert (request["command"], request["time_limit"], request["nodes"]) == (["bash", "-c", "echo a b"], 172800, 1)


def test_account_and_partition_come_from_the_environment_unless_they_are_given(slurm, monkeypatch):
    slurm.states("COMPLETED")
    monkeypatch.setenv("VILA_SLURM_ACCOUNT", "lab")
    monkeypatch.setenv("VILA_SLURM_PARTITION", "slow")
    assert vila_run("-p", "fast", "true") == 0
    script = Path("runs/train/x/logs/12.sh").read_text()
    assert "--account=lab\n" in script and "--partition=fast\n" in script
    assert "--job-name=lab:train/x\n" in script


def test_a_dry_run_submits_nothing(slurm, capsys):
    assert vila_run("--dry-run", "echo", "a b") == 0
    assert "    'a b'\n" in capsys.readouterr().out
    assert slurm.calls("sbatch") == [] and not Path("runs").exists()


def test_a_job_of_the_same_name_is_refused_or_waited_for(slurm, capfd):
    slurm.answer("squeue", "printf '7\\n7\\n8\\n'")
    slurm.states("COMPLETED")
    assert vila_run("true") == 2
    assert "job 7, 8 of the name train/x is in the queue" in capfd.readouterr().err
    assert vila_run("--uuid", "true") == 0
    assert "--dependency=singleton\n" in Path("runs/train/x/logs/12.sh").read_text()


def test_a_refused_submission_ends_with_what_sbatch_said_and_leaves_nothing(slurm, capfd):
    slurm.answer("sbatch", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    assert vila_run("true") == 1
    assert "invalid partition specified: x" in capfd.readouterr().err
    assert list(Path("runs/train/x/logs").iterdir()) == []


def test_the_number_of_a_job_is_found_among_warnings_and_clusters(slurm):
    slurm.answer("sbatch", "echo 'a line of the site'; echo '12;alpha'")
    assert client.submit(Path("x.sh")) == "12"
    slurm.answer("sbatch", "echo", "echo soon")
    with pytest.raises(client.SlurmError, match="expected the number of a job"):
        client.submit(Path("x.sh"))


def test_detached_jobs_are_left_alone(slurm):
    assert vila_run("--detach", "true") == 0
    assert slurm.calls("show") == []


def test_a_terminal_is_asked_of_srun(slurm):
    slurm.answer("srun", "exit 4")
    assert vila_run("--pty", "bash") == 4
    (call,) = slurm.calls("srun")
    assert call.startswith("--job-name=train/x --nodes=1") and " --pty bash " in call
    assert "--output" not in call and "--signal" not in call


def test_inside_a_job_it_runs_here(slurm, monkeypatch, capfd):
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert vila_run("true") == 0
    assert "this is inside job 99" in capfd.readouterr().err
    assert slurm.calls("sbatch") == []


@pytest.mark.parametrize(
    ("text", "tasks"), [(None, [None]), ("4", [4]), ("1,3-5%2", [1, 3, 4, 5]), ("0-2,...", [0, 1, 2])]
)
def test_waiting_tasks_are_written_as_ranges(text, tasks):
    assert client._array_tasks(text) == tasks
