"""What happens to the pictures of the curve."""

from __future__ import annotations

import numpy as np
import pytest

from playground.experiments.scene_split.disturb import DISTURBANCES


@pytest.fixture
def shown():
    draw = np.random.default_rng(0)
    picture = draw.integers(60, 180, (32, 32, 3)).astype(np.uint8)
    mask = np.zeros((32, 32), dtype=bool)
    mask[8:14, 10:20] = True
    return picture, mask


def disturbed(name, shown, seed=1):
    return DISTURBANCES[name].apply(*shown, np.random.default_rng(seed))


@pytest.mark.parametrize("name", list(DISTURBANCES))
def test_the_same_draw_disturbs_the_same_way_and_sizes_stay(name, shown):
    picture, mask = disturbed(name, shown)
    again, _ = disturbed(name, shown)
    assert np.array_equal(picture, again) and picture.dtype == np.uint8
    assert picture.shape == shown[0].shape and mask.shape == shown[1].shape


def test_as_drawn_changes_nothing(shown):
    picture, mask = disturbed("none", shown)
    assert np.array_equal(picture, shown[0]) and np.array_equal(mask, shown[1])


def test_noise_has_the_deviation_that_its_name_says(shown):
    difference = disturbed("noise_6", shown)[0].astype(float) - shown[0]
    assert difference.std() == pytest.approx(6, rel=0.1) and abs(difference.mean()) < 0.5


def test_a_shake_moves_picture_and_mask_together(shown):
    picture, mask = disturbed("shake_4", shown, seed=3)
    down, right = np.random.default_rng(3).integers(-4, 5, 2)
    assert (down, right) != (0, 0)
    assert np.array_equal(mask[8 + down : 14 + down, 10 + right : 20 + right], np.ones((6, 10), dtype=bool))
    assert np.array_equal(picture[10 + down, 12 + right], shown[0][10, 12])


def test_light_scales_all_pixels_alike(shown):
    ratio = disturbed("light_20", shown, seed=4)[0].astype(float) / shown[0]
    assert ratio.std() < 0.01 and 0.8 <= ratio.mean() <= 1.2 and abs(ratio.mean() - 1) > 0.01
