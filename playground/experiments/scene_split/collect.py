"""What the phases left behind becomes one result: every way compared with its reference, and the two goals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

from llava.eval.results import write_json
from playground.demo.report.data import versions
from playground.experiments.common import machine, read_json
from playground.experiments.scene_split.make_data import FLOOR_FILE
from playground.experiments.scene_split.plan import Layout
from playground.experiments.scene_split.settings import Setting
from playground.experiments.scene_split.vqa import KINDS
from playground.experiments.scene_split.ways import WAYS, Way
from playground.experiments.statistics import ACCEPTED_LOSS, Paired, PerEpisode, compare, verdict

MEASURES = {
    "vqa": ("right",),
    "arrangements": ("right",),
    "robot": ("success", "distance_to_goal", "agreement"),
    "walk": ("success_1m", "success", "spl", "distance_to_goal"),
}
"""By kind of evaluation; the first one decides the goals."""
LEARNED = 0.10
"""So far above a guess, or above never arriving, a model must be for a goal to mean something."""
RATES = ("right", "success", "success_1m", "spl", "agreement")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way of one evaluation, over all seeds that have it.

    Attributes:
        measures: paired differences to the way's reference; of a reference to itself: 0.
        computed, reused, reused_first: shares of picture tokens and of backgrounds, means over seeds; `reused_first`
            where a picture was asked about for the first time, None in closed loops, where every picture is new.
        kinds: accuracy by kind of question.
    """

    kind: str
    way: Way
    noise: float | None
    seeds: tuple[int, ...]
    measures: Mapping[str, Paired]
    computed: float
    reused: float
    reused_first: float | None
    kinds: Mapping[str, float]
    provenance: Mapping[str, int]

    @property
    def is_reference(self) -> bool:
        return self.way.reference == self.way.name

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "measures": {name: found.to_dict() for name, found in self.measures.items()}}


@dataclass(frozen=True, kw_only=True)
class Point:
    """The guarded cache at one threshold under one disturbance, beside the split without a cache on the same pictures.

    Attributes:
        refused: share of the requests that the cache rejected or bypassed, misses not counted.
    """

    disturbance: str
    noise: float
    found: Paired
    reused: float
    refused: float

    @property
    def verdict(self) -> str:
        return verdict(self.found)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "found": self.found.to_dict(), "verdict": self.verdict}


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A line that was drawn before: `holds`, `missed`, `open` where the interval allows both, or `nothing learned`."""

    words: str
    state: str
    seen: str


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that tables and page show."""

    setting: Setting
    rows: Sequence[Row]
    curve: Sequence[Point]
    goals: Sequence[Goal]
    floor: Mapping[str, float]
    missing: Sequence[str]
    failed: Mapping[str, str]
    remarks: Sequence[str]
    facts: Mapping[str, str]

    def of(self, kind: str) -> list[Row]:
        return [row for row in self.rows if row.kind == kind]

    def to_dict(self) -> dict[str, Any]:
        return {
            "experiment": "background/object split and its cache",
            "date": date.today().isoformat(),
            "machine": dict(self.facts),
            "versions": versions(),
            "setting": asdict(self.setting),
            "goals": [asdict(goal) for goal in self.goals],
            "rows": [row.to_dict() for row in self.rows],
            "curve": [point.to_dict() for point in self.curve],
            "blind_floor": dict(self.floor),
            "missing": list(self.missing),
            "failed": dict(self.failed),
            "remarks": list(self.remarks),
        }


def collect(setting: Setting, run_dir: Path, *, failed: Mapping[str, str]) -> Results:
    """Reads what is there, compares it and writes `results.json`.

    Raises:
        ValueError: nothing was evaluated yet.
    """
    layout = Layout(run_dir=run_dir)
    kinds = [kind for kind in MEASURES if ("vqa" if kind == "arrangements" else kind) in setting.tasks]
    tables = {kind: _tables(layout, setting, kind) for kind in (*kinds, *(["curve"] if "vqa" in kinds else []))}
    if not any(tables.values()):
        raise ValueError(f"{run_dir} holds no evaluation of this setting; run it without --report-only")
    rows = [row for kind in kinds for row in compare_ways(kind, tables[kind])]
    curve = compare_curve(tables.get("curve", {}))
    floor = read_json(layout.data / "vqa" / FLOOR_FILE)
    results = Results(
        setting=setting,
        rows=rows,
        curve=curve,
        goals=goals_of(rows, curve, setting.noise, floor),
        floor=floor,
        missing=[f"{kind}-s{seed}" for kind, found in tables.items() for seed in setting.seeds if seed not in found],
        failed=failed,
        remarks=remarks_on(rows),
        facts=machine(),
    )
    write_json(run_dir / "results.json", results.to_dict())
    return results


Table = Mapping[int, Sequence[Mapping[str, Any]]]
"""seed -> rows of an evaluation."""


def _tables(layout: Layout, setting: Setting, kind: str) -> Table:
    found = {seed: read_json(layout.results(kind, seed)) for seed in setting.seeds}
    return {seed: content["rows"] for seed, content in found.items() if content}


def values_of(row: Mapping[str, Any], measure: str) -> PerEpisode:
    """What is redrawn together has one value: the episode, or all questions before one camera."""
    if measure != "right":
        return {name: float(episode[measure]) for name, episode in row["episodes"].items() if measure in episode}
    scenes: dict[str, list[float]] = defaultdict(list)
    for name, right in row["rights"].items():
        scenes[name.partition("/")[0]].append(right)
    return {scene: mean(rights) for scene, rights in scenes.items()}


def compare_ways(kind: str, table: Table) -> list[Row]:
    by_way: dict[str, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for seed, rows in table.items():
        for row in rows:
            by_way[row["way"]][seed] = row
    return [_compared(kind, WAYS[name], found, by_way[WAYS[name].reference]) for name, found in by_way.items()]


def _compared(
    kind: str, way: Way, found: Mapping[int, Mapping[str, Any]], reference: Mapping[int, Mapping[str, Any]]
) -> Row:
    measures = {}
    for measure in MEASURES[kind]:
        ours, theirs = ({seed: values_of(row, measure) for seed, row in t.items()} for t in (found, reference))
        paired = compare(ours, theirs)
        if paired is not None:
            measures[measure] = paired
    rows = list(found.values())
    first = [row["first_question"]["reused_share"] for row in rows if "first_question" in row]
    counts: dict[str, int] = defaultdict(int)
    for row in rows:
        for word, number in row["provenance"].items():
            counts[word] += number
    return Row(
        kind=kind,
        way=way,
        noise=rows[0]["noise"],
        seeds=tuple(sorted(found)),
        measures=measures,
        computed=mean(row["computed_share"] for row in rows),
        reused=mean(row["reused_share"] for row in rows),
        reused_first=mean(first) if first else None,
        kinds={name: mean(row["kinds"][name] for row in rows) for name in KINDS if "kinds" in rows[0]},
        provenance=dict(counts),
    )


def compare_curve(table: Table) -> list[Point]:
    """Every threshold under every disturbance, in the order of the first seed's rows."""
    groups: dict[tuple[str, float], dict[int, Mapping[str, Any]]] = defaultdict(dict)
    plain: dict[str, dict[int, PerEpisode]] = defaultdict(dict)
    for seed, rows in table.items():
        for row in rows:
            if row["way"] == "split":
                plain[row["disturbance"]][seed] = values_of(row, "right")
            else:
                groups[row["disturbance"], row["noise"]][seed] = row
    points = []
    for (disturbance, noise), found in groups.items():
        paired = compare({seed: values_of(row, "right") for seed, row in found.items()}, plain[disturbance])
        if paired is not None:
            reused = mean(row["reused_share"] for row in found.values())
            refused = mean(refused_share(row["provenance"]) for row in found.values())
            points.append(Point(disturbance=disturbance, noise=noise, found=paired, reused=reused, refused=refused))
    return points


def refused_share(provenance: Mapping[str, int]) -> float:
    refused = sum(n for word, n in provenance.items() if word.startswith(("rejected:", "bypass:")))
    return refused / max(1, sum(provenance.values()))


def goals_of(rows: Sequence[Row], curve: Sequence[Point], noise: float, floor: Mapping[str, float]) -> list[Goal]:
    """The exact cache within one point of full, in every evaluation; the guarded cache before it loses one.

    Args:
        floor: of a guess from the words alone; a model that is hardly better proves nothing.
    """
    point = f"{100 * ACCEPTED_LOSS:.0f} point"
    goals = []
    for row in rows:
        found = row.measures.get(MEASURES[row.kind][0])
        if row.way.name != "exact" or found is None:
            continue
        least = floor.get("all", 0.0) if row.kind == "vqa" else 0.0
        state = _state([found], least)
        goals.append(
            Goal(words=f"{row.kind}: split + exact cache at most {point} below full", state=state, seen=_seen(found))
        )
    at = [each for each in curve if each.noise == noise]
    if at:
        worst = min(at, key=lambda each: each.found.low)
        words = f"guarded cache at {noise:g} grey levels refuses before it loses {point}"
        seen = f"worst: {worst.disturbance}, {_seen(worst.found)}"
        goals.append(Goal(words=words, state=_state([each.found for each in at], floor.get("all", 0.0)), seen=seen))
    return goals


def _state(found: Sequence[Paired], least: float) -> str:
    """The worst of all; `nothing learned` where a reference is not `LEARNED` above what a guess reaches."""
    if min(each.baseline for each in found) < least + LEARNED:
        return "nothing learned"
    states = {STATES[verdict(each)] for each in found}
    return next(word for word in ("missed", "open", "holds") if word in states)


STATES = {"better": "holds", "no worse": "holds", "worse": "missed", "open": "open"}


def _seen(found: Paired) -> str:
    return f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}] points"


def remarks_on(rows: Sequence[Row]) -> list[str]:
    """Where the exact cache did not answer as the split without one does, which it promises."""
    remarks = []
    for kind in MEASURES:
        split, exact = (
            next((r for r in rows if (r.kind, r.way.name) == (kind, name)), None) for name in ("split", "exact")
        )
        measure = MEASURES[kind][0]
        if split is None or exact is None or measure not in split.measures:
            continue
        gap = exact.measures[measure].arm - split.measures[measure].arm
        if gap:
            remarks.append(
                f"{kind}: the exact cache changed the split's result by {100 * gap:+.2f} points; it should not"
            )
    return remarks
