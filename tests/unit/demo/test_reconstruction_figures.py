"""What the report says about the next-frame loss, and that it says nothing for a run without it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from playground.demo.reconstruction_figures import FOLDER, late_mean, load_heat_maps, reconstruction_blocks
from playground.demo.report.page import render

sys.path.insert(0, str(Path(__file__).parent))
from fake_run import fake_run


def lines(count: int = 8) -> list[dict]:
    """Skill rises from 0 in steps of 0.1; gradients are measured at every fourth line."""
    rows = []
    for step in range(count):
        row = {"step": step, "elapsed": float(step), "loss": 2.0, "autoregressive_loss": 1.0 - 0.1 * step}
        row |= {"autoregressive_ratio": 0.05, "autoregressive_skill": 0.1 * step, "autoregressive_skill_turn": -0.25}
        rows.append(row | ({"gradient_ratio_language_model": 0.125} if step % 4 == 0 else {}))
    return rows


def test_a_run_without_the_loss_has_no_such_section():
    run = fake_run()
    assert reconstruction_blocks(run.curves) == []
    assert "Next-frame loss" not in render(run)


def test_curves_and_numbers_of_the_stage_that_had_it():
    run = fake_run()
    page = render(replace(run, curves={**run.curves, "streaming": lines()}))
    assert "Next-frame loss: streaming" in page and "Next-frame loss: Align" not in page
    assert "<td>0.650</td>" in page  # skill, mean of the last two of eight lines: 0.6, 0.7
    assert "<td>-0.250</td>" in page and "<td>0.125</td>" in page
    assert ">turn</th>" in page and ">still</th>" not in page  # nobody stood still


def test_late_means_look_at_the_last_quarter():
    assert late_mean(lines(), "autoregressive_skill") == pytest.approx(0.65)
    assert late_mean(lines(), "autoregressive_skill_still") is None
    assert late_mean([{"a": float("nan")}, {"a": 2.0}], "a") == 2.0


def test_heat_maps_beside_a_model_are_shown(tmp_path):
    folder = tmp_path / "streaming" / FOLDER
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(folder / "episode-17.png")
    pictures = load_heat_maps(tmp_path / "streaming", "streaming")
    assert [picture.title for picture in pictures] == ["streaming: episode 17"]
    assert load_heat_maps(tmp_path / "8frames", "8 frames") == []
    page = render(replace(fake_run(), heat_maps=pictures))
    assert "Where the next frame was predicted" in page and "streaming: episode 17" in page
