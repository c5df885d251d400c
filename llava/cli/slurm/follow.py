"""From a submitted job to its exit code: its log on the terminal, its states, Ctrl-C."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from llava.cli.slurm import client
from llava.cli.slurm.attempts import TIMED_OUT, End, History, Limits, describe
from llava.cli.slurm.client import JobState

INTERRUPTED = 130
READ_EVERY = 0.5
CAUSES = {
    "NODE_FAIL": ("a node failed", 1),
    "BOOT_FAIL": ("a node did not start", 1),
    "OUT_OF_MEMORY": ("SLURM ended it for want of memory; ask for more with --sbatch=--mem=0", 137),
    "TIMEOUT": ("the time limit passed and it did not stop", TIMED_OUT),
    "DEADLINE": ("its deadline passed", 1),
    "PREEMPTED": ("another job took its place", 143),
}

NOT_LAUNCHED = ("SLURM could not start it on its node", 1)


def cause_of(state: JobState) -> tuple[str, int] | None:
    """Why SLURM ended a job, and the exit code for it; None when the job ended by itself."""
    if state.state == "FAILED" and state.reason == "JobLaunchFailure":
        return NOT_LAUNCHED
    return CAUSES.get(state.state)


def say(text: str) -> None:
    print(f"vila-run: {text}", file=sys.stderr, flush=True)


@dataclass
class LogReader:
    """Copies what is new in a file that may not be there yet."""

    path: Path
    out: BinaryIO
    position: int = 0

    def copy_news(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            stream.seek(self.position)
            news = stream.read()
        self.position += len(news)
        self.out.write(news)
        self.out.flush()


@dataclass
class Follower:
    """Follows one job or one array.

    Args:
        job: its number.
        logs: folder of its files.
        limits: how often a job that was lost is put back into the queue.
        poll: seconds between questions to SLURM.
        is_array: states of many tasks instead of one log.
    """

    job: str
    logs: Path
    limits: Limits
    poll: float
    is_array: bool = False
    interrupts: int = 0
    _seen: dict[int | None, JobState] = field(default_factory=dict)
    _final: dict[int | None, JobState] = field(default_factory=dict)
    _launched_in_vain: dict[int | None, int] = field(default_factory=dict)
    _handled: int = 0
    _unreachable: bool = False

    def run(self) -> int:
        """Exit code for the shell; 130 after Ctrl-C."""
        before = signal.signal(signal.SIGINT, self._on_interrupt)
        try:
            return self._follow()
        finally:
            signal.signal(signal.SIGINT, before)

    def _on_interrupt(self, *_: object) -> None:
        self.interrupts += 1

    def _follow(self) -> int:
        log = None if self.is_array else LogReader(self._base(None).with_suffix(".out"), sys.stdout.buffer)
        next_question = 0.0
        while True:
            if self.interrupts > self._handled:
                self._handled += 1
                if not self._handle_interrupt():
                    return INTERRUPTED
                next_question = 0.0
            if log:
                log.copy_news()
            if time.monotonic() >= next_question:
                if self._ask():
                    break
                next_question = time.monotonic() + self.poll
            time.sleep(READ_EVERY)
        if log:
            log.copy_news()
        return self._report()

    def _handle_interrupt(self) -> bool:
        """First: save and stop. Second: kill. Third: leave without waiting (False)."""
        if self._handled == 1:
            say("asked the job to save and stop; Ctrl-C again kills it")
            self._cancel("--state=PENDING")
            self._cancel("--batch", "--signal=INT")
        elif self._handled == 2:
            say("killing the job; Ctrl-C again leaves without waiting for its end")
            self._cancel()
        else:
            say(f"left; job {self.job} may still be running: squeue -j {self.job}")
        return self._handled < 3

    def _cancel(self, *options: str) -> None:
        try:
            client.cancel(self.job, *options)
        except client.SlurmError as error:
            say(f"scancel: {error}")

    def _ask(self) -> bool:
        """Print what changed; True when all is over."""
        try:
            states = {state.task: state for state in client.job_states(self.job)}
        except client.SlurmError as error:
            if not self._unreachable:
                say(f"SLURM does not answer, asking again: {error}")
            self._unreachable = True
            return False
        self._unreachable = False
        if self.is_array:
            states.pop(None, None)  # what is left of an array that was cancelled while it waited
        for task, state in states.items():
            self._tell_change(task, state)
        self._seen |= states
        for task, state in states.items():
            if state.is_active:
                self._final.pop(task, None)
            elif not self._restarted(task, state):
                self._final[task] = state
        if not states:  # neither the controller nor the accounts know it: its own files do
            return True
        return not any(state.is_active for state in states.values()) and all(task in self._final for task in states)

    def _tell_change(self, task: int | None, state: JobState) -> None:
        old = self._seen.get(task)
        if old is not None and (old.state, old.reason, old.restarts) == (state.state, state.reason, state.restarts):
            return
        if old is not None and state.restarts > old.restarts:
            history = self._history(task)
            known = history.ends and not history.is_running
            why = history.ends[-1].reason if known else "the node failed or was taken back"
            say(f"{self._name(task)}: {why}; restart {state.restarts}")
        if state.state in ("PENDING", "CONFIGURING", "SUSPENDED", "REQUEUE_HOLD", "SPECIAL_EXIT"):
            known = {"None": ""} | ({"BeginTime": "SLURM waits two minutes before a restart"} if state.restarts else {})
            reason = known.get(state.reason, state.reason)
            say(f"{self._name(task)}: {state.state.lower()}" + (f" ({reason})" if reason else ""))
        elif state.state == "RUNNING" and (old is None or old.state != "RUNNING"):
            say(f"{self._name(task)}: running on {state.nodes}")

    def _restarted(self, task: int | None, state: JobState) -> bool:
        """True when a job that SLURM ended without our runner's knowledge goes back into the queue."""
        history, cause = self._history(task), cause_of(state)
        if self.interrupts or cause is None or not (history.is_running or cause is NOT_LAUNCHED):
            return False
        reason, code = cause
        in_vain = self._launched_in_vain.get(task, 0) + (cause is NOT_LAUNCHED)
        lost = End(outcome="lost", code=code, reason=reason)
        if not self.limits.allow_another([*history.ends, *[lost] * max(1, in_vain)]):
            return False
        self._launched_in_vain[task] = in_vain
        name = self.job if task is None else f"{self.job}_{task}"
        try:
            client.requeue(name)
        except client.SlurmError as error:
            say(f"{self._name(task)}: {reason}; SLURM refuses to restart it: {error}")
            return False
        say(f"{self._name(task)}: {reason}; back into the queue")
        return True

    def _report(self) -> int:
        codes = []
        for task in sorted(set(self._seen) or {None}, key=lambda number: -1 if number is None else number):
            end = self._end(task)
            log = self._base(task).with_suffix(".out")
            where = f"; log {log}" if log.exists() else f"; no log at {log}: it has to be on a file system of all nodes"
            say(f"{self._name(task)}: {end.reason}" + (where if end.code or not log.exists() else ""))
            codes.append(INTERRUPTED if self.interrupts and end.outcome != "finished" else end.code)
        return next((code for code in codes if code), 0)

    def _end(self, task: int | None) -> End:
        """What the runner wrote down, or else what SLURM says."""
        history, state = self._history(task), self._final.get(task)
        if state is not None and state.state == "CANCELLED":
            return End(outcome="cancelled", code=state.code or INTERRUPTED, reason="cancelled")
        began = state is None or history.restarts >= state.restarts  # else its last start never came to an attempt
        if history.ends and not history.is_running and began:
            return history.ends[-1]
        if state is None:
            return End(outcome="lost", code=1, reason="SLURM has forgotten it, and it left no result")
        if cause := cause_of(state):
            return End(outcome="lost", code=cause[1], reason=cause[0])
        if state.code == 0 and state.state == "COMPLETED":
            return End(outcome="finished", code=0, reason="finished")
        reason = "" if state.reason in ("", "None", "NonZeroExitCode") else f", {state.reason}"
        return End(outcome="failed", code=state.code or 1, reason=f"{state.state}, {describe(state.code)}{reason}")

    def _name(self, task: int | None) -> str:
        return f"job {self.job}" if task is None else f"chunk {task} of job {self.job}"

    def _base(self, task: int | None) -> Path:
        return self.logs / (self.job if task is None else f"{self.job}_{task}")

    def _history(self, task: int | None) -> History:
        return History.read(self._base(task).with_suffix(".attempts.jsonl"))
