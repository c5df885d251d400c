"""Heat maps: the colour of a cell tells its error, one scale for all maps."""

from __future__ import annotations

import numpy as np
import pytest

from llava.video.error_picture import COLUMNS, ErrorRow, colours_of, draw_error_sheet, overlay, scale_of, skill_of

GREY = np.full((16, 16, 3), 100, dtype=np.uint8)


def row(error: np.ndarray, copied: np.ndarray) -> ErrorRow:
    return ErrorRow(seen=GREY, following=GREY, error=error, copy_error=copied, title="frame 0 to 1", note="still")


def test_the_wrong_cell_is_the_light_one():
    error = np.array([[0.0, 0.0], [0.0, 2.0]])
    heat = overlay(GREY, error, largest=2.0, side=8).astype(float).sum(axis=2)
    assert heat.shape == (8, 8)
    assert heat[4:, 4:].min() > 2 * heat[:4, :].max()
    assert np.ptp(heat[:4, :4]) == 0


def test_an_unknown_error_leaves_the_grey_picture():
    heat = overlay(GREY, np.full((2, 2), np.nan), largest=1.0, side=8)
    assert heat.tolist() == np.full((8, 8, 3), 80).tolist()


def test_colours_grow_lighter():
    lightness = colours_of(np.linspace(0, 1, 50)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 0).all()


def test_one_scale_serves_all_maps_and_outliers_do_not_rule_it():
    copied = np.full((10, 10), 1.0)
    copied[0, 0] = 1000.0
    assert scale_of([row(np.zeros((10, 10)), copied)]) == pytest.approx(1.0)
    assert scale_of([row(np.full((2, 2), np.nan), np.full((2, 2), np.nan))]) == 1.0
    assert scale_of([row(np.zeros((2, 2)), np.zeros((2, 2)))]) > 0


def test_skill_compares_with_copying():
    assert skill_of(row(np.full((2, 2), 0.25), np.full((2, 2), 1.0))) == 0.75
    assert skill_of(row(np.zeros((2, 2)), np.zeros((2, 2)))) is None


def test_a_sheet_has_a_row_per_frame_and_all_columns():
    rows = [row(np.zeros((3, 3)), np.ones((3, 3)))] * 3
    one, three = draw_error_sheet(rows[:1], "Walk"), draw_error_sheet(rows, "Walk")
    assert three.width == one.width > len(COLUMNS) * 168
    assert three.height - one.height == 2 * (168 + 24)
    with pytest.raises(ValueError, match="no predicted frame to draw"):
        draw_error_sheet([], "Walk")
