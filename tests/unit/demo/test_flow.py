"""The whole demo with stand-ins for its commands: order, resumption, table and page are the real ones."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from pathlib import Path

import pytest
from rich.console import Console

from playground.demo import processes, run_demo, scene_phases
from playground.demo.plan import TASKS, make_plan
from playground.demo.profiles import PROFILES, shortened, with_overrides

sys.path.insert(0, str(Path(__file__).parent))
from fake_run import DETECTOR_REPORT, fake_run, picture

ROOT = Path(__file__).resolve().parents[3]

WORLD = """#!/bin/sh
while [ $# -gt 0 ]; do [ "$1" = --out ] && mkdir -p "$2" && touch "$2/annotations.json"; shift; done
"""
TRAIN = """#!/bin/sh
mkdir -p "$OUTPUT"
for i in 1 2 3; do echo '{"step": '$i', "total": 3, "share": 1.0, "loss": 0.5, "elapsed": '$i', "eta": 0}'; done \
    > "$OUTPUT/progress.jsonl"
echo '{"step": 3, "tokens": 1000, "elapsed": 3}' > "$OUTPUT/training_complete.json"
"""
DETECTOR = """#!/bin/sh
mkdir -p "$OUTPUT" && cp "$FAKE_DETECTOR" "$OUTPUT/yolo.json" && touch "$OUTPUT/best.pt"
"""
PYTHON = f"""#!/bin/sh
[ "$2" = llava.scene.draw ] || exec {sys.executable} "$@"
while [ $# -gt 0 ]; do [ "$1" = --out ] && mkdir -p "$2" && cp "$FAKE_PICTURE" "$2/000000.png"; shift; done
"""
EVAL = """#!/bin/sh
while [ $# -gt 0 ]; do case "$1" in --output-dir) out=$2;; -t) task=$2;; esac; shift; done
mkdir -p "$out/$task" && cp "$FAKE_RESULTS" "$out/$task/results.json"
"""


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Programs of the same names that answer at once."""
    programs = {"bin/vila-world": WORLD, "bin/vila-eval": EVAL, "bin/python": PYTHON}
    programs["scripts/train/yolo_embedded.sh"] = DETECTOR
    programs |= {f"scripts/train/{name}.sh": TRAIN for name in ("align", "sft_episodes", "sft_8frames")}
    for name, text in programs.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    results = tmp_path / "results.json"
    results.write_text(json.dumps(fake_run().evaluations[0].content))
    files = {"FAKE_RESULTS": results, "FAKE_DETECTOR": tmp_path / "yolo.json", "FAKE_PICTURE": tmp_path / "drawn.png"}
    files["FAKE_DETECTOR"].write_text(json.dumps(DETECTOR_REPORT))
    files["FAKE_PICTURE"].write_bytes(picture(0).png)
    real = processes.child_environment

    def environment(*args, **options):
        env = real(*args, **options)
        path = os.pathsep.join([str(tmp_path / "bin"), env["PATH"]])
        return env | {"PATH": path, "PYTHONPATH": str(ROOT), **{name: str(file) for name, file in files.items()}}

    monkeypatch.setattr(processes, "child_environment", environment)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scene_phases, "find_spec", lambda name: name)  # installed or not: its programs are stand-ins
    return tmp_path


def demo(*arguments: str) -> tuple[int, str]:
    sink = io.StringIO()
    options = run_demo.build_parser().parse_args(arguments)
    profile = run_demo.choose_profile(options)
    run_demo.run(profile, Path(profile.run_dir), cores=2, console=Console(file=sink, width=200))
    return 0, sink.getvalue()


def test_the_demo_ends_with_a_table_and_the_path_of_a_page(stand_ins):
    _, said = demo("--quick", "1")
    assert "any object" in said and "74 [68,80]" in said
    assert "report: runs/demo-quick/report.html" in said
    page = (stand_ins / "runs/demo-quick/report.html").read_text()
    assert "3 steps, 1,000 tokens" in page and "vila-eval -m runs/demo-quick/models/streaming" in page


def test_a_second_demo_reuses_everything(stand_ins):
    demo("--quick", "1")
    _, said = demo("--quick", "1")
    assert said.count("reused") == 9 and "$" not in said and "74 [68,80]" in said


def test_the_detector_is_trained_used_and_shown(stand_ins):
    _, said = demo("--quick", "1")
    assert "object detector: mAP50 0.625, object cells found 90.0%, background cells taken 5.0%" in said
    page = (stand_ins / "runs/demo-quick/report.html").read_text()
    assert "Background and objects" in page and "0.625" in page and "Picture 0" in page
    assert "--weights runs/demo-quick/detector/best.pt" in page


def test_without_ultralytics_the_demo_says_why_it_has_no_detector_and_finishes(stand_ins, monkeypatch):
    monkeypatch.setattr(scene_phases, "find_spec", lambda name: None)
    _, said = demo("--quick", "1")
    assert "pip install 'llava[yolo]'" in said and "Object detector" not in said
    assert "74 [68,80]" in said and (stand_ins / "runs/demo-quick/report.html").is_file()
    monkeypatch.setattr(scene_phases, "find_spec", lambda name: name)  # installed since: only what is new runs
    _, said = demo("--quick", "1")
    assert said.count("reused") == 6 and "object detector: mAP50 0.625" in said


def test_another_seed_redoes_data_and_models(stand_ins):
    demo("--quick", "1")
    _, said = demo("--quick", "1", "--seed", "3")
    assert "settings changed: runs/demo-quick/data moved to runs/demo-quick/old" in said
    assert "reused" not in said


@pytest.mark.parametrize("name", list(PROFILES))
def test_every_profile_makes_a_plan_with_its_own_outputs(name, tmp_path):
    phases = make_plan(PROFILES[name], tmp_path, cores=2)
    outputs = [path for phase in phases for path in phase.outputs]
    assert len(set(outputs)) == len(outputs)
    assert all(level.name in TASKS and level.episodes >= 200 for level in PROFILES[name].levels)
    assert phases[-1].name == "report" and set(phases[-1].needs) == {phase.name for phase in phases[:-1]}


def test_the_short_demo_fits_twelve_minutes_by_its_own_plan(tmp_path, monkeypatch):
    from playground.demo.runner import makespan

    monkeypatch.setattr(scene_phases, "find_spec", lambda name: name)
    phases = make_plan(PROFILES["demo"], tmp_path, cores=2)
    assert makespan(phases, {phase.name: phase.seconds for phase in phases}, 2) <= 12 * 60


def test_the_detector_takes_a_core_only_after_the_trainings(monkeypatch, tmp_path):
    monkeypatch.setattr(scene_phases, "find_spec", lambda name: name)
    phases = {phase.name: phase for phase in make_plan(PROFILES["full"], tmp_path, cores=2)}
    names = list(phases)
    assert names.index("8frames") < names.index("detector") < names.index("eval-streaming")
    assert phases["detector"].threads == phases["scene"].threads == 1 and phases["scene"].needs == ("detector",)
    assert [name for name in names if name.startswith(("detector", "scene"))] == [
        "detector",
        "scene",
    ]  # once, not a level
    drawn = [part for part in phases["scene"].commands[0].argv if part.endswith(".png")]
    assert len(drawn) == scene_phases.NUM_SHOWN and all("val" in part for part in drawn)
    quick = {phase.name: phase for phase in make_plan(shortened(PROFILES["full"], 3), tmp_path, cores=2)}
    assert "--minutes 0.05 " in str(quick["detector"].commands[0])


def test_later_levels_go_on_from_the_first_ones_models(tmp_path):
    phases = {phase.name: phase for phase in make_plan(PROFILES["full"], tmp_path, cores=2)}
    assert phases["streaming"].commands[0].env["MODEL"].endswith("models/align")
    assert phases["streaming-multi_room"].commands[0].env["MODEL"].endswith("models/streaming")
    assert "streaming" in phases["streaming-multi_room"].needs


def test_a_quick_check_writes_to_another_folder():
    assert shortened(PROFILES["demo"], 5).run_dir != PROFILES["demo"].run_dir


def test_an_unknown_setting_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'train_seconds'"):
        with_overrides(PROFILES["demo"], {"train_second": 3})


def test_mistakes_in_the_call_are_one_line(capsys):
    assert run_demo.main(["--profile", "ful"]) == 2
    assert "did you mean 'full'" in capsys.readouterr().err


def test_the_plan_can_be_printed_and_copied(capsys):
    assert run_demo.main(["--plan"]) == 0
    assert "OUTPUT=runs/demo/models/streaming" in capsys.readouterr().out
