"""The same job without SLURM: one node, one attempt after the other, the same environment, files and limits."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from llava.cli.slurm.attempts import End, History, Limits, describe, judge, read_log_from
from llava.cli.slurm.request import Request
from llava.cli.slurm.task import Command, out_of_memory_kills

CHECK_EVERY = 0.1
INTERRUPTED = 130


def say(text: str) -> None:
    print(f"vila-run: {text}", file=sys.stderr, flush=True)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def local_environment(request: Request, outside: Mapping[str, str]) -> dict[str, str]:
    """What the command finds in its environment: the same names as under SLURM."""
    environment = {
        "OUTPUT": str(request.output_dir / "model"),
        "MASTER_PORT": str(free_port()),
        **outside,
        "RUN_NAME": request.job_name,
        "OUTPUT_DIR": str(request.output_dir),
        "PYTHONUNBUFFERED": "1",
        "n_node": "1",
        "NNODES": "1",
        "MASTER_ADDR": "127.0.0.1",
        "CURRENT_RANK": "0",
        "NODE_RANK": "0",
    }
    environment.pop("GPUS_PER_NODE", None)
    if request.gpus_per_node:
        environment["GPUS_PER_NODE"] = str(request.gpus_per_node)
    return environment


class LocalRun:
    """Runs a request here.

    Args:
        request: what to run; its time limit holds for each attempt.
        timed: False when nobody asked for a time limit.
    """

    def __init__(self, request: Request, timed: bool) -> None:
        self.request, self.timed = request, timed
        self.limits = Limits(max_retries=request.max_retries, max_requeues=request.max_requeues)
        self.told: str | None = None
        self.interrupts = 0
        self._handled = 0
        self._command: Command | None = None

    def run(self) -> int:
        """Exit code for the shell: the first of an array that is not 0; 130 after Ctrl-C."""
        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        stamp = f"local-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
        chunks = range(self.request.array[0]) if self.request.array else [None]
        codes = []
        try:
            for chunk in chunks:
                if not self.interrupts:
                    codes.append(self._run_chunk(self.request.logs / stamp, chunk))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        code = next((code for code in codes if code), 0)
        return INTERRUPTED if self.interrupts and (code or len(codes) < len(chunks)) else code

    def _on_signal(self, number: int, frame: object) -> None:
        if number == signal.SIGUSR1:
            self.told = self.told or "time"
            if self._command:
                self._command.ask_to_stop()
        else:
            self.interrupts += 1

    def _run_chunk(self, stem: Path, chunk: int | None) -> int:
        base = stem if chunk is None else stem.with_name(f"{stem.name}_{chunk}")
        log, history = Path(f"{base}.out"), History(Path(f"{base}.attempts.jsonl"))
        environment = local_environment(self.request, os.environ)
        if chunk is not None:
            assert self.request.array is not None
            environment |= {"NUM_CHUNKS": str(self.request.array[0]), "CHUNK_IDX": str(chunk)}
        while True:
            name = "" if chunk is None else f"chunk {chunk}, "
            number = history.begin(nodes=socket.gethostname())
            say(f"{name}attempt {number} here; log {log}")
            history.end(self._attempt(environment, log))
            end = history.ends[-1]
            say(f"{name}attempt {number}: {end.reason}")
            if self.interrupts or not self.limits.allow_another(history.ends):
                return end.code
            if end.outcome == "failed":
                say(f"again in {self.request.retry_wait} seconds")
                if not self._pause():
                    return end.code

    def _pause(self) -> bool:
        until = time.monotonic() + self.request.retry_wait
        while time.monotonic() < until and not self.interrupts:
            time.sleep(CHECK_EVERY)
        return not self.interrupts

    def _attempt(self, environment: Mapping[str, str], log: Path) -> End:
        self.told = None
        log.parent.mkdir(parents=True, exist_ok=True)
        kills_before = out_of_memory_kills()
        start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as stream:
            try:
                command = Command(self.request.command, environment, subprocess.PIPE, own_session=True)
            except OSError as error:
                say(f"{self.request.command[0]!r} cannot be started: {error.strerror}")
                code = 126 if isinstance(error, PermissionError) else 127
                return End(outcome="failed", code=code, reason=describe(code))
            self._command = command
            assert command.process.stdout is not None
            copier = threading.Thread(target=copy, args=(command.process.stdout, stream, sys.stdout.buffer))
            copier.start()
            code = self._wait(command)
            copier.join(timeout=5)  # what the command left behind may hold the pipe open
            self._command = None
        out_of_memory = code != 0 and out_of_memory_kills() > kills_before
        notes = ["the kernel ended processes for want of memory"] if out_of_memory else []
        return judge(code, told=self.told, log_text=read_log_from(log, start), notes=notes)

    def _wait(self, command: Command) -> int:
        limit = time.monotonic() + self.request.time_limit if self.timed else None
        while True:
            try:
                return command.wait(CHECK_EVERY)
            except subprocess.TimeoutExpired:
                pass
            if self.interrupts > self._handled:
                self._handle_interrupt(command)
            if limit is not None and self.told is None and time.monotonic() > limit - self.request.notice:
                self.told = "time"
                command.ask_to_stop()
            if limit is not None and time.monotonic() > limit:
                self.told = "late" if self.told == "time" else self.told
                command.kill()

    def _handle_interrupt(self, command: Command) -> None:
        self._handled = self.interrupts
        self.told = "user"
        if self.interrupts == 1:
            say("asked the command to save and stop; Ctrl-C again kills it")
            command.ask_to_stop()
        else:
            say("killing the command")
            command.kill()


def copy(source: BinaryIO, *targets: BinaryIO) -> None:
    """All of a pipe to all targets, as it comes; when one breaks, as a closed terminal does, the others go on."""
    whole = list(targets)
    while block := source.read1(1 << 16):  # type: ignore[attr-defined]
        for target in tuple(whole):
            try:
                target.write(block)
                target.flush()
            except OSError as error:
                whole.remove(target)
                with contextlib.suppress(OSError):  # the terminal itself may be what is gone
                    say(f"{getattr(target, 'name', 'an output')} takes nothing more: {error}")
