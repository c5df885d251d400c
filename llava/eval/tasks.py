"""The table of tasks, and which of them a command line means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from llava.utils.registry import suggest

REGISTRY_FILE = Path(__file__).with_name("registry.yaml")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row: what it is called, by which tags it is chosen, what is read from its result, and who measures it."""

    name: str
    runner: str = ""
    tags: Sequence[str] = ()
    metrics: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def load_runner(self) -> Callable[..., Any]:
        if not self.runner:
            raise ValueError(f"task '{self.name}' has no runner; add `runner: module:function` to its row")
        module, _, function = self.runner.partition(":")
        return getattr(import_module(module), function)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks of every task.

    Attributes:
        model: loads the checkpoint, the same object at every call.
        checkpoint: what the protocol card says of it (path, fingerprint).
        folder: where the result of this task goes.
        conv_mode: conversation template; None = the one stored in the checkpoint.
        data_root: where data sets stand; None = what the task can make by itself.
        episodes: upper limit; None = the task's own number.
        floors: True measures the floor policies beside the model.
        num_chunks, chunk_index: only this share of the episodes.
        pictures: how many episodes are drawn.
        say: receives lines of progress.
        overrides: options of the task's row, replaced.
    """

    model: Callable[[], Any]
    folder: Path
    checkpoint: Mapping[str, str] = field(default_factory=dict)
    conv_mode: str | None = None
    data_root: Path | None = None
    episodes: int | None = None
    floors: bool = True
    num_chunks: int = 1
    chunk_index: int = 0
    pictures: int = 0
    allow_camera_mismatch: bool = False
    say: Callable[[str], None] = print
    overrides: Mapping[str, Any] = field(default_factory=dict)


def load_tasks(path: str | Path = REGISTRY_FILE) -> dict[str, Task]:
    """All rows of a registry file by name.

    Raises:
        ValueError: a row has a key that no row has.
    """
    rows = yaml.safe_load(Path(path).read_text()) or {}
    known = ["runner", "tags", "metrics", "options"]
    tasks = {}
    for name, row in rows.items():
        row = row or {}
        for key in row:
            if key not in known:
                raise ValueError(f"{path}: task '{name}' has an unknown key '{key}'{suggest(key, known)}")
        tasks[name] = Task(name=name, **row)
    return tasks


def select_tasks(
    tasks: Mapping[str, Task],
    *,
    names: Sequence[str] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> list[Task]:
    """The named tasks, or those with any tag of `include` (all when empty), without those with any tag of `exclude`.

    Raises:
        ValueError: an unknown name or tag (the nearest is suggested), or nothing is left.
    """
    tags = sorted({tag for task in tasks.values() for tag in task.tags})
    for kind, given, known in (("task", names, list(tasks)), ("tag", [*include, *exclude], tags)):
        for word in given:
            if word not in known:
                raise ValueError(f"unknown {kind} '{word}'{suggest(word, known)}")
    chosen = [tasks[name] for name in names] if names else list(tasks.values())
    kept = [t for t in chosen if (not include or set(include) & set(t.tags)) and not set(exclude) & set(t.tags)]
    if not kept:
        raise ValueError(
            f"no task is left of {len(tasks)}: names {list(names)}, include {list(include)}, exclude {list(exclude)}"
        )
    return kept
