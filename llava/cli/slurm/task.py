"""The process on each node: starts the command, tells the right processes to stop, notes how it ended.

The runner of the job talks to it through its standard input: `stop` and `kill`, a line each. Signals that SLURM sends
to the step arrive here too, SIGUSR1, SIGINT and SIGTERM mean the same as `stop`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from llava.cli.slurm.attempts import TIMED_OUT, shell_code

PROCESSES = Path("/proc")


class Command:
    """A running command and everything that it started.

    Args:
        words: program and arguments.
        environment: the whole environment of the program.
        output: where its output and errors go, None for those of this process.
        own_session: out of reach of the signals that a terminal sends, but also of SLURM where that tracks its
            processes by group (proctrack/pgid).
    """

    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        output: int | IO[bytes] | None = None,
        own_session: bool = False,
    ):
        errors = None if output is None else subprocess.STDOUT
        self.process = subprocess.Popen(
            list(words),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=own_session,
        )
        self.was_told = False

    def ask_to_stop(self) -> None:
        """SIGUSR1 to the processes that catch it, SIGTERM to all where none does.

        Not SIGUSR1 to all: it ends a process that does not catch it, and torchrun, which starts the training, is one.
        """
        if self.process.poll() is not None:
            return
        self.was_told = True
        family = self._family()
        catching = [pid for pid in family if catches(pid, signal.SIGUSR1)]
        for pid in catching or family:
            send(pid, signal.SIGUSR1 if catching else signal.SIGTERM)

    def kill(self) -> None:
        self.was_told = True
        for pid in self._family():
            send(pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Exit code, 128 + n for signal n; raises subprocess.TimeoutExpired."""
        return shell_code(self.process.wait(timeout))

    def _family(self) -> list[int]:
        """The command's process, its session and its descendants."""
        root = self.process.pid
        parents, sessions = process_table()
        family = {root} | {pid for pid, session in sessions.items() if session == root}
        grew = True
        while grew:
            children = {pid for pid, parent in parents.items() if parent in family} - family
            family |= children
            grew = bool(children)
        return sorted(family)


def process_table() -> tuple[dict[int, int], dict[int, int]]:
    """Parent and session of every process; empty where the system has no /proc."""
    parents, sessions = {}, {}
    for entry in PROCESSES.glob("[0-9]*/stat"):
        try:
            # pid (name, which may hold anything) state parent group session ...
            fields = entry.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        pid = int(entry.parent.name)
        parents[pid], sessions[pid] = int(fields[1]), int(fields[3])
    return parents, sessions


def catches(pid: int, number: int) -> bool:
    """True when the process has a handler of its own for this signal."""
    try:
        status = (PROCESSES / str(pid) / "status").read_text(errors="replace")
    except OSError:
        return False
    masks = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(masks) and bool(int(masks[0], 16) >> (number - 1) & 1)


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended meanwhile, which is all that was wanted
        os.kill(pid, number)


def out_of_memory_kills() -> int:
    """How many processes this machine's kernel has ended for want of memory, 0 where it does not say."""
    try:
        lines = (PROCESSES / "vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def listen(command: Command, stream: IO[str]) -> None:
    for line in stream:
        if line.strip() == "stop":
            command.ask_to_stop()
        elif line.strip() == "kill":
            command.kill()


def run(words: Sequence[str], record: str) -> int:
    """Run the command on this node and write RECORD.nodeK.json about its end."""
    node = int(os.environ.get("SLURM_NODEID", 0))
    rank = {"CURRENT_RANK": str(node), "NODE_RANK": str(node)}
    kills_before = out_of_memory_kills()
    try:
        command = Command(words, {**os.environ, **rank})
    except OSError as error:
        print(f"vila-run: {words[0]!r} cannot be started: {error.strerror}", file=sys.stderr, flush=True)
        return 126 if isinstance(error, PermissionError) else 127
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: command.ask_to_stop())
    threading.Thread(target=listen, args=(command, sys.stdin), daemon=True).start()
    code = command.wait()
    facts = {"node": socket.gethostname(), "code": code, "told": command.was_told, "ended": time.time()}
    facts["out_of_memory"] = code != 0 and out_of_memory_kills() > kills_before
    Path(f"{record}.node{node}.json").write_text(json.dumps(facts))
    # srun ends the other nodes at the first that fails; one that stopped early must leave them the time to save
    return 0 if command.was_told or code == TIMED_OUT else code


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="vila-run task", description="run a command on one node (used by the job)")
    parser.add_argument("--record", required=True, help="beginning of the path of the report")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="after --")
    options = parser.parse_args(arguments)
    return run(options.command[1:], options.record)


if __name__ == "__main__":
    raise SystemExit(main())
