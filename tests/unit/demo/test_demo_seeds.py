"""Runs of several seeds become one table whose intervals cover all their episodes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llava.navigation.metrics import wilson_interval
from playground.benchmarks.demo_seeds import collect, summarise, table_of
from playground.demo.profiles import PROFILES
from playground.demo.report.data import RunData
from playground.demo.report.load import save_profile

sys.path.insert(0, str(Path(__file__).parent))
from fake_run import fake_run, summary


def with_success(rate: float) -> RunData:
    run = fake_run()
    first, *others = run.evaluations
    changed = replace(first, content={**first.content, "summary": summary(rate, rate, rate)})
    return replace(run, evaluations=[changed, *others])


def test_rates_of_seeds_are_averaged_and_the_interval_counts_every_episode():
    facts = summarise("demo", [0, 1], [with_success(0.5), with_success(0.7)])
    row = facts["levels"]["one room"]["formats"]["streaming"]["success_1m"]
    assert row["per_seed"] == [0.5, 0.7]
    assert row["mean"] == pytest.approx(0.6)
    assert row["interval_95"] == pytest.approx(wilson_interval(240, 400), abs=1e-4)
    assert facts["levels"]["one room"]["floors"]["oracle"]["success_1m"] == 1
    assert table_of("one room", facts["levels"]["one room"], facts["seeds"]).row_count == 12


def test_runs_that_cannot_stand_in_one_table_are_refused(tmp_path: Path):
    for name, profile in {"a": PROFILES["demo"], "b": PROFILES["demo"], "c": PROFILES["full"]}.items():
        save_profile(profile, tmp_path / name)
    with pytest.raises(ValueError, match=r"seeds are \[0, 0\], expected each once"):
        collect([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(ValueError, match="different profiles"):
        collect([tmp_path / "a", tmp_path / "c"])
