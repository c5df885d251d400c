"""The detector's block on the report page: its numbers and pictures, the reason for its absence, or nothing."""

import json
import sys
from dataclasses import replace
from pathlib import Path

from playground.demo import scene_figures, scene_phases
from playground.demo.report.data import SceneFindings
from playground.demo.report.page import render
from playground.demo.scene_figures import load_scene, scene_blocks

sys.path.insert(0, str(Path(__file__).parent))
from fake_run import DETECTOR_REPORT, fake_run, picture


def test_numbers_and_pictures_come_from_the_run_folder(tmp_path):
    for folder in ("detector", "scene"):
        (tmp_path / folder).mkdir()
    (tmp_path / "detector" / "yolo.json").write_text(json.dumps(DETECTOR_REPORT))
    (tmp_path / "scene" / "000003.png").write_bytes(picture(3).png)
    ((title, lead, body),) = scene_blocks(load_scene(tmp_path))
    assert title == "Background and objects" and "45 seconds" in lead and "200 pictures" in lead
    for number in ("0.625", "0.375", "0.750", "0.500", "0.688", "90.0%", "5.0%", "99.0%", "40.0%", "80.0%", "1.0%"):
        assert f"<td>{number}</td>" in body
    assert "Cells of 8 x 8 pixels" in body and "Picture 3" in body


def test_a_detector_without_masks_has_no_row_of_them():
    boxes_only = {key: value for key, value in DETECTOR_REPORT.items() if key != "masks"}
    ((_, _, body),) = scene_blocks(SceneFindings(report=boxes_only))
    assert "<td>boxes</td>" in body and "<td>masks</td>" not in body


def test_without_the_package_the_page_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(scene_phases, "find_spec", lambda name: None)
    page = render(replace(fake_run(), scene=load_scene(tmp_path)))
    assert "Left out: no object detector: the package ultralytics is not installed" in page
    assert "pip install &#x27;llava[yolo]&#x27;" in page


def test_a_run_from_before_the_detector_has_no_block(monkeypatch, tmp_path):
    monkeypatch.setattr(scene_figures, "why_no_detector", lambda: None)
    assert scene_blocks(load_scene(tmp_path)) == []
    assert "Background and objects" not in render(fake_run())
