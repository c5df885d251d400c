"""Runs phases as soon as what they need is there and their threads fit the machine; interrupted runs go on."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playground.demo import processes
from playground.demo.display import Display, clock
from playground.demo.phases import Decision, Ledger, Phase, Progress, move_aside, settings_hashes
from playground.demo.progress import estimate, tail

POLL_SECONDS = 0.2


class PhaseFailed(RuntimeError):
    """A command of a phase ended with an error, or left an output out."""


@dataclass(kw_only=True)
class Running:
    """A phase in work: its current child process and the clock."""

    phase: Phase
    process: subprocess.Popen[bytes]
    token: str
    command: int = 0
    began: float = 0.0
    log: Path = Path()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began


@contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Only one demo per run folder.

    Raises:
        RuntimeError: another one holds the lock; the message names its process.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise RuntimeError(
                f"another demo (process {lock.read().strip() or 'unknown'}) is writing to {run_dir}; "
                "wait for it, stop it, or choose another folder with --run-dir"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def makespan(phases: tuple[Phase, ...], left: Mapping[str, float], cores: int) -> float:
    """Seconds until all are done, when each needs `left[name]` more (0 = done) and starts as early as it may."""
    finish: dict[str, float] = {phase.name: 0.0 for phase in phases if left[phase.name] <= 0}
    waiting = [phase for phase in phases if phase.name not in finish]
    busy: list[tuple[float, int, str]] = []  # end, threads, name
    now = 0.0
    while waiting or busy:
        free = cores - sum(threads for _, threads, _ in busy)
        for phase in list(waiting):
            ready = all(name in finish for name in phase.needs)
            if ready and (min(phase.threads, cores) <= free):
                busy.append((now + left[phase.name], min(phase.threads, cores), phase.name))
                free -= min(phase.threads, cores)
                waiting.remove(phase)
        now, _, name = min(busy)
        finish[name] = now
        busy = [item for item in busy if item[2] != name]
    return now


class Runner:
    """Brings every phase to `done`, in one pass."""

    def __init__(
        self,
        phases: tuple[Phase, ...],
        run_dir: Path,
        *,
        cores: int,
        display: Display,
        cwd: Path,
        keep_going: bool = False,
    ) -> None:
        """keep_going: a phase that fails is said and kept in `failed`; all that does not need it still runs."""
        self.phases, self.run_dir, self.cores, self.display, self.cwd = phases, run_dir, cores, display, cwd
        self.keep_going = keep_going
        self.failed: dict[str, str] = {}
        self.ledger = Ledger(run_dir)
        self.hashes = settings_hashes(phases)
        self.decisions: dict[str, Decision] = {}
        self._running: list[Running] = []
        self._plan = "-".join(self.hashes.values())
        self._began, self._wall_before = time.monotonic(), self._earlier_wall_seconds()

    def run(self) -> None:
        """Run what is missing.

        Raises:
            PhaseFailed: with the end of the log; the others were stopped and go on next time. Never with keep_going.
        """
        try:
            while len(self.finished) + len(self.given_up) < len(self.phases):
                self._start_what_fits()
                self._look_after_running()
                self.display.update(*self._situation())
                time.sleep(POLL_SECONDS if self._running else 0)
        finally:
            self._stop_all()
            self.write_timing()

    def seconds_planned(self) -> float:
        """Wall time when nothing is there yet."""
        return makespan(self.phases, {phase.name: phase.seconds for phase in self.phases}, self.cores)

    @property
    def finished(self) -> set[str]:
        running = {item.phase.name for item in self._running}
        return set(self.decisions) - running - set(self.failed)

    @property
    def given_up(self) -> set[str]:
        """Phases that failed, and all that need one of them."""
        gone = set(self.failed)
        for phase in self.phases:
            if gone & set(phase.needs):
                gone.add(phase.name)
        return gone

    def _start_what_fits(self) -> None:
        for phase in self.phases:
            free = self.cores - sum(min(item.phase.threads, self.cores) for item in self._running)
            ready = phase.name not in self.decisions and all(name in self.finished for name in phase.needs)
            if not ready:
                continue
            decision = self.ledger.decide(phase, self.hashes[phase.name])
            if decision is Decision.REUSE:
                self.decisions[phase.name] = decision
                seconds = self.ledger.read(phase.name).get("seconds", 0.0)
                self.display.say(f"= {phase.title}: reused, took {clock(seconds)} ({self._where(phase)})", "dim")
            elif min(phase.threads, self.cores) <= free:
                self._begin(phase, decision)

    def _begin(self, phase: Phase, decision: Decision) -> None:
        orphans = processes.end_orphans(self.ledger.read(phase.name).get("token"))
        if orphans:
            self.display.say(f"  ended {orphans} processes that an earlier run had left behind", "yellow")
        if decision is Decision.REDO:
            for old, new in move_aside(phase.outputs, self.run_dir / "old"):
                self.display.say(f"  settings changed: {self._short(old)} moved to {self._short(new)}", "yellow")
        word = {Decision.CONTINUE: "goes on where it was", Decision.REDO: "again"}.get(decision, "")
        self.display.say(f"> {phase.title}{f' ({word})' if word else ''}", "bold")
        self.ledger.start(phase, self.hashes[phase.name])
        self.decisions[phase.name] = decision
        token, log = uuid.uuid4().hex, self.run_dir / "logs" / f"{phase.name}.log"
        self.ledger.write(phase.name, token=token)
        try:
            self._running.append(self._launch(phase, 0, token, log, time.monotonic()))
        except PhaseFailed as error:
            self._give_up(phase, error)

    def _launch(self, phase: Phase, index: int, token: str, log: Path, began: float) -> Running:
        command = phase.commands[index]
        self.display.say(f"  $ {command}", "dim")
        threads = min(phase.threads, self.cores)
        try:
            process = processes.start(command, log=log, threads=threads, token=token, cwd=self.cwd)
        except OSError as error:
            raise PhaseFailed(f"{phase.title}: `{command}` cannot be started ({error}); run `make install`") from error
        return Running(phase=phase, process=process, token=token, command=index, began=began, log=log)

    def _look_after_running(self) -> None:
        for item in list(self._running):
            code = item.process.poll()
            if code is None:
                continue
            self._running.remove(item)
            try:
                self._after_command(item, code)
            except PhaseFailed as error:
                self.ledger.stop(item.phase, item.elapsed, done=False)
                self._give_up(item.phase, error)

    def _after_command(self, item: Running, code: int) -> None:
        """The next command, or the end of the phase."""
        phase = item.phase
        if code != 0:
            raise PhaseFailed(self._failure(item, f"ended with exit code {code}"))
        if item.command + 1 < len(phase.commands):
            self._running.append(self._launch(phase, item.command + 1, item.token, item.log, item.began))
            return
        missing = [self._short(path) for path in phase.outputs if not path.exists()]
        if missing:
            raise PhaseFailed(self._failure(item, f"ended well but left out {', '.join(missing)}"))
        self.ledger.stop(phase, item.elapsed, done=True)
        self.write_timing()
        self.display.say(f"  {phase.title}: done in {clock(item.elapsed)} ({self._where(phase)})", "green")

    def _give_up(self, phase: Phase, error: PhaseFailed) -> None:
        if not self.keep_going:
            raise error
        self.failed[phase.name] = str(error)
        self.display.say(f"  {error}", "red")

    def _failure(self, item: Running, what: str) -> str:
        lines = "\n".join(f"    {line}" for line in tail(item.log).splitlines()[-25:])
        return (
            f"{item.phase.title}: `{item.phase.commands[item.command]}` {what}\n{lines}\n"
            f"The whole log is {item.log}. Repair the cause and run the same command: finished phases are kept."
        )

    def _stop_all(self) -> None:
        for item in self._running:
            processes.ask_to_stop(item.process)  # all at once: each may take seconds to save
        for item in self._running:
            processes.end(item.process)
            self.ledger.stop(item.phase, item.elapsed, done=False)
        self._running.clear()

    def _situation(self) -> tuple[list[tuple[Phase, float, Progress]], float]:
        running = [(item.phase, item.elapsed, estimate(item.phase, item.elapsed)) for item in self._running]
        over = self.finished | self.given_up
        left = {phase.name: 0.0 if phase.name in over else phase.seconds for phase in self.phases}
        for phase, _, progress in running:
            left[phase.name] = max(progress.seconds_left or 0.0, 0.5)
        return running, makespan(self.phases, left, self.cores)

    def write_timing(self) -> dict[str, Any]:
        """`timing.json`: seconds of every phase, interrupted tries included, and what this run did with it."""
        markers = {phase.name: self.ledger.read(phase.name) for phase in self.phases}
        rows = [
            {
                "name": phase.name,
                "title": phase.title,
                "seconds": round(markers[phase.name].get("seconds", 0.0), 1),
                "state": "failed" if phase.name in self.failed else markers[phase.name].get("state", "waiting"),
                "this_run": self.decisions[phase.name].value if phase.name in self.decisions else "waiting",
                "threads": min(phase.threads, self.cores),
                "commands": [str(command) for command in phase.commands],
            }
            for phase in self.phases
        ]
        timing = {
            "phases": rows,
            "cores": self.cores,
            "wall_seconds": round(self._wall_seconds(), 1),
            "written": time.strftime("%Y-%m-%d %H:%M:%S"),
            "plan": self._plan,
        }
        self.run_dir.mkdir(parents=True, exist_ok=True)
        (self.run_dir / "timing.json").write_text(json.dumps(timing, indent=1))
        return timing

    def _wall_seconds(self) -> float:
        """Of all runs of this plan together; a run that only reuses adds nothing."""
        worked = any(decision is not Decision.REUSE for decision in self.decisions.values())
        return self._wall_before + (time.monotonic() - self._began if worked else 0.0)

    def _earlier_wall_seconds(self) -> float:
        try:
            timing = json.loads((self.run_dir / "timing.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return 0.0
        return timing["wall_seconds"] if timing.get("plan") == self._plan else 0.0

    def _where(self, phase: Phase) -> str:
        return ", ".join(self._short(path) for path in phase.outputs)

    def _short(self, path: Path) -> str:
        return str(path.relative_to(self.cwd) if path.is_relative_to(self.cwd) else path)
