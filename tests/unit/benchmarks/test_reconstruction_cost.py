"""The cost of the next-frame loss: arithmetic agrees with torch's counter, arms are compared fairly."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from playground.benchmarks import reconstruction_cost as cost
from playground.benchmarks.reconstruction_arms import ARMS, SHAPES, Arm, base_optimizer, build, make_batch
from playground.benchmarks.reconstruction_flops import step_flops

TINY, REAL, SCALED = SHAPES["tiny"], SHAPES["navila-8b"], SHAPES["sixteenth"]


def arms_of(names, *, tuned_tower: bool):
    model = build(TINY, tuned_tower=tuned_tower, device="cpu", dtype=torch.float32)
    optimizer = base_optimizer(model)
    return [Arm(name, model, optimizer, TINY) for name in names], make_batch(TINY, "cpu")


@pytest.mark.parametrize("tuned_tower", [False, True])
def test_arithmetic_equals_the_counter_of_torch(tuned_tower):
    arms, batch = arms_of(ARMS, tuned_tower=tuned_tower)
    for arm in arms:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            arm.losses(batch)[0].backward()
        arm.update()
        # the math kernel, the only one that the counter sees, computes all pairs
        expected = step_flops(TINY, arm.name, tuned_tower=tuned_tower, causal_share=1.0)
        assert counter.get_total_flops() == expected.total


@pytest.mark.parametrize("tuned_tower", [False, True])
def test_the_scaled_shape_keeps_the_shares_of_the_real_one(tuned_tower):
    scaled, real = (step_flops(shape, "default", tuned_tower=tuned_tower).shares() for shape in (SCALED, REAL))
    assert scaled["tower"] == pytest.approx(real["tower"], rel=0.05)
    assert scaled["teacher"] == pytest.approx(real["teacher"], rel=0.05)
    assert scaled["predictor"] == pytest.approx(real["predictor"], rel=0.05)


def test_real_shapes_leave_room_below_the_goals():
    frozen, tuned = (step_flops(REAL, "default", tuned_tower=t).shares()["total"] for t in (False, True))
    assert frozen < cost.GOAL["default, frozen tower"]
    assert tuned < cost.GOAL["default, tuned tower"]


def test_a_quick_run_writes_every_arm_of_every_case(tmp_path, capsys):
    out = tmp_path / "result.json"
    result = cost.main(["--quick", "--no-memory", "--out", str(out)])
    assert json.loads(out.read_text()) == result
    assert {"benchmark", "date", "versions", "device", "arguments", "goal", "shape"} <= set(result)
    assert [case["tower"] for case in result["cases"]] == ["frozen", "tuned"]
    for case in result["cases"]:
        assert list(case["rows"]) == list(ARMS)
        assert case["rows"]["sft"]["time_ratio"] == 1
        assert case["frames"] * case["tokens_per_frame"] == 3 * 9
        for row in case["rows"].values():
            assert row["tower_forwards"] == 1 and row["seconds"] > 0 and len(row["seconds_per_round"]) == 1
            assert row["flops"]["total"] >= 1 and row["flops_navila_8b"]["total"] >= 1
    teachers = [[row["teacher_forwards"] for row in case["rows"].values()] for case in result["cases"]]
    assert teachers == [[0, 0, 0, 1], [0, 1, 1, 1]]  # sft, default, documented, straightforward
    shown = capsys.readouterr().out
    assert all(name in shown for name in ARMS)


def test_a_frozen_tower_that_runs_twice_is_refused():
    arms, batch = arms_of(["sft", "default"], tuned_tower=True)
    with pytest.raises(RuntimeError, match=r"default, frozen tower: forward passes \[1, 1\], expected 1 and 0"):
        cost.check(arms, batch, "frozen")


def test_arms_that_learn_another_language_loss_are_refused():
    arms, batch = arms_of(["sft", "default"], tuned_tower=False)
    other, _ = arms_of(["default"], tuned_tower=False)
    with torch.no_grad():
        other[0].model.llm.get_output_embeddings().weight.mul_(3)
    with pytest.raises(RuntimeError, match="different language losses"):
        cost.check([arms[0], other[0]], batch, "frozen")


def test_the_peak_of_memory_is_what_was_held_at_once():
    with cost.peak_memory("cpu") as peak:
        for _ in range(3):
            torch.ones(2**24)  # 64 MiB, gone before the next
    assert 60 < peak["mib"] < 100


@pytest.mark.slow
def test_a_fresh_process_per_arm_reports_its_peak():
    options = cost.parse(["--shape", "tiny"])
    assert cost.spawn("default", "tuned", "3x5", options)["peak_mib"] > 0


def test_the_module_alone_takes_a_step(monkeypatch):
    monkeypatch.setattr(cost, "REAL", TINY)
    result = cost.child(cost.parse(["--child", "fit", "--shape", "tiny"]))
    assert result["tokens"] == 3 * 25
    assert result["loss"] > 0


@pytest.mark.parametrize("point", ["8", "8x", "1x13", "8xx13", "8x0"])
def test_a_point_that_is_none_names_what_is_expected(point):
    with pytest.raises(ValueError, match="expected frames x patches per side"):
        cost.read_point(point)


def test_no_round_is_refused():
    with pytest.raises(ValueError, match="rounds is 0, expected at least 1"):
        cost.parse(["--rounds", "0"])
