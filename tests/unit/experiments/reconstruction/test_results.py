"""From a run folder to tables and a page; the folder is made up, everything else is real."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from playground.experiments.reconstruction.collect import collect
from playground.experiments.reconstruction.plan import Layout
from playground.experiments.reconstruction.run import EXPERIMENT
from playground.experiments.reconstruction.settings import SETTINGS, narrowed

sys.path.insert(0, str(Path(__file__).parent))
from fake_results import write_run_folder

ARMS = ("baseline", "actions", "share_5", "leaking", "share_5_of_10")
SETTING = narrowed(
    replace(SETTINGS["small"], episodes=40, heldout=10), arms=ARMS, formats=("streaming",), equal_cost=("actions",)
)
GAINS = {"actions": 0.1, "leaking": -0.2, "share_5_of_10": 0.2}


@pytest.fixture
def run_dir(tmp_path):
    return write_run_folder(SETTING, tmp_path / "run", GAINS)


def by_name(results):
    return {(row.arm.name, row.budget): row for row in results.comparisons}


def test_every_arm_is_compared_with_its_own_baseline_over_all_seeds(run_dir):
    rows = by_name(collect(SETTING, run_dir, failed={}))
    assert set(rows) == {*((name, "steps") for name in (*ARMS, "baseline_10")), ("actions", "cost")}
    assert rows["baseline", "steps"].measures["success_1m"].difference == 0
    assert rows["actions", "steps"].measures["success_1m"].difference > 0.02
    assert rows["leaking", "steps"].verdict == "worse"
    assert rows["share_5_of_10", "steps"].arm.baseline == "baseline_10"
    assert len(rows["actions", "steps"].measures["success_1m"].per_seed) == 3
    assert set(rows["actions", "steps"].measures) >= {"spl", "cross_entropy", "next_action", "distance_error_m"}


def test_figures_of_the_loss_are_those_of_the_end_of_training(run_dir):
    row = by_name(collect(SETTING, run_dir, failed={}))["actions", "steps"]
    assert row.mean_of("autoregressive_skill") == pytest.approx(0.22, abs=0.02)
    assert row.mean_of("autoregressive_skill_both") is None  # no such motion was logged


def test_a_skill_that_is_not_finite_is_left_out(run_dir):
    run = next(run for run in SETTING.runs() if run.name == "streaming-actions-s0")
    log = Layout(run_dir=run_dir).model(run) / "progress.jsonl"
    log.write_text('{"step": 10, "autoregressive_skill": -Infinity}\n{"step": 20, "autoregressive_skill": 0.5}\n')
    record = next(r for r in collect(SETTING, run_dir, failed={}).records if r.run == run)
    assert record.late("autoregressive_skill") == 0.5 and record.curve("autoregressive_skill") == [(20, 0.5)]
    assert "Infinity" not in (run_dir / "results.json").read_text()


def test_the_result_file_names_machine_versions_settings_and_every_run(run_dir):
    collect(SETTING, run_dir, failed={})
    content = json.loads((run_dir / "results.json").read_text())
    assert content["versions"]["torch"] and content["machine"]["python"] and content["date"]
    assert content["setting"]["steps"]["streaming"] == 600
    assert len(content["runs"]) == len(SETTING.runs()) and content["missing"] == []
    assert content["runs"][0]["cost"]["cpu_per_step"] == pytest.approx(0.15)
    assert content["runs"][0]["curves"]["main_loss"]


def test_an_arm_that_failed_is_reported_and_the_others_are_compared(run_dir):
    layout, gone = Layout(run_dir=run_dir), next(run for run in SETTING.runs() if run.name == "streaming-leaking-s1")
    shutil.rmtree(layout.model(gone))
    results = collect(SETTING, run_dir, failed={gone.name: "ended with exit code 1\nTraceback"})
    rows = by_name(results)
    assert results.missing == ["streaming-leaking-s1"]
    assert len(rows["leaking", "steps"].measures["success_1m"].per_seed) == 2
    assert len(rows["actions", "steps"].measures["success_1m"].per_seed) == 3


def test_arms_that_read_different_amounts_of_data_are_pointed_out(run_dir):
    run = next(run for run in SETTING.runs() if run.name == "streaming-actions-s2")
    file = Layout(run_dir=run_dir).model(run) / "training_complete.json"
    file.write_text(json.dumps({"step": 400, "tokens": 5}))
    remarks = collect(SETTING, run_dir, failed={}).remarks
    assert len(remarks) == 1 and "seed 2" in remarks[0] and "actions 5" in remarks[0]


def test_a_folder_without_results_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="no finished training"):
        collect(SETTING, tmp_path, failed={})


def test_the_page_stands_alone_and_shows_every_picture(run_dir):
    pytest.importorskip("matplotlib")
    sink = io.StringIO()
    EXPERIMENT.report(SETTING, run_dir, console=Console(file=sink, width=160), failed={"streaming-x-s0": "exit code 1"})
    page = (run_dir / "report.html").read_text()
    drawn = {path.stem for path in (run_dir / "figures").glob("*.png")}
    assert drawn == {
        "differences", "by_length", "by_share", "main_loss", "skill", "by_motion", "ratio",
        "gradient_language_model", "gradient_vision_tower", "probes",
    }  # fmt: skip
    assert page.count("data:image/png;base64,") == len(drawn)
    assert "http://" not in page and "https://" not in page and "<script" not in page
    assert "failed: streaming-x-s0" in page and "leaking" in page
    said = sink.getvalue()
    assert "equal computing time" in said and "+ actions, equal time" in said
