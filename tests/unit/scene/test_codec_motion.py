"""Motion vectors of a codec as masks of pixels: what moved, and what nothing earlier predicts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.scene.codec_motion import frames_with_motion, moved_pixels

FIELDS = [
    *(("source", "int32"), ("w", "uint8"), ("h", "uint8"), ("src_x", "int16"), ("src_y", "int16")),
    *(("dst_x", "int16"), ("dst_y", "int16"), ("flags", "uint64")),
    *(("motion_x", "int32"), ("motion_y", "int32"), ("motion_scale", "uint16")),
]


def blocks(*given: tuple[int, int, int, int]) -> np.ndarray:
    """Blocks of 4 x 4 pixels from (centre x, centre y, motion right, motion down), motion in quarters of a pixel."""
    vectors = np.zeros(len(given), dtype=np.dtype(FIELDS, align=True))
    vectors["w"] = vectors["h"] = vectors["motion_scale"] = 4
    for row, (x, y, right, down) in zip(vectors, given, strict=True):
        row["dst_x"], row["dst_y"], row["motion_x"], row["motion_y"] = x, y, right, down
    return vectors


def test_blocks_that_moved_and_blocks_that_nothing_predicts_count():
    """An 8 x 8 picture of four blocks: still, moved by a pixel, moved by a quarter, without a vector."""
    moved = moved_pixels(blocks((2, 2, 0, 0), (6, 2, 4, 0), (2, 6, 0, -1)), 8, 8)
    assert moved[:4, 4:].all() and moved[4:, 4:].all()
    assert not moved[:4, :4].any() and not moved[4:, :4].any()
    assert moved_pixels(blocks((2, 6, 0, -1)), 8, 8, min_pixels=0.25).all()


def test_of_two_predictions_of_a_block_the_one_that_moved_counts():
    assert moved_pixels(blocks((2, 2, 0, 0), (2, 2, 0, 8)), 4, 4).all()


def test_a_frame_without_any_vector_is_all_new():
    assert moved_pixels(blocks(), 3, 5).all()


@settings(max_examples=30, deadline=None)
@given(
    given=st.lists(st.tuples(st.integers(-6, 20), st.integers(-6, 20), st.sampled_from([0, 9])), max_size=8),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
)
def test_every_pixel_is_judged_as_if_blocks_were_painted_one_by_one(
    given: list[tuple[int, int, int]], height: int, width: int
):
    predicted, moved = np.zeros((2, height, width), dtype=bool)
    for x, y, motion in given:
        block = slice(max(y - 2, 0), max(y + 2, 0)), slice(max(x - 2, 0), max(x + 2, 0))
        predicted[block] = True
        moved[block] |= motion > 0
    vectors = blocks(*[(x, y, motion, 0) for x, y, motion in given])
    assert np.array_equal(moved_pixels(vectors, height, width), moved | ~predicted)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"lack \['motion_x', 'motion_y'"):
        moved_pixels(np.zeros(1, dtype=[(name, "int32") for name in ("w", "h", "dst_x", "dst_y")]), 4, 4)
    with pytest.raises(ValueError, match="the picture is 0 x 4"):
        moved_pixels(blocks(), 0, 4)


# ---- files ----


class Stream:
    """What PyAV gives, as far as it is used."""

    def __init__(self, frames: list[Any]) -> None:
        self.frames, self.codec_context = frames, SimpleNamespace(options={})
        self.streams = SimpleNamespace(video=[self])

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.frames = []

    def decode(self, stream: Stream) -> list[Any]:
        assert stream.codec_context.options == {"flags2": "+export_mvs"}
        return self.frames


def frame(*, key: bool, vectors: np.ndarray | None) -> Any:
    told = {} if vectors is None else {"MOTION_VECTORS": SimpleNamespace(to_ndarray=lambda: vectors)}
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    return SimpleNamespace(key_frame=key, side_data=told, to_ndarray=lambda format: picture)


def test_key_frames_and_codecs_that_tell_nothing_have_no_mask(tmp_path: Path, monkeypatch: Any):
    told = blocks((2, 2, 0, 0))
    frames = [frame(key=True, vectors=None), frame(key=False, vectors=told), frame(key=False, vectors=None)]
    av = ModuleType("av")
    av.open = lambda path: Stream(frames)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "av", av)
    (tmp_path / "clip.mp4").touch()
    first, second, third = (moved for _, moved in frames_with_motion(tmp_path / "clip.mp4"))
    assert first is None and third is None
    assert second is not None and second.sum() == 64 - 16
    with pytest.raises(FileNotFoundError, match=r"nowhere.mp4 does not exist"):
        next(frames_with_motion(tmp_path / "nowhere.mp4"))


@pytest.mark.skipif(importlib.util.find_spec("av") is not None, reason="PyAV is installed")
def test_without_the_package_the_error_carries_the_pip_command(tmp_path: Path):
    with pytest.raises(ImportError, match="pip install av"):
        next(frames_with_motion(tmp_path / "clip.mp4"))


def test_a_square_that_moves_in_a_real_file_is_found(tmp_path: Path):
    pytest.importorskip("av", reason="PyAV is not installed")
    still = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8), (0, 0), 2)
    thing = np.random.default_rng(1).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (128, 96))
    for number in range(8):
        shown = still.copy()
        shown[32:64, 16 + 4 * number : 48 + 4 * number] = thing
        writer.write(shown)
    writer.release()
    masks = [moved for _, moved in frames_with_motion(path)]
    assert masks[0] is None
    seen = [mask for mask in masks[1:] if mask is not None]
    assert seen and np.mean([mask[32:64].mean() for mask in seen]) > 3 * np.mean([mask[72:].mean() for mask in seen])
