"""Everything the page shows, read from the files that the phases left behind. Nothing here knows HTML."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from playground.demo.processes import describe_environment
from playground.demo.report.charts import Rate

MEASURES = (
    ("success_1m", "SR 1 m", "stopped within 1 m of the goal"),
    ("right_object", "Right object", "stopped next to the object that was meant"),
    ("success", "SR 3 m", "stopped within 3 m of the goal"),
    ("spl", "SPL", "success at 3 m, weighted by the length of the way"),
    ("oracle_success", "OSR", "was within 3 m at any time"),
    ("never_stopped", "Never stopped", "ran out of steps"),
)
"""Columns of the table: key in the results, head, meaning."""

PACKAGES = ("llava", "torch", "torchvision", "transformers", "accelerate", "numpy", "gymnasium")


@dataclass(frozen=True, kw_only=True)
class EpisodePicture:
    """One walked episode to look at."""

    png: bytes
    title: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One format on one level: its measured summary, the floors of the same episodes, pictures of some episodes."""

    name: str
    level: str
    content: Mapping[str, Any]
    pictures: Sequence[EpisodePicture] = ()

    @property
    def summary(self) -> Mapping[str, Any]:
        return self.content["summary"]

    @property
    def floors(self) -> Mapping[str, Mapping[str, Any]]:
        return {name: floor["summary"] for name, floor in self.content.get("floors", {}).items()}


@dataclass(frozen=True, kw_only=True)
class SceneFindings:
    """The object detector: what was measured and drawn, or the reason why it was left out."""

    report: Mapping[str, Any] | None = None
    pictures: Sequence[EpisodePicture] = ()
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunData:
    """A finished (or half finished) demo.

    Attributes:
        evaluations: all that were measured, the first level first.
        curves: stage title -> lines of its progress file.
        timing: content of timing.json.
        settings: name -> value, as shown at the end of the page.
        heat_maps: of the next-frame loss, where a run had it and somebody drew them.
        scene: of the object detector; empty where a run knew none.
    """

    title: str
    profile: str
    evaluations: Sequence[Evaluation]
    curves: Mapping[str, Sequence[Mapping[str, Any]]]
    timing: Mapping[str, Any]
    settings: Mapping[str, str]
    machine: Mapping[str, str] = field(default_factory=describe_environment)
    heat_maps: Sequence[EpisodePicture] = ()
    scene: SceneFindings = field(default_factory=SceneFindings)

    @property
    def levels(self) -> list[str]:
        return list(dict.fromkeys(evaluation.level for evaluation in self.evaluations))

    def on_level(self, level: str) -> list[Evaluation]:
        return [evaluation for evaluation in self.evaluations if evaluation.level == level]


def rate_of(summary: Mapping[str, Any], measure: str, label: str, **look: Any) -> Rate | None:
    """A measure with its interval, None where it was not measured."""
    value = summary.get(f"mean_{measure}")
    if value is None:
        return None
    low, high = summary.get("intervals", {}).get(measure, (value, value))
    return Rate(label=label, value=value, low=low, high=high, **look)


def rates_on_level(evaluations: Sequence[Evaluation], measure: str) -> list[Rate]:
    """The formats in order, then the floors of the first of them (all walk the same episodes)."""
    rates = [rate_of(e.summary, measure, e.name, series=i) for i, e in enumerate(evaluations)]
    floors = evaluations[0].floors if evaluations else {}
    rates += [rate_of(summary, measure, name, is_floor=True) for name, summary in floors.items()]
    return [rate for rate in rates if rate is not None]


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide a result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {"python": platform.python_version()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of an earlier phase.

    Raises:
        ValueError: it does not exist or is no JSON; names the phase's command as the next step.
    """
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); run the demo again, it goes on with that phase") from error
