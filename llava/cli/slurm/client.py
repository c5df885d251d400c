"""The commands of SLURM that vila-run uses, and what they answer."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ACTIVE = frozenset(
    "PENDING RUNNING COMPLETING CONFIGURING REQUEUED REQUEUE_FED REQUEUE_HOLD RESIZING SIGNALING STAGE_OUT STOPPED "
    "SUSPENDED SPECIAL_EXIT RESV_DEL_HOLD".split()
)
_FIELD = re.compile(r"(?:^|\s)(JobId|ArrayTaskId|JobState|Reason|Restarts|ExitCode|NodeList)=(\S*)")
_GONE = ("Invalid job id", "Job/step already completing or completed")


class SlurmError(RuntimeError):
    """A command of SLURM refused or could not reach its controller; the text is what it said."""


@dataclass(frozen=True, kw_only=True)
class JobState:
    """One job, or one task of an array, as the controller sees it."""

    state: str
    reason: str = ""
    restarts: int = 0
    code: int = 0
    task: int | None = None
    nodes: str = ""

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE


def call(words: Sequence[str], timeout: float = 60.0) -> str:
    """Standard output of a command of SLURM.

    Raises:
        SlurmError: it is not installed, it failed, or it gave no answer in time.
    """
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=timeout, check=False)
    except FileNotFoundError as error:
        raise SlurmError(f"{words[0]} is not installed here") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{words[0]} gave no answer in {timeout:.0f} seconds") from error
    if done.returncode != 0:
        raise SlurmError((done.stderr or done.stdout).strip() or f"{words[0]} ended with {done.returncode}")
    return done.stdout


def submit(script: Path) -> str:
    """Number of the new job."""
    answer = call(["sbatch", "--parsable", str(script)]).strip()
    job = answer.splitlines()[-1].split(";")[0] if answer else ""
    if not job.isdigit():
        raise SlurmError(f"sbatch answered {answer!r}, expected the number of a job")
    return job


def queued_with_name(name: str) -> list[str]:
    """Numbers of this user's jobs of that name which wait or run."""
    return sorted(set(call(["squeue", "--noheader", "--me", f"--name={name}", "--format=%A"]).split()))


def requeue(job: str) -> None:
    call(["scontrol", "requeue", job])


def cancel(job: str, *options: str) -> None:
    """`scancel`; a job that has ended already is no error."""
    try:
        call(["scancel", *options, job])
    except SlurmError as error:
        if not any(text in str(error) for text in _GONE):
            raise


def job_states(job: str) -> list[JobState]:
    """A state for a job, one for each task of an array; from the accounts where the controller has forgotten it."""
    try:
        answer = call(["scontrol", "--oneliner", "show", "job", job])
    except SlurmError as error:
        if "Invalid job id" not in str(error):
            raise
        return accounted_states(job)
    states = [state for line in answer.splitlines() if line.strip() for state in _states_of_line(line)]
    return states or accounted_states(job)


def _states_of_line(line: str) -> list[JobState]:
    fields: dict[str, str] = {}
    for name, value in _FIELD.findall(line):
        fields.setdefault(name, value)
    if "JobState" not in fields:
        raise SlurmError(f"scontrol answered {line[:200]!r}, expected JobState=...")
    code, _, number = fields.get("ExitCode", "0:0").partition(":")
    state = {
        "state": fields["JobState"],
        "reason": fields.get("Reason", ""),
        "restarts": int(fields.get("Restarts", 0)),
        "code": int(code) or (128 + int(number) if number.isdigit() and int(number) else 0),
        "nodes": fields.get("NodeList", ""),
    }
    return [JobState(**state, task=task) for task in _array_tasks(fields.get("ArrayTaskId"))]


def _array_tasks(text: str | None) -> list[int | None]:
    """`3`, or the tasks that still wait: `4-7%2`, `1,5-6`; a long list is cut off by SLURM and ends in `...`."""
    if text is None or text in ("", "N/A"):
        return [None]
    tasks: list[int | None] = []
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            tasks += range(int(first), int(last if last.isdigit() else first) + 1)
    return tasks


def accounted_states(job: str) -> list[JobState]:
    """The same from `sacct`, which not every cluster has: no states then."""
    try:
        answer = call(["sacct", "-j", job, "-X", "-n", "-P", "-o", "JobID,State,ExitCode"])
    except SlurmError:
        return []
    states = []
    for line in answer.splitlines():
        name, state, exit_code = line.split("|")[:3]
        code, _, number = exit_code.partition(":")
        task = name.partition("_")[2]
        states.append(
            JobState(
                state=state.split()[0],  # "CANCELLED by 1000"
                code=int(code) or (128 + int(number) if number.isdigit() and int(number) else 0),
                task=int(task) if task.isdigit() else None,
            )
        )
    return states
