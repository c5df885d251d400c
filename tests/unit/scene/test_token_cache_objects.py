"""A known background behind new objects: found again once a detector told the objects, and watched as before."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llava.scene.cache.camera import camera_motion
from llava.scene.cache.signature import common_similarity
from tests.unit.scene.token_cache_room import CELL, NOISE, SIDE, ask, scene, store_of, view
from tests.unit.scene.token_cache_toy import provenance

GRID = SIDE // CELL
LARGE = [row * GRID + column for row in range(1, 5) for column in range(2, 6)]  # 16 cells, all of them background
JPEG_NOISE = 6.0
"""Six deviations of two pixels are 51 levels: quality 90 changes this room, which is all colour, by up to 48."""
LOWEST = [*range(48, 64)]  # objects of the known picture


def painted(pixels: torch.Tensor, cells: list[int] = LARGE, seed: int = 5) -> torch.Tensor:
    """A new object: bright, dark, and nothing like what it hides."""
    changed, row_of, column_of = pixels.clone(), np.divmod(cells, GRID)[0], np.divmod(cells, GRID)[1]
    random = np.random.default_rng(seed).integers(0, 2, (len(cells), 3, 1, 1)) * 255
    for cell, colour in enumerate(random):
        top, left = row_of[cell] * CELL, column_of[cell] * CELL
        changed[:, top : top + CELL, left : left + CELL] = torch.from_numpy(colour).to(torch.uint8)
    return changed


def jpeg(pixels: torch.Tensor, quality: int = 90) -> torch.Tensor:
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1).contiguous()


class Detector:
    """Finds given cells, and counts how often it is asked."""

    def __init__(self, *objects: int) -> None:
        self.background = [cell for cell in range(GRID * GRID) if cell not in objects]
        self.calls = 0

    def __call__(self) -> list[int]:
        self.calls += 1
        return self.background


def test_a_large_object_hides_a_background_only_until_the_detector_ran():
    store, new = store_of(view(), max_stale_fraction=0.4), painted(view(noise=NOISE))
    assert provenance(store, ask(new)) == "miss"  # the whole picture resembles nothing
    detector = Detector(*LARGE, *LOWEST)
    with store.lookup(ask(new, background=detector)) as answer:
        assert (answer.provenance, detector.calls) == ("guarded", 1)
        assert answer.stale_ids.tolist() == LARGE
        assert answer.object_ids.tolist() == sorted([*LARGE, *LOWEST])
        assert answer.saved_tokens == 48 - 16


def test_what_a_new_object_hides_counts_as_stale():
    """16 of 48 cells are 0.33: tokens of the others were computed with sight of them."""
    detector = Detector(*LARGE, *LOWEST)
    for allowed, expected in ((0.3, "rejected:stale"), (0.34, "guarded")):
        store = store_of(view(), max_stale_fraction=allowed)
        assert provenance(store, ask(painted(view()), background=detector)) == expected


def test_cells_that_the_detector_calls_objects_are_computed_though_they_look_the_same():
    store = store_of(view(), max_stale_fraction=0.4)
    detector = Detector(*LARGE, *LOWEST, 0, 1)
    with store.lookup(ask(painted(view(noise=NOISE)), background=detector)) as answer:
        assert answer.provenance == "guarded"
        assert answer.object_ids.tolist() == sorted([0, 1, *LARGE, *LOWEST])
        assert answer.stale_ids.tolist() == LARGE


def test_a_background_that_is_given_is_found_behind_a_large_object_too():
    store = store_of(view(), max_stale_fraction=0.4, min_signature=0.9)
    given_ids = Detector(*LARGE, *LOWEST).background
    assert provenance(store, ask(painted(view(noise=NOISE)), background=given_ids)) == "guarded"


def test_noise_of_a_jpeg_file_of_quality_90_is_served():
    store = store_of(view(), max_stale_fraction=0.6, noise=JPEG_NOISE)
    detector = Detector(*LARGE, *LOWEST)
    with store.lookup(ask(jpeg(view()), background=detector)) as answer:
        assert (answer.provenance, detector.calls) == ("guarded", 0)
        assert answer.stale_ids.tolist() == []
    with store.lookup(ask(jpeg(painted(view())), background=detector)) as answer:
        assert (answer.provenance, detector.calls) == ("guarded", 1)
        assert set(LARGE) <= set(answer.stale_ids.tolist())


@pytest.mark.parametrize(("levels", "expected"), [(3, "guarded"), (12, "rejected:stale")])
def test_other_light_is_served_within_the_threshold_only(levels, expected):
    """Six deviations of two pixels' noise are 17 levels of a pixel and 4.2 of a mean of 4 x 4."""
    brighter = (painted(view()).int() + levels).clamp(0, 255).to(torch.uint8)
    store = store_of(view(), max_stale_fraction=0.4)
    assert provenance(store, ask(brighter, background=Detector(*LARGE, *LOWEST))) == expected


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(1, 10_000), cells=st.sets(st.integers(0, 63), max_size=60), has_camera=st.booleans())
def test_another_scene_is_never_served(seed, cells, has_camera):
    store = store_of(view(), max_stale_fraction=0.4, min_signature=-1.0)
    other, detector = view(seed=seed), Detector(*cells)
    asked = ask(other, background=detector, caller_id="arm" if has_camera else None)
    assert not provenance(store, asked).startswith(("guarded", "exact"))
    assert not provenance(store, ask(other, background=detector.background)).startswith(("guarded", "exact"))


def test_a_camera_that_moved_by_whole_cells_is_followed_behind_a_large_object():
    """One cell to the right: 6 of 48 cells leave the picture, 16 are hidden."""
    store = store_of(view(), max_stale_fraction=0.5)
    moved = painted(view(right=CELL, noise=NOISE))
    with store.lookup(ask(moved, background=Detector(*LARGE, *LOWEST), caller_id="arm")) as answer:
        assert (answer.provenance, answer.shift) == ("guarded", (0, 1))
        assert len(answer.stale_ids) == 6 + 16
        assert set(LARGE) <= set(answer.object_ids.tolist())


@pytest.mark.parametrize(("down", "right"), [(2, 0), (0, -2)])
def test_a_camera_that_moved_by_two_pixels_is_bypassed_behind_a_large_object(down, right):
    store = store_of(view(), max_stale_fraction=0.5)
    asked = ask(painted(view(down, right)), background=Detector(*LARGE, *LOWEST), caller_id="arm")
    assert provenance(store, asked) == "bypass:camera_motion"


def test_common_similarity_compares_what_both_backgrounds_show():
    def row(*values):
        return np.array(values, dtype=np.float32)

    full = row(1, 1, 1, 1)
    assert common_similarity(row(1, 2, 3, 4), full, row(5, 6, 7, 8), full) == pytest.approx(1.0)
    assert common_similarity(row(1, 2, 3, -9), full, row(5, 6, 7, 0), row(1, 1, 1, 0)) == pytest.approx(1.0)
    assert common_similarity(row(1, 2, 3, 4), full, row(5, 0, 0, 0), row(1, 0, 0, 0)) == 0.0
    assert common_similarity(row(2, 2, 2, 2), full, row(1, 2, 3, 4), full) == 0.0


# ---- the camera's motion ----


def light(pixels: torch.Tensor) -> np.ndarray:
    return pixels[None].float().mean(1).numpy()


def wall(down: int = 0, noise_seed: int = 0) -> np.ndarray:
    """A wall with little on it, [1, 96, 96]: a third of the room's contrast, and noise of one level."""
    part = scene(1)[32 - down : 32 - down + SIDE, 32 : 32 + SIDE].mean(2)
    noisy = 128 + (part - 128) * 0.3 + np.random.default_rng(noise_seed).standard_normal((SIDE, SIDE))
    return noisy[None].astype(np.float32)


def with_thing(pixels: np.ndarray, top: int, left: int, side: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """(picture with a thing of strong contrast, pixels that show none of it)"""
    thing = cv2.resize(np.random.default_rng(3).random((8, 8)).astype(np.float32) * 255, (side, side))
    changed, shown = pixels.copy(), np.ones(pixels.shape, dtype=bool)
    changed[0, top : top + side, left : left + side] = thing
    shown[0, top : top + side, left : left + side] = False
    return changed, shown


def is_still(before, after, background=None):
    motion = camera_motion(before, after, background)
    return motion is None or motion.is_still


@pytest.mark.parametrize(("down", "right"), [(3, 0), (0, 7), (-9, 12), (16, -16)])
def test_a_thing_that_moves_before_a_still_camera_is_no_camera_motion(down, right):
    before, first = with_thing(wall(noise_seed=1), 28, 28)
    after, second = with_thing(wall(noise_seed=2), 28 + down, 28 + right)
    (x, y), response = cv2.phaseCorrelate(before[0], after[0], cv2.createHanningWindow((SIDE, SIDE), cv2.CV_32F))
    assert response > 0.1 and (round(y), round(x)) == (down, right)  # what correlation alone takes for the camera's
    assert is_still(before, after, (first, second))


@pytest.mark.parametrize("moved", [(3, 0), (-3, 0), (6, 0)])
def test_a_true_shift_is_found_beside_things_that_move_otherwise(moved):
    before, first = with_thing(wall(noise_seed=1), 28, 28)
    after, second = with_thing(wall(moved[0], noise_seed=2), 10, 40)
    motion = camera_motion(before, after, (first, second))
    assert motion is not None
    assert (motion.down, motion.right) == pytest.approx(moved, abs=0.4)


def test_other_light_and_noise_alone_are_no_motion():
    assert is_still(wall(noise_seed=1), wall(noise_seed=2) + 20)
    random = np.random.default_rng(0).standard_normal((2, 1, SIDE, SIDE)).astype(np.float32)
    assert is_still(random[0], random[1])


def test_a_picture_of_objects_only_has_no_motion():
    nothing = np.zeros((1, SIDE, SIDE), dtype=bool)
    before, after = light(view()), light(view(3))
    assert is_still(before, after, (nothing, nothing))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), down=st.integers(-6, 6), right=st.integers(-6, 6))
def test_a_shift_is_measured_and_standing_still_is_none(seed, down, right):
    before, after = light(view(seed=seed, noise=NOISE)), light(view(down, right, seed=seed, noise=NOISE, noise_seed=1))
    motion = camera_motion(before, after)
    found = (0.0, 0.0) if motion is None else (motion.down, motion.right)
    assert found == pytest.approx((down, right), abs=0.5)
