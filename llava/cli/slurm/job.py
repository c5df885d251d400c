"""The one process of an allocation: runs the command on all nodes, tells it to stop in time, and starts it again.

SIGUSR1 (SLURM, some minutes before the time limit) and SIGINT or SIGTERM (somebody cancels) ask the command to save and
stop. After the first the job goes back into the queue, also where nobody follows it any more.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from llava.cli.slurm import client
from llava.cli.slurm.attempts import TIMED_OUT, End, History, Limits, describe, judge, read_log_from, shell_code

CHECK_EVERY = 0.2
LONGEST_LAST_GRACE = 60.0
LONGEST_WAIT_FOR_REPORTS = 20.0


def say(text: str) -> None:
    print(f"vila-run: {text}", flush=True)


class Runner:
    """Attempts within one allocation.

    Args:
        base: beginning of the paths of this job's files.
        words: the command.
        notice: seconds between SLURM's notice and the time limit.
    """

    def __init__(self, base: str, words: Sequence[str], notice: float) -> None:
        self.base, self.words, self.notice = base, list(words), notice
        self.num_nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", 1))
        self.told: str | None = None
        self._deadline: float | None = None
        self._process: subprocess.Popen[str] | None = None
        signal.signal(signal.SIGUSR1, lambda *_: self.stop("time"))
        signal.signal(signal.SIGINT, lambda *_: self.stop("user"))
        signal.signal(signal.SIGTERM, lambda *_: self.stop("user"))

    def stop(self, why: str) -> None:
        """Ask the command to save and stop; after a notice of the time limit it is killed shortly before this."""
        self.told = "user" if why == "user" else self.told or why
        if self._deadline is None and why == "time":
            self._deadline = time.monotonic() + self.notice - min(LONGEST_LAST_GRACE, self.notice / 4)
        self._tell("stop")

    def attempt(self, number: int) -> End:
        record = f"{self.base}.{number}"
        log = Path(f"{self.base}.out")
        start = log.stat().st_size if log.exists() else 0
        for old in self._records(record):
            old.unlink()
        srun = ["srun", "--kill-on-bad-exit=1", "--wait=0"]
        task = [sys.executable, "-m", "llava.cli.slurm.task", "--record", record, "--", *self.words]
        # a session of its own: signals to the batch step are for this process alone, the nodes hear of them from it
        self._process = subprocess.Popen([*srun, *task], stdin=subprocess.PIPE, text=True, start_new_session=True)
        if self.told:
            self._tell("stop")
        code = self._wait()
        return self._judge(code, self._collect(record, code), read_log_from(log, start))

    def _wait(self) -> int:
        process, killed_at = self._process, None
        assert process is not None
        while process.poll() is None:
            time.sleep(CHECK_EVERY)
            now = time.monotonic()
            if self._deadline is not None and now > self._deadline and killed_at is None:
                killed_at = now
                if self.told == "time":
                    self.told = "late"
                self._tell("kill")
            elif killed_at is not None and now > killed_at + 10:
                process.kill()
        return shell_code(process.returncode)

    def _judge(self, code: int, notes: list[dict], log_text: str) -> End:
        """The node that failed first without being told to stop has the cause; srun reports the largest code."""
        failures = sorted((note for note in notes if not note["told"] and note["code"]), key=lambda note: note["ended"])
        cause = next((note for note in failures if note["code"] != TIMED_OUT), None)
        if cause is not None:
            extra = [f"on {cause['node']}"] if len(notes) > 1 or cause["out_of_memory"] else []
            if cause["out_of_memory"]:
                extra.append("the kernel ended processes for want of memory")
            return judge(cause["code"], told=self.told, log_text=log_text, notes=extra)
        if code == 0 and len(notes) < self.num_nodes:
            # srun ends with 0 also when a node is lost
            reason = (
                f"srun ended with 0, but {self.num_nodes - len(notes)} of {self.num_nodes} nodes reported no result"
            )
            return End(outcome="failed", code=1, reason=reason)
        if code == 0:
            told = self.told or ("time" if any(note["told"] for note in notes) else None)
            return judge(max(note["code"] for note in notes), told=told, log_text=log_text)
        return judge(code, told=self.told, log_text=log_text)

    def _tell(self, word: str) -> None:
        process = self._process
        if process is None or process.stdin is None or process.poll() is not None:
            return
        try:
            process.stdin.write(f"{word}\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended meanwhile, which is all that was wanted

    def _collect(self, record: str, code: int) -> list[dict]:
        """Reports of the nodes; after a success all of them, for which slow network file systems are given time."""
        until = time.monotonic() + LONGEST_WAIT_FOR_REPORTS
        while True:
            paths = [Path(f"{record}.node{node}.json") for node in range(self.num_nodes)]
            found = [path for path in paths if path.exists()]
            if len(found) == self.num_nodes or code != 0 or time.monotonic() > until:
                break
            time.sleep(CHECK_EVERY)
        notes = [json.loads(path.read_text()) for path in found]
        for path in found:
            path.unlink()
        return notes

    @staticmethod
    def _records(record: str) -> list[Path]:
        path = Path(record)
        return sorted(path.parent.glob(f"{path.name}.node*.json"))


def restart_count() -> int:
    """How often SLURM has put this job back into the queue."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def is_still_ours() -> bool:
    """False when SLURM gave up this node and put the job back into the queue while this process lived on."""
    try:
        states = client.job_states(os.environ["SLURM_JOB_ID"])
    except client.SlurmError as error:
        say(f"SLURM does not answer: {error}")
        return False
    return any(state.state == "RUNNING" and state.restarts == restart_count() for state in states)


def requeue() -> bool:
    try:
        client.requeue(os.environ["SLURM_JOB_ID"])
    except client.SlurmError as error:
        say(f"SLURM refuses to put the job back into the queue: {error}")
        say("start the same vila-run command again: training goes on from its last checkpoint")
        return False
    return True


def run(base: str, words: Sequence[str], limits: Limits, notice: float, retry_wait: float) -> int:
    history = History.read(Path(f"{base}.attempts.jsonl"))
    runner = Runner(base, words, notice)
    if history.is_running:
        history.end(
            End(outcome="lost", code=1, reason="nothing more was heard of it: the node failed or was taken back")
        )
        say(f"attempt {history.started}: {history.ends[-1].reason}")
        if not limits.allow_another(history.ends):
            say(f"no retries are left ({limits.max_retries} in a row)")
            return 1
    while True:
        number = history.begin(restarts=restart_count(), nodes=os.environ.get("SLURM_JOB_NODELIST", ""))
        say(f"attempt {number} on {os.environ.get('SLURM_JOB_NODELIST', '?')}")
        end = runner.attempt(number)
        if end.outcome in ("failed", "stopped") and not is_still_ours():
            say(f"attempt {number}: SLURM took the job back ({describe(end.code)})")
            return end.code
        history.end(end)
        say(f"attempt {number}: {end.reason}")
        if not limits.allow_another(history.ends):
            return end.code
        if end.outcome == "stopped":
            say("back into the queue")
            requeue()
            return TIMED_OUT
        say(f"again in {retry_wait:g} seconds")
        if not pause(runner, retry_wait):
            return TIMED_OUT if runner.told in ("time", "late") and requeue() else end.code


def pause(runner: Runner, seconds: float) -> bool:
    """True when the time passed and nobody asked to stop."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and runner.told is None:
        time.sleep(CHECK_EVERY)
    return runner.told is None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="vila-run job", description="run an allocation (used by the job script)")
    parser.add_argument("--base", required=True)
    parser.add_argument("--notice", type=float, required=True)
    parser.add_argument("--max-retries", type=int, required=True)
    parser.add_argument("--max-requeues", type=int)
    parser.add_argument("--retry-wait", type=float, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="after --")
    options = parser.parse_args(arguments)
    limits = Limits(max_retries=options.max_retries, max_requeues=options.max_requeues)
    return run(options.base, options.command[1:], limits, options.notice, options.retry_wait)


if __name__ == "__main__":
    raise SystemExit(main())
