"""results.json: written after every batch, so that a killed evaluation goes on; read back, summed up and tabulated."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llava.eval.navigation_loop import Walk
from llava.eval.protocol import ProtocolCard
from llava.navigation import metrics

FILE_NAME = "results.json"

HEADLINE = (
    ("success_1m", "SR 1 m"),
    ("success", "SR 3 m"),
    ("right_object", "right object"),
    ("oracle_success", "OSR"),
    ("spl", "SPL"),
    ("spl_1m", "SPL 1 m"),
    ("ndtw", "nDTW"),
    ("sdtw", "sDTW"),
    ("distance_to_goal", "NE (m)"),
    ("path_length", "TL (m)"),
    ("steps_taken", "steps"),
    ("never_stopped", "never stopped"),
)
"""Measures of the table in order, with their heads."""

REUSE = ("frames_encoded", "frames_reused", "kept_tokens")
"""Fields of decisions that say what was not computed again."""


def episode_record(
    walk: Walk, *, dtw_backend: str = "exact", radii: Sequence[float | int] = (3.0, 1.0)
) -> dict[str, Any]:
    """All that is kept of one walk: measures, failure class, costs, and the actions, so that it can be replayed."""
    reference = getattr(walk.episode, "locations", ())
    trace = metrics.EpisodeTrace(
        positions=np.stack(walk.positions),
        distances=np.array(walk.distances, dtype=float),
        stopped=walk.stopped,
        collided=np.array(walk.collided, dtype=bool),
        reference=np.array(reference, dtype=float) if len(reference) else None,
    )
    first, *others = (float(radius) for radius in radii)
    record: dict[str, Any] = metrics.episode_metrics(
        trace, success_distance=first, more_radii=others, dtw_backend=dtw_backend
    )
    record["never_stopped"] = float(not walk.stopped)
    record |= _object_measures(walk)
    record["failure"] = metrics.failure_class(trace, radius=first)
    if others:
        record["failure_1m"] = metrics.failure_class(trace, radius=others[0])
    record["decisions"] = len(walk.decisions)
    record["fallbacks"] = sum(not decision.understood for decision in walk.decisions)
    record["tokens"] = sum(decision.tokens for decision in walk.decisions)
    for name in REUSE:
        record[name] = sum(getattr(decision, name) for decision in walk.decisions)
    record["policy_seconds"] = round(walk.seconds, 5)
    record["scene_id"] = str(getattr(walk.episode, "scene_id", ""))
    record["instruction"] = str(getattr(walk.episode, "instruction", ""))
    record["actions"] = "".join(map(str, walk.actions))
    return record


def _object_measures(walk: Walk) -> dict[str, float]:
    """Only for worlds that name their objects; an agent that never stops chose none."""
    info = getattr(walk.episode, "info", None) or {}
    objects, goal = info.get("objects"), info.get("goal_object")
    if not objects or goal not in objects:
        return {}
    if not walk.stopped:
        return {"nearest_object": 0.0, "right_object": 0.0}
    places = np.array([objects[name] for name in objects], dtype=float)[:, [0, 2]]  # height does not count
    stop = np.asarray(walk.positions[-1], dtype=float)[[0, 2]]
    return metrics.right_object(stop, places, list(objects).index(goal))


def summarise(episodes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Means with 95 % intervals, success by path length, failure classes and costs of the episodes there are."""
    rows = list(episodes.values())
    summary: dict[str, Any] = dict(metrics.aggregate(episodes))
    summary["intervals"] = {
        name: list(metrics.interval([row[name] for row in rows]))
        for name, _ in HEADLINE
        if name in rows[0] and any(math.isfinite(row[name]) for row in rows)
    }
    for suffix in ("", "_1m"):
        if f"success{suffix}" in rows[0]:
            by_length = metrics.success_by_length(episodes, measure=f"success{suffix}")
            summary[f"success{suffix}_by_shortest_path"] = by_length
            counts = Counter(str(row[f"failure{suffix}"]) for row in rows)
            summary[f"classes{suffix}"] = dict(counts.most_common())
    summary["cost"] = _costs(rows)
    return summary


def _costs(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    total = {name: sum(row[name] for row in rows) for name in ("decisions", "tokens", "policy_seconds", "fallbacks")}
    total |= {name: sum(row.get(name, 0) for row in rows) for name in REUSE}  # records of older versions lack them
    shown = total["frames_encoded"] + total["frames_reused"]
    decisions, seconds = max(total["decisions"], 1), max(total["policy_seconds"], 1e-9)
    low_level = sum(row["steps_taken"] for row in rows)
    return {
        "model_calls_per_episode": total["decisions"] / len(rows),
        "tokens_per_decision": total["tokens"] / decisions,
        "ms_per_decision": 1000 * seconds / decisions,
        "ms_per_action": 1000 * seconds / max(low_level, 1),
        "decisions_per_second": decisions / seconds,
        "fallback_rate": total["fallbacks"] / decisions,
        "frames_encoded_per_decision": total["frames_encoded"] / decisions,
        "frames_reused_rate": total["frames_reused"] / max(shown, 1),
        "kept_tokens_per_decision": total["kept_tokens"] / decisions,
    }


class ResultFile:
    """One evaluation on disk. Finished episodes are never walked again as long as the protocol stays the same."""

    def __init__(self, folder: str | Path, card: ProtocolCard, *, episode_ids: Sequence[str]) -> None:
        """
        Raises:
            ValueError: the folder holds results of another protocol.
        """
        self.path = Path(folder) / FILE_NAME
        self.card, self.episode_ids = card, [str(i) for i in episode_ids]
        self.episodes: dict[str, dict[str, Any]] = {}
        self.floors: dict[str, Any] = {}
        old = read_results(folder)
        if old is not None:
            different = card.differences(old["protocol"])
            if different:
                raise ValueError(
                    f"{self.path} was measured under another protocol (different: {', '.join(different)}); choose "
                    "another --output-dir, or --overwrite to move the old results aside"
                )
            self.episodes, self.floors = old["episodes"], old.get("floors", {})

    @property
    def todo(self) -> list[str]:
        return [i for i in self.episode_ids if i not in self.episodes]

    @property
    def complete(self) -> bool:
        return not self.todo

    def add(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep finished episodes and write the file."""
        self.episodes |= {key: dict(record) for key, record in records.items()}
        self.save()

    def save(self) -> None:
        content: dict[str, Any] = {"complete": self.complete, "protocol": self.card.to_dict()}
        if not self.complete:
            content["missing_episodes"] = len(self.todo)
        if self.episodes:
            content["summary"] = summarise(self.episodes)
        content |= {"floors": self.floors, "episodes": self.episodes}
        write_json(self.path, content)


def write_json(path: Path, content: Any) -> None:
    """In one atomic step: a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps(content, indent=1))
    partial.replace(path)


def read_results(folder: str | Path) -> dict[str, Any] | None:
    """Content of a folder's results.json, or None when there is none.

    Raises:
        ValueError: the file is no JSON or no result.
    """
    path = Path(folder) if str(folder).endswith(".json") else Path(folder) / FILE_NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}); delete it to measure again") from error
    return content


def is_finished(folder: str | Path) -> bool:
    """True for a complete result, and for results of foreign runners that know no `complete`."""
    content = read_results(folder)
    return content is not None and bool(content.get("complete", True))


def value_at(content: Mapping[str, Any], path: str) -> float | None:
    """The number at `a/b/c` of a result, None where there is none; numbers written as text are read."""
    node: Any = content
    for part in path.split("/"):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    try:
        return float(node)
    except (TypeError, ValueError):
        return None
