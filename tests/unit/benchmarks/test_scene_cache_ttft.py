"""The benchmark's pictures show what they say, its verdict is arithmetic, and it runs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from playground.benchmarks.scene_cache.pictures import CHANGES, StillCamera, brighter, shifted
from playground.benchmarks.scene_cache.results import summarise, tables, verdict
from playground.benchmarks.scene_cache.samples import Sample
from playground.benchmarks.scene_cache_ttft import main

CAMERA = StillCamera(side=112, patch=14, share=0.75, seed=1)


def test_a_new_object_leaves_every_pixel_of_the_background_as_it_was():
    before, after = CAMERA.picture(0), CAMERA.picture(1)
    assert CAMERA.object_rows == 2 and CAMERA.share == 0.75
    assert np.array_equal(before[:84], after[:84]) and np.array_equal(before[:84], CAMERA.empty[:84])
    assert (before[84:] != after[84:]).any()


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 0.9])
def test_the_detector_finds_the_object_and_nothing_else(share: float):
    camera = StillCamera(side=112, patch=14, share=share, seed=2)
    (found,) = camera.detector().detect([camera.picture(3)])
    rows = np.flatnonzero(found.pixel_mask().any(axis=1))
    assert rows.min() == 112 - 14 * camera.object_rows and rows.max() == 111


def test_every_change_changes_the_picture_but_the_same_one():
    other = StillCamera(side=112, patch=14, share=0.75, seed=5)
    same = {name: np.array_equal(change(CAMERA, other), CAMERA.picture(0)) for name, change in CHANGES.items()}
    assert same.pop("same picture") and not any(same.values())
    assert int(brighter(CAMERA.picture(0)).max()) <= 255 and shifted(CAMERA.picture(0)).shape == (112, 112, 3)


def test_a_probe_changes_one_cell_of_the_background():
    shown, cell = CAMERA.probe(0, 32)
    row, col = divmod(cell, 8)
    differs = (shown != CAMERA.picture(0)).any(axis=2)
    inside = differs[row * 14 : row * 14 + 14, col * 14 : col * 14 + 14]
    assert row < 6 and inside.sum() == differs.sum() == 25


def test_the_verdict_is_arithmetic():
    cells = {
        ("-", "full path", "cold"): [Sample(1.0, 10, 10)],
        ("0.75", "split", "cold"): [Sample(1.0, 10, 10)],
        ("0.75", "tokens + KV", "cold"): [Sample(1.1, 10, 10)],
        ("0.75", "tokens + KV", "new object"): [Sample(0.5, 4, 10), Sample(0.25, 4, 10), Sample(0.3, 4, 10)],
    }
    found = verdict(cells, [0.75])["0.75"]
    assert found["x_full_new_object"] == pytest.approx(1 / 0.3, abs=1e-3) and found["goal"] == 2.8
    assert found["miss_over_split"] == 1.1
    assert found["break_even_hit_rate"] == pytest.approx(0.1 / 0.8)  # 0.125 * 0.3 + 0.875 * 1.1 = 1


def test_a_cell_of_the_result_holds_medians_and_its_factor_of_the_full_path():
    stages = [{"encoder": 0.1, "prefill": 0.2}, {"encoder": 0.3, "prefill": 0.2}, {"encoder": 0.2, "prefill": 0.2}]
    hits = [Sample(seconds, 4, 10, "exact_kv", each) for seconds, each in zip((0.5, 0.25, 0.2), stages, strict=True)]
    full, hit = summarise({("-", "full path", "cold"): [Sample(1.0, 10, 10)], ("0.50", "guarded", "new object"): hits})
    assert full["x_full"] == 1 and full["stages_ms"] == {}
    assert (hit["p50_ms"], hit["x_full"], hit["n"]) == (250, 4, 3)
    assert hit["stages_ms"] == {"encoder": 200, "prefill": 200} and hit["provenance"] == {"exact_kv": 3}


def test_the_table_shows_a_case_that_was_measured_and_no_other():
    cells = summarise({("-", "full path", "cold"): [Sample(1.0, 10, 10)]})
    clip = {"frames": 8, "tokens_per_picture": 144, "cells": cells}
    (table,) = tables({"device": "cpu", "clip": clip})
    assert "8 x 144 tokens" in str(table.title) and table.row_count == 1
    assert list(table.columns[2].cells) == ["1000.0 (1000.0)\n1.00x -"]


@pytest.mark.slow
def test_it_runs_and_an_exact_hit_never_misses_a_change(tmp_path):
    result = main(["--quick", "--threads", "1", "--out", str(tmp_path / "ttft.json")])
    assert json.loads((tmp_path / "ttft.json").read_text())["benchmark"] == "scene_cache_ttft"
    assert all(counts["change_missed"] == 0 for counts in result["picture"]["probes"]["tokens + KV"].values())
    hits = [cell for cell in result["picture"]["cells"] if cell["column"] == "new object"]
    assert {"exact_tokens", "exact_kv"} <= {name for cell in hits for name in cell["provenance"]}
