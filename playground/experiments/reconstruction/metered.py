"""Runs a training command, notes what its steps cost, and can give it as many steps as another one's time buys.

python -m playground.experiments.reconstruction.metered OUTPUT/cost.jsonl -- bash scripts/train/sft_episodes.sh ...
python -m playground.experiments.reconstruction.metered ... --as-long-as BASELINE --one-step-like ARM -- bash ...

The second form appends `--max_steps`. Computing time is the processor time of the training process, so that neither a
loaded machine nor its neighbour changes the number of steps; time before the first step (imports) does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from playground.demo.progress import PROGRESS_FILE, all_records, last_record

SAMPLE_SECONDS = 0.5
COST_FILE = "cost.jsonl"
"""In the output folder of a training: {attempt, step, cpu, wall}, each time a new log line was seen."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a training took, restarts included. Seconds per step come from the steps between two log lines."""

    steps: int
    cpu_per_step: float
    wall_per_step: float

    def per_step(self, unit: str) -> float:
        return self.cpu_per_step if unit == "cpu" else self.wall_per_step

    def total(self, unit: str) -> float:
        return self.steps * self.per_step(unit)


def read_cost(folder: Path) -> Cost:
    """From the samples in a training's output folder.

    Raises:
        ValueError: there are none, or they span no step.
    """
    return cost_of(all_records(folder / COST_FILE), str(folder / COST_FILE))


def cost_of(rows: Iterable[Mapping[str, Any]], source: str = "the samples") -> Cost:
    """Each attempt (a restart begins a new one) gives its steps and seconds between its first and last sample."""
    attempts: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        attempts.setdefault(row["attempt"], []).append(row)
    spans = [(part[0], part[-1]) for part in attempts.values()]
    steps = sum(last["step"] - first["step"] for first, last in spans)
    if steps <= 0:
        raise ValueError(
            f"{source} hold {len(attempts)} attempts that span {steps} steps, expected at least 1; train with a lower "
            "--logging_steps or more steps"
        )
    seconds = {unit: sum(last[unit] - first[unit] for first, last in spans) / steps for unit in ("cpu", "wall")}
    end = max(last["step"] for _, last in spans)
    return Cost(steps=end, cpu_per_step=seconds["cpu"], wall_per_step=seconds["wall"])


def affordable_steps(budget: Cost, own: Cost, unit: str) -> int:
    """Steps of `own` that take as long as all steps of `budget`; at least 1."""
    return max(1, round(budget.total(unit) / own.per_step(unit)))


class _Sampler(threading.Thread):
    """Writes step and processor time whenever the training has logged a new step."""

    def __init__(self, pid: int, folder: Path) -> None:
        super().__init__(daemon=True)
        self.process, self.folder, self.attempt = psutil.Process(pid), folder, f"{os.getpid()}-{pid}"
        self.begin = self.process.create_time()
        self.last_step: int | None = None
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(SAMPLE_SECONDS):
            self.sample()

    def sample(self) -> None:
        progress = self.folder / PROGRESS_FILE
        try:
            if progress.stat().st_mtime < self.begin:
                return  # of an earlier attempt
            cpu = sum(self.process.cpu_times()[:2])
        except (FileNotFoundError, psutil.NoSuchProcess):
            return
        record = last_record(progress)
        if "step" not in record or record["step"] == self.last_step:
            return
        self.last_step = record["step"]
        sample = {"attempt": self.attempt, "step": record["step"], "cpu": round(cpu, 3), "wall": record["elapsed"]}
        with (self.folder / COST_FILE).open("a") as file:
            file.write(json.dumps(sample) + "\n")


def run_metered(command: Sequence[str], folder: Path) -> int:
    """The exit status of the command. Signals to the process group reach the training, which saves and leaves."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    with subprocess.Popen(list(command)) as process:
        sampler = _Sampler(process.pid, folder)
        sampler.start()
        code = process.wait()
        sampler.ended.set()
        sampler.join()
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="output folder of the training")
    parser.add_argument("--as-long-as", type=Path, metavar="FOLDER", help="training whose whole time is the budget")
    parser.add_argument("--one-step-like", type=Path, metavar="FOLDER", help="training whose steps cost as ours do")
    parser.add_argument("--unit", choices=("cpu", "wall"), default="cpu")
    given = list(sys.argv[1:] if arguments is None else arguments)
    border = given.index("--") if "--" in given else len(given)
    options, command = parser.parse_args(given[:border]), given[border + 1 :]
    if not command:
        parser.error("the training command is missing; give it behind --")
    if (options.as_long_as is None) != (options.one_step_like is None):
        parser.error("--as-long-as and --one-step-like go together")
    try:
        if options.as_long_as is not None:
            budget, own = read_cost(options.as_long_as), read_cost(options.one_step_like)
            command += ["--max_steps", str(affordable_steps(budget, own, options.unit))]
            print(" ".join(command[-2:]), f"for the time of {options.as_long_as}", flush=True)
    except ValueError as error:
        parser.error(str(error))
    return run_metered(command, options.output)


if __name__ == "__main__":
    sys.exit(main())
