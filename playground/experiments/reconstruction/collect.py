"""What the phases left behind becomes one result: every run, and every arm compared with its baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

from llava.eval.results import read_results, write_json
from playground.demo.progress import PROGRESS_FILE, all_records
from playground.demo.report.data import versions
from playground.experiments.common import machine, read_json
from playground.experiments.reconstruction.arms import Run
from playground.experiments.reconstruction.metered import COST_FILE, Cost, read_cost
from playground.experiments.reconstruction.plan import Layout, title_of
from playground.experiments.reconstruction.settings import Setting
from playground.experiments.statistics import Paired, PerEpisode, compare, compare_by_length, verdict

WALKED = ("success_1m", "success", "right_object", "spl", "distance_to_goal")
MEASURES = {
    "success_1m": "SR 1 m",
    "success": "SR 3 m",
    "right_object": "right object",
    "spl": "SPL",
    "distance_to_goal": "NE m",
    "cross_entropy": "CE nats",
    "next_action": "action probe",
    "distance_error_m": "distance probe m",
}
"""Measure -> its head in tables; probes are those of the last layer."""
RATES = ("success_1m", "success", "right_object", "spl", "next_action")
LATE_SHARE = 0.25
"""Figures of a training are means over this last part of its log."""
CURVES = (
    "main_loss",
    "autoregressive_loss",
    "autoregressive_skill",
    "autoregressive_ratio",
    "gradient_ratio_language_model",
    "gradient_ratio_vision_tower",
    "gradient_cosine_language_model",
    "gradient_cosine_vision_tower",
)
MOTIONS = ("forward", "turn", "both", "still")
POINTS_PER_CURVE = 200


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run as far as it got: `walks` and `heldout` are empty until they were measured."""

    run: Run
    training: Mapping[str, Any] = field(default_factory=dict)
    cost: Cost | None = None
    log: Sequence[Mapping[str, Any]] = ()
    walks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    heldout: Mapping[str, Any] = field(default_factory=dict)

    def values(self, measure: str) -> PerEpisode:
        """episode -> value; empty where it was not measured."""
        if measure in WALKED:
            return {name: float(row[measure]) for name, row in self.walks.items() if measure in row}
        if measure == "cross_entropy":
            return self.heldout.get("cross_entropy", {})
        layers = self.heldout.get("probes", {}).get("layers", ())
        return layers[-1][measure] if layers else {}

    def late(self, key: str) -> float | None:
        """Mean over the end of the training; None where it was never logged."""
        found = [value for _, value in self._points(key)]
        return mean(found[-max(1, round(LATE_SHARE * len(found))) :]) if found else None

    def curve(self, key: str) -> list[tuple[int, float]]:
        points = self._points(key)
        return points[:: max(1, len(points) // POINTS_PER_CURVE)]

    def _points(self, key: str) -> list[tuple[int, float]]:
        """Finite ones: the skill of predicting the current frame is not, as copying it has no error."""
        return [(line["step"], line[key]) for line in self.log if key in line and math.isfinite(line[key])]

    @property
    def is_whole(self) -> bool:
        return bool(self.training and self.walks and self.heldout)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An arm beside its baseline: same format, same seeds, same houses.

    Attributes:
        records, baselines: by seed.
        measures: paired differences of whatever both have.
        by_length: of SR 1 m, per bin of the shortest way.
    """

    title: str
    form: str
    budget: str
    records: Mapping[int, Record]
    baselines: Mapping[int, Record]
    measures: Mapping[str, Paired]
    by_length: Sequence[Mapping[str, Any]]

    @property
    def arm(self):
        return next(iter(self.records.values())).run.arm

    @property
    def verdict(self) -> str:
        found = self.measures.get("success_1m")
        return "" if found is None or self.arm.is_baseline else verdict(found)

    def mean_of(self, what: str) -> float | None:
        """Mean over seeds of a late figure of the log, None where no seed has it."""
        found = [value for record in self.records.values() if (value := record.late(what)) is not None]
        return mean(found) if found else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "arm": self.arm.name,
            "baseline": self.arm.baseline,
            "format": self.form,
            "budget": self.budget,
            "seeds": sorted(self.records),
            "verdict_sr_1m": self.verdict,
            "measures": {name: found.to_dict() for name, found in self.measures.items()},
            "success_1m_by_shortest_path": list(self.by_length),
            "late": {key: self.mean_of(key) for key in late_keys() if self.mean_of(key) is not None},
        }


def late_keys() -> tuple[str, ...]:
    others = ("autoregressive_centred_cosine", "autoregressive_geometry_skill")
    return (*CURVES, *(f"autoregressive_skill_{motion}" for motion in MOTIONS), *others)


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that tables and page show."""

    setting: Setting
    records: Sequence[Record]
    comparisons: Sequence[Comparison]
    missing: Sequence[str]
    failed: Mapping[str, str]
    remarks: Sequence[str]
    facts: Mapping[str, str]

    def of(self, form: str, budget: str) -> list[Comparison]:
        """Rows of one table; that of equal computing time begins with the baselines whose time was the budget."""
        rows = [row for row in self.comparisons if (row.form, row.budget) == (form, budget)]
        if budget == "steps" or not rows:
            return rows
        wanted = {row.arm.baseline for row in rows}
        return [row for row in self.of(form, "steps") if row.arm.name in wanted] + rows

    def to_dict(self) -> dict[str, Any]:
        return {
            "experiment": "next-frame loss",
            "date": date.today().isoformat(),
            "machine": dict(self.facts),
            "versions": versions(),
            "setting": asdict(self.setting),
            "arms": {row.arm.name: asdict(row.arm) for row in self.comparisons},
            "comparisons": [row.to_dict() for row in self.comparisons],
            "runs": [_run_facts(record) for record in self.records],
            "missing": list(self.missing),
            "failed": dict(self.failed),
            "remarks": list(self.remarks),
        }


def _run_facts(record: Record) -> dict[str, Any]:
    run, probes = record.run, record.heldout.get("probes", {})
    layers = [{key: layer[key] for key in ("accuracy", "r2", "mean_error_m")} for layer in probes.get("layers", ())]
    return {
        "name": run.name, "arm": run.arm.name, "format": run.format, "seed": run.seed, "budget": run.budget,
        "steps": record.training.get("step"), "tokens": record.training.get("tokens"),
        "cost": asdict(record.cost) if record.cost else None,
        "means": {m: mean(v.values()) for m in MEASURES if (v := record.values(m))},
        "probes": {"layers": layers, "floors": probes.get("floors", {})},
        "curves": {key: curve for key in CURVES if (curve := record.curve(key))},
    }  # fmt: skip


def collect(setting: Setting, run_dir: Path, *, failed: Mapping[str, str]) -> Results:
    """Reads what is there, compares it and writes `results.json`.

    Raises:
        ValueError: no run has an end yet.
    """
    layout = Layout(run_dir=run_dir)
    records = [read_record(layout, run) for run in setting.runs()]
    found = [record for record in records if record.training]
    if not found:
        raise ValueError(f"{run_dir} holds no finished training of this setting; run it without --report-only")
    comparisons = compare_runs(found)
    results = Results(
        setting=setting,
        records=found,
        comparisons=comparisons,
        missing=[record.run.name for record in records if not record.is_whole],
        failed=failed,
        remarks=remarks_on(found),
        facts=machine(),
    )
    write_json(run_dir / "results.json", results.to_dict())
    return results


def read_record(layout: Layout, run: Run) -> Record:
    """A run from its folders; parts that are not there stay empty."""
    folder = layout.model(run)
    walks = read_results(layout.walk_results(run)) or {}
    return Record(
        run=run,
        training=read_json(folder / "training_complete.json"),
        cost=read_cost(folder) if (folder / COST_FILE).is_file() else None,
        log=all_records(folder / PROGRESS_FILE),
        walks=walks.get("episodes", {}) if walks.get("complete") else {},
        heldout=read_json(layout.measured(run)),
    )


def compare_runs(records: Sequence[Record]) -> list[Comparison]:
    """Every (format, budget, arm) in the order of the runs, baselines included: their differences are 0."""
    groups: dict[tuple[str, str, str], dict[int, Record]] = {}
    for record in records:
        run = record.run
        groups.setdefault((run.format, run.budget, run.arm.name), {})[run.seed] = record
    rows = []
    for (form, budget, _), by_seed in groups.items():
        first = next(iter(by_seed.values())).run
        baselines = groups.get((form, "steps", first.arm.baseline), {})
        rows.append(_compared(title_of(first), form, budget, by_seed, baselines))
    return rows


def _compared(
    title: str, form: str, budget: str, arm: Mapping[int, Record], baselines: Mapping[int, Record]
) -> Comparison:
    measures = {}
    for name in MEASURES:
        ours, theirs = (_seeds_with(table, name) for table in (arm, baselines))
        found = compare(ours, theirs)
        if found is not None:
            measures[name] = found
    near, base = _seeds_with(arm, "success_1m"), _seeds_with(baselines, "success_1m")
    walks = next((record.walks for record in arm.values() if record.walks), {})
    shortest = {name: float(row["shortest_path"]) for name, row in walks.items()}
    return Comparison(
        title=title,
        form=form,
        budget=budget,
        records=arm,
        baselines=baselines,
        measures=measures,
        by_length=compare_by_length(near, base, shortest) if "success_1m" in measures else [],
    )


def _seeds_with(records: Mapping[int, Record], measure: str) -> dict[int, PerEpisode]:
    return {seed: values for seed, record in records.items() if (values := record.values(measure))}


def remarks_on(records: Sequence[Record]) -> list[str]:
    """What a reader must know: arms of one format and seed that did not read the same, and what time was bought."""
    remarks = []
    groups: dict[tuple[str, int, float], dict[str, int]] = {}
    for record in records:
        run = record.run
        if run.budget == "steps":
            groups.setdefault((run.format, run.seed, run.arm.share), {})[run.arm.name] = record.training["tokens"]
    for (form, seed, _), tokens in groups.items():
        if len(set(tokens.values())) > 1:
            listed = ", ".join(f"{name} {count:,}" for name, count in tokens.items())
            remarks.append(f"{form}, seed {seed}: the arms did not read the same number of tokens ({listed})")
    return remarks
