"""Settings become phases: same start and same data for all arms, and only the loss differs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from playground.demo.phases import settings_hashes
from playground.demo.runner import makespan
from playground.experiments.reconstruction.arms import ARMS
from playground.experiments.reconstruction.plan import make_plan
from playground.experiments.reconstruction.settings import SETTINGS, narrowed
from playground.experiments.reconstruction.tables import BUDGETS

SMALL = SETTINGS["small"]


def phases_of(setting, tmp_path):
    return {phase.name: phase for phase in make_plan(setting, tmp_path, cores=2)}


def flags_of(phase) -> list[str]:
    """The training command without where it writes and what it pays for."""
    argv = list(phase.commands[-1].argv)
    return argv[argv.index("bash") :]


def without_loss(flags: list[str]) -> list[str]:
    if "--enable_autoregressive" not in flags:
        return flags
    at = flags.index("--enable_autoregressive")
    return flags[:at] + flags[at + 4 :]


@pytest.mark.parametrize("name", list(SETTINGS))
def test_every_setting_makes_a_plan_with_its_own_outputs(name, tmp_path):
    phases = make_plan(SETTINGS[name], tmp_path, cores=2)
    settings_hashes(phases)  # raises where a phase stands before what it needs
    outputs = [path for phase in phases for path in phase.outputs]
    assert len(set(outputs)) == len(outputs)
    runs = SETTINGS[name].runs()
    data = 1 + any(run.arm.needs_depth for run in runs)
    assert len(phases) == data + len(SETTINGS[name].seeds) + 3 * len(runs)


def test_the_small_setting_fits_forty_minutes_on_two_cores_by_its_own_plan(tmp_path):
    phases = make_plan(SMALL, tmp_path, cores=2)
    assert makespan(phases, {phase.name: phase.seconds for phase in phases}, 2) <= 40 * 60
    assert len(SMALL.seeds) >= 3 and set(SMALL.arms) == {"streaming", "8frames"}


def test_the_large_setting_has_every_arm_in_both_formats():
    assert all(set(names) == set(ARMS) for names in SETTINGS["large"].arms.values())
    assert len(SETTINGS["large"].seeds) >= 5 and set(SETTINGS["large"].arms) == {"streaming", "8frames"}


@pytest.mark.parametrize("form", ["streaming", "8frames"])
def test_all_arms_of_a_seed_differ_in_the_loss_alone(form, tmp_path):
    phases = phases_of(narrowed(SETTINGS["large"], seeds=(1,)), tmp_path)
    baseline = phases[f"{form}-baseline-s1"]
    for name, arm in ARMS.items():
        phase = phases[f"{form}-{name}-s1"]
        flags, data = without_loss(flags_of(phase)), str(tmp_path / "data")
        at = flags.index("--data_root") + 1
        assert flags[at] == (f"{data}_depth" if arm.needs_depth else data)
        assert [*flags[:at], data, *flags[at + 1 :]] == flags_of(baseline)
        env = dict(phase.commands[0].env)
        assert env["MODEL"] == baseline.commands[0].env["MODEL"] and "align-s1" in env["MODEL"]
        mixture = baseline.commands[0].env["DATA_MIXTURE"]
        assert env["DATA_MIXTURE"] == (mixture if arm.share == 1 else f"{mixture}*{arm.share:g}")
        assert phase.needs == (("align-s1", "depth_data") if arm.needs_depth else ("align-s1",))


def test_the_data_with_depth_is_the_same_world(tmp_path):
    phases = phases_of(narrowed(SETTINGS["large"], seeds=(1,)), tmp_path)
    plain, deep = (list(phases[name].commands[0].argv) for name in ("data", "depth_data"))
    assert [word.replace("data_depth", "data") for word in deep if word != "--depth"] == plain
    assert "depth_data" not in phases_of(SMALL, tmp_path)


def test_steps_decide_and_not_the_clock(tmp_path):
    flags = flags_of(phases_of(SMALL, tmp_path)["streaming-actions-s0"])
    assert flags[flags.index("--max_train_seconds") + 1] == "-1"
    assert flags[flags.index("--max_steps") + 1] == str(SMALL.steps["streaming"])


def test_equal_cost_waits_for_both_measurements_and_has_no_steps_of_its_own(tmp_path):
    phase = phases_of(SMALL, tmp_path)["streaming-share_5-cost-s1"]
    assert phase.needs == ("align-s1", "streaming-baseline-s1", "streaming-share_5-s1")
    argv = phase.commands[0].argv
    assert argv[argv.index("--as-long-as") + 1].endswith("streaming-baseline-s1")
    assert argv[argv.index("--one-step-like") + 1].endswith("streaming-share_5-s1")
    assert "--max_steps" not in argv


def test_another_arm_leaves_finished_arms_reusable(tmp_path):
    before = settings_hashes(make_plan(SMALL, tmp_path, cores=2))
    arms = (*SMALL.arms["streaming"], "leaking")
    more = replace(SMALL, arms={**SMALL.arms, "streaming": arms}, seeds=(0, 1, 2, 3))
    after = settings_hashes(make_plan(more, tmp_path, cores=2))
    assert before.items() <= after.items() and "streaming-leaking-s3" in after


def test_the_runs_of_an_arm_bring_their_baseline():
    chosen = narrowed(SMALL, arms=("share_5_of_10",), formats=("8frames",), seeds=(4,))
    assert [run.name for run in chosen.runs()] == ["8frames-baseline_10-s4", "8frames-share_5_of_10-s4"]


def test_arms_can_be_chosen_for_equal_cost():
    chosen = narrowed(SMALL, arms=("baseline",), formats=("streaming",), seeds=(0,), equal_cost=("full",))
    names = [run.name for run in chosen.runs()]
    assert names == ["streaming-baseline-s0", "streaming-full-s0", "streaming-full-cost-s0"]
    assert {run.budget for run in chosen.runs()} == set(BUDGETS)


def test_mistakes_in_a_setting_are_refused():
    with pytest.raises(KeyError, match="did you mean 'actions'"):
        narrowed(SMALL, arms=("action",))
    with pytest.raises(ValueError, match="each once"):
        replace(SMALL, seeds=(0, 0))
    with pytest.raises(ValueError, match="format '9frames'"):
        narrowed(SMALL, formats=("9frames",))
    with pytest.raises(ValueError, match="heldout is 300"):
        replace(SMALL, heldout=300)
