"""How far is a running command? Three sources, from the best to the worst: its progress file, its log, the clock."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path

from playground.demo.phases import Phase, Progress

TAIL_BYTES = 4096
PROGRESS_FILE = "progress.jsonl"
"""In the output folder of a training: one line per log line."""
COUNT = re.compile(r"\b(\d+)/(\d+) episodes")
"""What `vila-world` and `vila-eval` print while they work."""


def tail(path: Path, size: int = TAIL_BYTES) -> str:
    """The last `size` bytes of a text file, "" when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def last_record(path: Path) -> dict:
    """The last complete line of a JSON-lines file, {} when there is none."""
    for line in reversed(tail(path).splitlines()):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut at the front by the tail, or still being written at the end
        if isinstance(record, dict):
            return record
    return {}


def all_records(path: Path) -> list[dict]:
    """Every complete line of a JSON-lines file, oldest first; [] when there is none."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def training_progress(folder: Path) -> Callable[[], Progress | None]:
    """Reads `progress.jsonl` of a training run: {step, total, share, loss, tokens_per_second, eta, ...}."""

    def read() -> Progress | None:
        record = last_record(folder / PROGRESS_FILE)
        if not record:
            return None
        age = time.time() - (folder / PROGRESS_FILE).stat().st_mtime
        left = max(0.0, record["eta"] - age) if record.get("eta") is not None else None
        notes = [f"step {record['step']}"] if "step" in record else []
        if record.get("loss") is not None and math.isfinite(record["loss"]):
            notes.append(f"loss {record['loss']:.3f}")
        if record.get("tokens_per_second"):
            notes.append(f"{record['tokens_per_second']:,.0f} tokens/s")
        return Progress(share=min(1.0, record.get("share", 0.0)), seconds_left=left, note=", ".join(notes))

    return read


def log_progress(log: Path) -> Callable[[], Progress | None]:
    """Reads the last `done/total episodes` that a command printed."""

    def read() -> Progress | None:
        this_try = tail(log).rpartition("\n$ ")[2]
        for line in reversed(this_try.splitlines()):
            counts = COUNT.findall(line)
            if counts:
                done, total = map(int, counts[-1])
                if done <= total and total > 0:
                    return Progress(share=done / total, note=f"{done}/{total} episodes")
        return None

    return read


def estimate(phase: Phase, elapsed: float) -> Progress:
    """What the phase says of itself; where it says no time, its share of the elapsed time; at worst the plan."""
    said = phase.progress() if phase.progress else None
    if said is not None and said.seconds_left is not None:
        return said
    if said is not None and said.share > 0.05:
        return Progress(share=said.share, seconds_left=elapsed * (1 - said.share) / said.share, note=said.note)
    left = max(0.0, phase.seconds - elapsed)
    share = said.share if said is not None else min(0.99, elapsed / max(phase.seconds, 1e-9))
    return Progress(share=share, seconds_left=left, note=said.note if said else "")
