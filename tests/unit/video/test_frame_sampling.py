"""Frame rules give the published indices, stay in range and keep the order."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.video.frame_sampling import (
    BLACK_FRAME,
    capped_indices,
    fps_indices,
    pick,
    uniform_indices,
    vlnce_indices,
)


@pytest.fixture(scope="module")
def recorded(golden):
    return json.loads((golden / "A_navila/text/frame_sampling.json").read_text())


def test_golden_navigation_rule(recorded, golden):
    for key in (name for name in recorded if "vlnce" in name or "sample_and_pad" in name):
        num_frames = int(key.split("num_frames=")[1].split("|")[0])
        for length, expected in recorded[key].items():
            assert vlnce_indices(int(length), num_frames) == expected["idx"], (key, length)
    table = json.loads((golden / "vln/golden.json").read_text())["E_frame_sampling"]["table"]
    for key, expected in table.items():
        num_frames, length = map(int, key.split("/"))
        assert vlnce_indices(length, num_frames) == expected


def test_golden_capped_rule(recorded):
    """Where the original gives up and returns black frames (nothing loaded), ours returns the frames that exist."""
    given_up = 0
    for key in (name for name in recorded if name.startswith("opencv_extract_frames_logic")):
        options = dict(part.split("=") for part in key.split("|")[1:4])
        for length, expected in recorded[key].items():
            ours = capped_indices(
                int(length),
                int(options["frames"]),
                video_fps=float(options["video_fps"]),
                max_fps=float(options["max_fps"]),
            )
            if expected["n_loaded"] == 0:
                given_up += 1
                assert 1 <= len(ours) <= 2 and ours[0] == 0
            else:
                assert ours == expected["idx"], (key, length)
    assert given_up == 8  # one frame under max_fps 0 (3 rates); less than 0.5 s under max_fps 2 (5 lengths)


def test_golden_uniform_rule(recorded):
    for length, expected in recorded["utils.media._extract_video|num_video_frames=8"].items():
        assert uniform_indices(int(length), 8) == expected["frame_folder"] == expected["mp4_fps10_decord"]


@given(st.integers(0, 600), st.integers(1, 64))
def test_navigation_rule_always_ends_at_the_current_frame(length, num_frames):
    indices = vlnce_indices(length, num_frames)
    assert len(indices) == num_frames
    assert indices == sorted(indices)
    assert indices[-1] == (length - 1 if length else BLACK_FRAME)


@given(st.integers(0, 600), st.integers(1, 64), st.floats(0.5, 60), st.floats(0, 8))
def test_capped_rule_never_repeats_a_frame(length, num_frames, video_fps, max_fps):
    indices = capped_indices(length, num_frames, video_fps=video_fps, max_fps=max_fps)
    assert len(set(indices)) == len(indices) <= max(num_frames, 2)
    assert all(0 <= index < length for index in indices)


def test_one_frame_per_second_keeps_the_first_ones():
    assert fps_indices(100, 4, video_fps=10, fps=1) == [0, 10, 20, 30]
    assert fps_indices(5, 4, video_fps=10, fps=1) == [0]


def test_picking_puts_black_where_there_is_no_frame():
    assert pick("ab", vlnce_indices(2, 4), black="_") == ["_", "_", "a", "b"]


def test_impossible_wishes_are_named():
    with pytest.raises(ValueError, match="cannot choose 0 of 5 frames"):
        vlnce_indices(5, 0)
    with pytest.raises(ValueError, match=r"needs the clip's own rate, got video_fps=0"):
        capped_indices(5, 8, max_fps=2)
