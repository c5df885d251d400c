"""Child processes that never outlive their purpose: own process group, found again after a kill, ended politely."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from playground.demo.phases import Command

TOKEN = "LLAVA_DEMO_PHASE"
"""Environment variable that marks our children, so that a re-used process id is never mistaken for one of them."""

GRACE_SECONDS = 20.0
"""How long a child may take to save and leave after SIGINT, and again after SIGTERM."""


def child_environment(command: Command, *, threads: int, token: str) -> dict[str, str]:
    """The caller's environment, with this interpreter's programs first on the path and a bounded number of threads."""
    programs = str(Path(sys.executable).parent)
    bounded = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    path = os.pathsep.join([programs, os.environ.get("PATH", "")])
    return {**os.environ, **bounded, "PATH": path, **command.env, TOKEN: token}


def start(command: Command, *, log: Path, threads: int, token: str, cwd: Path) -> subprocess.Popen[bytes]:
    """Start a command as the leader of a new process group; its output is appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        sink.write(f"\n$ {command}\n".encode())
        sink.flush()
        return subprocess.Popen(
            list(command.argv),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=child_environment(command, threads=threads, token=token),
            cwd=cwd,
            start_new_session=True,  # the terminal's Ctrl-C reaches us alone; we pass it on to one group at a time
        )


def stop_on_signals() -> None:
    """Ctrl-C, an end by the system and a lost terminal all raise KeyboardInterrupt in the main thread."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def ask_to_stop(process: subprocess.Popen[bytes]) -> None:
    """SIGINT, as Ctrl-C: training saves a checkpoint and leaves."""
    if process.poll() is None:
        signal_group(process.pid, signal.SIGINT)


def end(process: subprocess.Popen[bytes], *, grace: float = GRACE_SECONDS) -> None:
    """Wait for a child that was asked to stop, then SIGTERM, then do not ask; the group's rest goes too."""
    for number in (None, signal.SIGTERM):
        if process.poll() is not None:
            break
        if number is not None:
            signal_group(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=grace)
    signal_group(process.pid, signal.SIGKILL)
    process.wait()


def members(token: str) -> list[int]:
    """Process ids that carry `token`; empty where /proc does not exist."""
    needle, found = f"{TOKEN}={token}".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if needle in (entry / "environ").read_bytes().split(b"\0") and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def end_orphans(token: str | None, *, grace: float = GRACE_SECONDS) -> int:
    """End what a killed demo left running under `token`; returns how many processes that were."""
    orphans = members(token) if token else []
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in members(token) if orphans and token else []:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        deadline = time.monotonic() + grace
        while orphans and token and members(token) and time.monotonic() < deadline:
            time.sleep(0.1)
    return len(orphans)


def describe_environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Machine facts for the report."""
    cpu = ""
    with contextlib.suppress(OSError):
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else ""
    return {"cpu": cpu, "cores": str(os.cpu_count()), "python": sys.version.split()[0], **(env or {})}
