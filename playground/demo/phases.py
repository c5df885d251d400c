"""A phase of the demo: commands with a marker file, so that the next run reuses, continues or redoes it.

One phase moves through three states, kept in `<run>/phases/<name>.json`:

    (no marker) --start--> running --all commands exit 0--> done

`running` with the same settings means that an earlier run was interrupted: the commands run again and go on by their
own means (training resumes from its checkpoint). Other settings than the marker's mean that the output belongs to
another question: it is moved aside, and the phase starts afresh.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a running phase is. `share` is in [0, 1]; `seconds_left` is None where nobody knows it."""

    share: float
    seconds_left: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One documented command line, as a user would type it: environment variables in front, then the program."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        return " ".join([*variables, *(shlex.quote(part) for part in self.argv)])


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Commands that run one after the other, and what they need and leave behind.

    Attributes:
        seconds: expected wall time, for the time left while nothing better is known.
        threads: cores it may use; phases run side by side while their threads fit the machine.
        needs: names of the phases whose output it reads.
        outputs: files or folders it writes; they must exist at the end and are moved aside before a redo.
        settings: whatever else decides the result (versions, seeds); commands and needs are added by themselves.
        progress: reads how far it is; None = elapsed time over `seconds`.
    """

    name: str
    title: str
    commands: tuple[Command, ...]
    outputs: tuple[Path, ...]
    seconds: float
    threads: int = 1
    needs: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    progress: Callable[[], Progress | None] | None = None


class Decision(Enum):
    """What to do with a phase that this run meets."""

    REUSE = "reused"
    CONTINUE = "goes on"
    REDO = "redone"
    RUN = "new"


def settings_hashes(phases: tuple[Phase, ...]) -> dict[str, str]:
    """Name -> hash of all that decides its result, the hashes of what it needs included (so a change spreads down).

    Raises:
        ValueError: a phase needs one that does not stand before it.
    """
    hashes: dict[str, str] = {}
    for phase in phases:
        for name in phase.needs:
            if name not in hashes:
                raise ValueError(
                    f"phase '{phase.name}' needs '{name}', which does not stand before it; order the phases"
                )
        facts = {
            "commands": [str(command) for command in phase.commands],
            "needs": [hashes[name] for name in phase.needs],
            "settings": dict(phase.settings),
        }
        hashes[phase.name] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return hashes


class Ledger:
    """The marker files of one run folder."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "phases"

    def read(self, name: str) -> dict[str, Any]:
        """The marker of a phase, {} when there is none or when a kill left it half written."""
        try:
            return json.loads((self.folder / f"{name}.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def write(self, name: str, **facts: Any) -> dict[str, Any]:
        """Update a marker in one atomic step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        marker = self.read(name) | facts
        partial = self.folder / f"{name}.json.tmp"
        partial.write_text(json.dumps(marker, indent=1))
        partial.replace(self.folder / f"{name}.json")
        return marker

    def decide(self, phase: Phase, settings_hash: str) -> Decision:
        marker = self.read(phase.name)
        if marker.get("settings_hash") != settings_hash:
            stale = marker or any(path.exists() for path in phase.outputs)
            return Decision.REDO if stale else Decision.RUN
        if marker["state"] == "done" and all(path.exists() for path in phase.outputs):
            return Decision.REUSE
        return Decision.CONTINUE

    def start(self, phase: Phase, settings_hash: str) -> None:
        """Mark as running; the seconds of interrupted tries are kept and added to."""
        before = self.read(phase.name)
        same = before.get("settings_hash") == settings_hash and before.get("state") == "running"
        seconds = before.get("seconds", 0.0) if same else 0.0
        self.write(phase.name, settings_hash=settings_hash, state="running", seconds=seconds, title=phase.title)

    def stop(self, phase: Phase, seconds: float, *, done: bool) -> None:
        """Add the seconds of this try; `done` closes the phase."""
        spent = self.read(phase.name).get("seconds", 0.0) + seconds
        finished = time.strftime("%Y-%m-%d %H:%M:%S") if done else None
        self.write(phase.name, state="done" if done else "running", seconds=spent, finished=finished)


def move_aside(paths: tuple[Path, ...], folder: Path) -> list[tuple[Path, Path]]:
    """Move what exists of `paths` into `folder/<time>/`; nothing of the user's is ever deleted."""
    moved = []
    target = folder / time.strftime("%Y%m%d-%H%M%S")
    for path in paths:
        if path.exists():
            target.mkdir(parents=True, exist_ok=True)
            new = target / path.name
            number = 1
            while new.exists():
                new, number = target / f"{path.name}.{number}", number + 1
            path.rename(new)
            moved.append((path, new))
    return moved
