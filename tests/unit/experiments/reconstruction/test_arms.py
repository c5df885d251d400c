"""The table of arms: every configuration is valid, and each control differs from its partner in one thing."""

from __future__ import annotations

import pytest

from llava.model.autoregressive_reconstruction.config import ReconstructionConfig
from playground.experiments.reconstruction.arms import ARMS, Arm, Run


def config(name: str) -> dict:
    return ReconstructionConfig.read({"embedding_dim": None, **(ARMS[name].keys or {})}).to_dict()


def changes(name: str, partner: str = "actions") -> dict:
    ours, theirs = config(name), config(partner)
    return {key: value for key, value in ours.items() if value != theirs[key]}


@pytest.mark.parametrize("name", [name for name in ARMS if ARMS[name].keys is not None])
def test_the_next_frame_loss_takes_every_row(name):
    assert ReconstructionConfig.read({"embedding_dim": None, **ARMS[name].keys}).to_dict()


@pytest.mark.parametrize(
    ("name", "partner", "change"),
    [
        ("weight_zero", "actions", {"loss_weight": 0.0}),
        ("weight_tiny", "actions", {"loss_weight": 1e-3}),
        ("other_clip", "share_5", {"control": "other_clip"}),
        ("detached", "share_5", {"control": "detached_states"}),
        ("frozen_head", "share_5", {"control": "frozen_predictor", "head": "direct"}),
        ("depth", "share_5", {"geometry_dim": 1}),
        ("leaking", "share_5", {"use_frame_causal_mask": False}),
        ("share_20", "share_5", {"gradient_share": 0.20}),
        ("share_5_of_10", "share_5", {}),
        ("current_frame", "from_states", {"control": "current_frame"}),
        ("share_5", "actions", {"gradient_share": 0.05, "gradient_every": 25}),
    ],
)
def test_a_control_costs_the_same_and_differs_in_one_thing(name, partner, change):
    assert changes(name, partner) == change


def test_the_ablation_adds_one_thing_at_a_time():
    assert changes("frame_mask", "frame_mask") == {} and config("frame_mask")["head"] == "direct"
    assert set(changes("fast_slow", "frame_mask")) == {
        "use_fast_slow_frames", "num_fast", "num_slow", "slow_stride"
    }  # fmt: skip
    assert set(changes("full", "fast_slow")) == {
        "head", "target_norm", "target_pool", "predictor_dim", "use_time_gap"
    }  # fmt: skip
    assert config("actions")["site"] == config("actions")["condition_on_action"] == "answer"


def test_all_wanted_weights_and_shares_are_there():
    shares = {arm.keys["gradient_share"] for arm in ARMS.values() if arm.group == "weight"}
    assert shares == {0.0, 0.01, 0.05, 0.2}
    assert {(arm.share, arm.is_baseline) for arm in ARMS.values() if arm.group == "data"} == {
        (0.1, True), (0.1, False), (0.3, True), (0.3, False)
    }  # fmt: skip


def test_an_arm_is_compared_with_the_baseline_of_its_share():
    for arm in ARMS.values():
        assert ARMS[arm.baseline].is_baseline and ARMS[arm.baseline].share == arm.share


def test_a_wrong_row_is_refused_when_it_is_made():
    with pytest.raises(ValueError, match="no option 'loss_wait'"):
        Arm(name="x", title="x", group="control", tells="x", keys={"loss_wait": 1})
    with pytest.raises(ValueError, match="share 0"):
        Arm(name="x", title="x", group="data", tells="x", share=0)


def test_runs_have_names_of_their_own():
    arm = ARMS["actions"]
    assert Run(arm=arm, format="streaming", seed=2).name == "streaming-actions-s2"
    assert Run(arm=arm, format="streaming", seed=2, budget="cost").name == "streaming-actions-cost-s2"
    with pytest.raises(ValueError, match="'steps' or 'cost'"):
        Run(arm=arm, format="streaming", seed=0, budget="time")
