"""Several finished demos of one profile as one table and one result file: what the rates are over seeds.

make demo DEMO_FLAGS="--seed 0 --run-dir runs/seed0"        # and so on for other seeds
python -m playground.benchmarks.demo_seeds runs/seed0 runs/seed1 runs/seed2 --out demo.json

The houses of the evaluation are the same for every seed; training houses, weights and order are not. So the interval
over all episodes says how well these houses are measured, and the rates of the seeds how much a training varies.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from llava.navigation.metrics import wilson_interval
from playground.demo.report.data import MEASURES, RunData
from playground.demo.report.load import load_profile, load_run

RATES = tuple(key for key, _, _ in MEASURES if key != "spl")
"""Shares of episodes; SPL is a mean and has no count."""


def measured(runs: Sequence[RunData], level: str, name: str) -> dict[str, Any]:
    """Of one format: each measure per seed, its mean, and for shares the interval over all episodes of all seeds."""
    found = [e.summary for run in runs for e in run.on_level(level) if e.name == name]
    rows: dict[str, Any] = {}
    for key, _, _ in MEASURES:
        values = [float(summary[f"mean_{key}"]) for summary in found]
        rows[key] = {"mean": round(mean(values), 4), "per_seed": [round(value, 4) for value in values]}
        if key in RATES:
            total = sum(int(summary["total_episodes"]) for summary in found)
            low, high = wilson_interval(round(mean(values) * total), total)
            rows[key]["interval_95"] = [round(low, 4), round(high, 4)]
    rows["ms_per_decision"] = round(mean(summary["cost"]["ms_per_decision"] for summary in found), 2)
    return rows


def collect(folders: Sequence[Path]) -> dict[str, Any]:
    """The result file's content.

    Raises:
        ValueError: the folders hold runs of different profiles, or one seed twice.
    """
    profiles = [load_profile(folder) for folder in folders]
    names, seeds = sorted({profile.name for profile in profiles}), [profile.seed for profile in profiles]
    if len(names) > 1 or len({str(profile.levels) for profile in profiles}) > 1:
        raise ValueError(f"the folders hold runs of different profiles or budgets ({', '.join(names)}); compare equals")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the seeds are {seeds}, expected each once; run the demo with another --seed")
    return summarise(names[0], seeds, [load_run(folder) for folder in folders])


def summarise(profile: str, seeds: Sequence[int], runs: Sequence[RunData]) -> dict[str, Any]:
    """Machine, times and rates of finished runs of one profile."""
    first = runs[0]
    return {
        "benchmark": f"demo, profile {profile}",
        "date": date.today().isoformat(),
        "machine": dict(first.machine),
        "seeds": list(seeds),
        "settings": [dict(run.settings) for run in runs],
        "wall_seconds": [run.timing["wall_seconds"] for run in runs],
        "phase_seconds": [{phase["name"]: phase["seconds"] for phase in run.timing["phases"]} for run in runs],
        "levels": {level: _level(level, runs) for level in first.levels},
    }


def _level(level: str, runs: Sequence[RunData]) -> dict[str, Any]:
    evaluations = runs[0].on_level(level)
    return {
        "episodes_per_seed": int(evaluations[0].summary["total_episodes"]),
        "formats": {evaluation.name: measured(runs, level, evaluation.name) for evaluation in evaluations},
        "floors": {
            name: {key: summary[f"mean_{key}"] for key, _, _ in MEASURES}
            for name, summary in evaluations[0].floors.items()
        },
    }


def table_of(level: str, facts: dict[str, Any], seeds: Sequence[int]) -> Table:
    """Formats as rows; mean over seeds, interval, and each seed's own rate."""
    title = f"{level}, {len(seeds)} seeds x {facts['episodes_per_seed']} unseen houses, %"
    table = Table(title=title, box=None, title_justify="left", pad_edge=False)
    for head in ("", "measure", "mean", "95 %", "per seed"):
        table.add_column(head, no_wrap=True)
    for name, rows in facts["formats"].items():
        for key, head, _ in MEASURES:
            row = rows[key]
            low, high = row.get("interval_95", (None, None))
            spread = f"{100 * low:.0f} .. {100 * high:.0f}" if low is not None else "-"
            each = "  ".join(f"{100 * value:.0f}" for value in row["per_seed"])
            table.add_row(name if key == MEASURES[0][0] else "", head, f"{100 * row['mean']:.0f}", spread, each)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="run folders of finished demos")
    parser.add_argument("--out", type=Path, help="result file to write")
    options = parser.parse_args(arguments)
    facts = collect(options.folders)
    console = Console()
    for level, measures in facts["levels"].items():
        console.print(table_of(level, measures, facts["seeds"]))
    console.print("wall seconds", *facts["wall_seconds"])
    if options.out:
        options.out.write_text(json.dumps(facts, indent=1) + "\n")
        console.print(f"written to {options.out}", soft_wrap=True)


if __name__ == "__main__":
    main()
