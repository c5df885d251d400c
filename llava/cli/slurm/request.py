"""What somebody asked vila-run for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")
_ARRAY = re.compile(r"(\d+)(?:%(\d+))?", re.ASCII)
_UNFIT_FOR_LOG_PATHS = re.compile(r"[%\\\"'\x00-\x1f]")
LONGEST_NOTICE = 65535
"""Seconds; the most that `sbatch --signal` takes."""
GPU_REQUESTS = ("gpus-per-node", "gres", "none")


def job_name(text: str, now: datetime) -> str:
    """`%t` becomes the time, as in 20260131235959."""
    return text.replace("%t", now.strftime("%Y%m%d%H%M%S"))


def parse_array(text: str) -> tuple[int, int | None]:
    """`8` is 8 chunks; `8%2` is 8 chunks, two at a time."""
    match = _ARRAY.fullmatch(text.strip())
    count, at_once = (int(part) if part else None for part in match.groups()) if match else (None, None)
    if not count or at_once == 0:
        raise ValueError(f"--array is {text!r}, expected a number of chunks such as 8, or 8%2 for two at a time")
    return count, at_once


def default_notice(time_limit: int) -> int:
    """Seconds: ten minutes, or a fifth of a time that is too short for this."""
    return min(600, max(1, time_limit // 5))


@dataclass(frozen=True, kw_only=True)
class Request:
    """One job.

    Attributes:
        command: the words of the command; nothing in them is ever expanded or split.
        time_limit: seconds of one allocation.
        notice: seconds before this limit at which the command is told to save.
        max_retries: further attempts after failures in a row.
        max_requeues: further allocations after time limits, None for any number.
        retry_wait: seconds between a failure and the next attempt.
        array: number of chunks and how many of them run at a time (None: as many as fit).
        gpu_request: which option of sbatch asks for GPUs; "none" on clusters that give out whole nodes.
        wait_for_namesake: start only after other jobs of the same name.
        options: further options of sbatch.
    """

    job_name: str
    command: tuple[str, ...]
    output_dir: Path
    mode: str = "train"
    nodes: int = 1
    gpus_per_node: int = 8
    time_limit: int = 4 * 3600
    notice: int = 600
    max_retries: int = 3
    max_requeues: int | None = None
    retry_wait: int = 10
    array: tuple[int, int | None] | None = None
    account: str | None = None
    partition: str | None = None
    email: str | None = None
    gpu_request: str = "gpus-per-node"
    wait_for_namesake: bool = False
    exclusive: bool = True
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for flag, name in (("--job-name", self.job_name), ("--mode", self.mode)):
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"{flag} is {name!r}, expected letters, digits and . _ + = - (it names a folder); %t is the time"
                )
        self._check_command()
        self._check_numbers()
        self._check_words()

    def _check_command(self) -> None:
        if not self.command or not self.command[0]:
            raise ValueError(
                "there is no command; name it after the options: vila-run -J NAME bash scripts/train/sft_8frames.sh"
            )
        if any("\0" in word for word in self.command):
            raise ValueError("a word of the command holds a NUL character, which no program can be given; remove it")

    def _check_numbers(self) -> None:
        least = {"nodes": 1, "gpus_per_node": 0, "max_retries": 0, "max_requeues": 0, "retry_wait": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                flag = {"max_retries": "max-retry"}.get(name, name.replace("_", "-"))
                raise ValueError(f"--{flag} is {value}, expected at least {smallest}")
        if not 0 < self.notice < self.time_limit or self.notice > LONGEST_NOTICE:
            raise ValueError(
                f"--timedelta is {self.notice / 60:g} minutes, expected more than 0, less than --time "
                f"({self.time_limit / 60:g} minutes) and at most {LONGEST_NOTICE // 60} minutes"
            )

    def _check_words(self) -> None:
        if _UNFIT_FOR_LOG_PATHS.search(str(self.output_dir)):
            raise ValueError(
                f"--output-dir is {str(self.output_dir)!r}, expected a path without % \\ quotes and line breaks, "
                "because SLURM reads these in the names of log files"
            )
        if self.gpu_request not in GPU_REQUESTS:
            raise ValueError(f"--gpu-request is {self.gpu_request!r}, expected one of {', '.join(GPU_REQUESTS)}")
        for word in (self.account, self.partition, self.email, *self.options):
            if word is not None and (not word or any(ord(letter) < 32 for letter in word)):
                raise ValueError(f"{word!r} is no option of sbatch: it is empty or holds a line break")

    @property
    def logs(self) -> Path:
        """Folder of the logs, job scripts and reports."""
        return self.output_dir / "logs"

    @property
    def full_name(self) -> str:
        """The job's name in the queue."""
        return f"{self.account}:{self.mode}/{self.job_name}" if self.account else f"{self.mode}/{self.job_name}"
