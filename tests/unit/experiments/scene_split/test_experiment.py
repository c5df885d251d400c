"""Plan, results and page of the experiment; the run folder is made up, everything else is real."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from playground.experiments.scene_split.collect import collect, refused_share
from playground.experiments.scene_split.plan import make_plan
from playground.experiments.scene_split.run import EXPERIMENT
from playground.experiments.scene_split.settings import SETTINGS, TASKS, narrowed
from playground.experiments.scene_split.tables import tables
from playground.experiments.scene_split.ways import WAYS

sys.path.insert(0, str(Path(__file__).parent))
from fake_evaluations import write_evaluations

ROOT = Path(__file__).resolve().parents[4]
SETTING = replace(
    SETTINGS["small"], test_scenes=12, episodes={"robot": 40, "walk": 40}, noises=(2.0, 16.0),
    disturbances=("none", "jpeg_85"),
)  # fmt: skip
GAINS = {"untrained": -0.3, "dropped": -0.2, "split": -0.001, "exact": -0.001}


@pytest.fixture
def run_dir(tmp_path):
    return write_evaluations(SETTING, tmp_path / "run", GAINS)


@pytest.fixture
def results(run_dir):
    return collect(SETTING, run_dir, failed={})


def row_of(results, kind, name):
    return next(row for row in results.of(kind) if row.way.name == name)


# ---- plan ----


def by_name(setting, tmp_path):
    return {phase.name: phase for phase in make_plan(setting, tmp_path, cores=2)}


def test_the_arms_differ_in_the_split_alone(tmp_path):
    phases = by_name(SETTINGS["small"], tmp_path)
    for task in ("vqa", "robot", "walk"):
        full, split = (str(phases[f"{task}-{name}-s1"].commands[0]) for name in ("full", "split"))
        assert split.replace(f"{task}-split-s1", f"{task}-full-s1") == full + " --scene_split True"
        assert phases[f"{task}-full-s1"].needs == phases[f"{task}-split-s1"].needs == (f"{task}-start-s1",)


def test_only_the_start_shapes_a_new_model(tmp_path):
    phases = by_name(SETTINGS["large"], tmp_path)
    assert "--embedded_size gpu" in str(phases["vqa-start-s0"].commands[0])
    for name in ("vqa-full-s0", "walk-split-s0"):
        said = str(phases[name].commands[0])
        assert "--embedded_size" not in said and "--bf16 True" in said and "MODEL=" in said


def test_every_task_starts_from_an_encoder_that_sees(tmp_path):
    phases = by_name(SETTINGS["large"], tmp_path)
    for task in TASKS:
        start, sight = phases[f"{task}-start-s1"], phases[f"{task}-sight-s1"]
        assert start.needs == (f"data-{task}", sight.name) and "--embedded-size gpu" in str(sight.commands[0])
        assert f"--vision_tower {sight.outputs[0]}/vision_tower" in str(start.commands[0])
        for name in ("start", "full", "split"):
            assert "--vision_tower_lr 1e-4" in str(phases[f"{task}-{name}-s1"].commands[0])


def test_every_evaluation_gets_the_models_that_its_ways_need(tmp_path):
    phases = by_name(SETTINGS["small"], tmp_path)
    curve = str(phases["eval-curve-s0"].commands[0])
    assert "--split" in curve and "--full" not in curve and "--one-question" in curve
    assert set(phases["eval-walk-s0"].needs) == {"walk-full-s0", "walk-split-s0"}


def test_seeds_and_tasks_are_chosen_on_the_command_line(tmp_path):
    options = EXPERIMENT.parser().parse_args(["--seeds", "7", "--tasks", "robot"])
    names = [phase.name for phase in make_plan(EXPERIMENT.choose(options), tmp_path, cores=2)]
    trained = ["robot-sight-s7", "robot-start-s7", "robot-full-s7", "robot-split-s7"]
    assert names == ["data-robot", *trained, "eval-robot-s7"]


def test_mistakes_in_the_call_are_one_line(capsys, tmp_path):
    assert EXPERIMENT.main(["--setting", "smal"]) == 2
    assert "did you mean 'small'" in capsys.readouterr().err
    assert EXPERIMENT.main(["--report-only", "--run-dir", str(tmp_path)]) == 2
    assert "holds no evaluation" in capsys.readouterr().err


def test_the_plan_can_be_printed_and_copied(capsys, tmp_path):
    assert EXPERIMENT.main(["--plan", "--run-dir", str(tmp_path), "--cores", "2"]) == 0
    said = capsys.readouterr().out
    assert "bash scripts/train/sft_8frames.sh" in said and "27 trainings" in said and "--object-masks" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tasks": ("talk",)}, "is unknown"),
        ({"noise": 3.0}, "expected one of noises"),
        ({"seeds": (0, 0)}, "each once"),
        ({"ways": {"vqa": ("split",), "robot": ("full",), "walk": ("full",)}}, "compared with 'full'"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(SETTING, **change)


# ---- results ----


def test_every_way_is_compared_with_full_over_all_seeds(results):
    assert row_of(results, "vqa", "full").measures["right"].difference == 0
    untrained = row_of(results, "vqa", "untrained").measures["right"]
    assert untrained.high < -0.1 and len(untrained.per_seed) == 3 and untrained.num_episodes == 12
    assert row_of(results, "robot", "exact").measures["success"].num_episodes == 40
    assert set(row_of(results, "walk", "split").measures) == {"success_1m", "success", "spl", "distance_to_goal"}


def test_questions_before_one_camera_are_redrawn_together(results):
    assert row_of(results, "vqa", "split").measures["right"].num_episodes == SETTING.test_scenes


def test_goals_hold_where_nothing_is_lost_and_are_missed_where_much_is(run_dir, results):
    states = {goal.words.partition(":")[0]: goal.state for goal in results.goals}
    assert states["vqa"] in ("holds", "open") and len(results.goals) == 4
    worse = write_evaluations(SETTING, run_dir, {"exact": -0.2})
    states = [goal.state for goal in collect(SETTING, worse, failed={}).goals]
    assert states[:3] == ["missed"] * 3


def test_a_model_that_learned_nothing_reaches_no_goal(run_dir):
    blind = write_evaluations(SETTING, run_dir, dict.fromkeys(WAYS, -0.55))
    assert {goal.state for goal in collect(SETTING, blind, failed={}).goals[:3]} == {"nothing learned"}


def test_an_exact_cache_that_changes_the_result_is_said(run_dir, results):
    assert not results.remarks
    changed = collect(SETTING, write_evaluations(SETTING, run_dir, {"exact": -0.2}), failed={})
    assert any("the exact cache changed" in remark for remark in changed.remarks)


def test_the_curve_compares_with_the_same_pictures_without_a_cache(results):
    points = {(point.disturbance, point.noise): point for point in results.curve}
    assert set(points) == {(name, noise) for name in ("none", "jpeg_85") for noise in (2.0, 16.0)}
    assert points["jpeg_85", 16.0].found.difference < -0.1 and points["jpeg_85", 16.0].verdict == "worse"
    assert points["none", 2.0].refused == pytest.approx(0.3) and points["none", 2.0].reused == pytest.approx(2 / 6)


def test_misses_are_no_refusals():
    assert refused_share({"miss": 6, "guarded": 2, "rejected:stale": 1, "bypass:camera_motion": 1}) == 0.2
    assert refused_share({}) == 0


def test_the_result_file_names_machine_versions_settings_and_the_floor(run_dir, results):
    content = json.loads((run_dir / "results.json").read_text())
    assert content["versions"]["torch"] and content["machine"]["python"] and content["date"]
    assert content["setting"]["steps"]["vqa"] == SETTING.steps["vqa"] and content["blind_floor"]["all"] == 0.25
    assert len(content["rows"]) == 7 + 2 + 5 + 4 and content["missing"] == []


def test_what_is_not_there_yet_is_said_and_the_rest_is_compared(run_dir):
    (run_dir / "eval" / "walk-s2.json").unlink()
    found = collect(SETTING, run_dir, failed={"walk-split-s2": "ended with exit code 1"})
    assert found.missing == ["walk-s2"] and row_of(found, "walk", "split").seeds == (0, 1)


def test_tables_pictures_and_page_show_all_of_it(run_dir):
    sink = io.StringIO()
    EXPERIMENT.report(SETTING, run_dir, console=Console(file=sink, width=160), failed={"data-walk": "no room\nmore"})
    said, page = sink.getvalue(), (run_dir / "report.html").read_text()
    for words in ("Goals that were set before", "split + exact cache", "JPEG, quality 85", "without eyes", "no room"):
        assert words in said and words in page, words
    drawn = sorted(path.stem for path in (run_dir / "figures").glob("*.png"))
    assert drawn == ["by_kind", "cost", "curve", "differences"] and page.count("data:image/png;base64,") == 4
    assert all(path.stat().st_size > 10_000 for path in (run_dir / "figures").glob("*.png"))


def test_one_task_alone_has_tables_and_a_page(tmp_path):
    alone = narrowed(SETTING, tasks=("robot",), seeds=(0,))
    run_dir = write_evaluations(alone, tmp_path / "run", {})
    assert len(list(tables(collect(alone, run_dir, failed={})))) == 3
    EXPERIMENT.report(alone, run_dir, console=Console(file=io.StringIO(), width=160))
    assert (run_dir / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quick_experiment_runs_from_nothing_to_its_page_and_is_reused(tmp_path):
    call = [sys.executable, "-m", "playground.experiments.scene_split.run", "--setting", "quick"]
    call += ["--run-dir", str(tmp_path / "run"), "--cores", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.run(call, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    assert "Goals that were set before" in first.stdout and (tmp_path / "run" / "report.html").is_file()
    again = subprocess.run(call, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and again.stdout.count("reused") >= 17
