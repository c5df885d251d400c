"""Boxes and masks on the patch grid: numbers by hand, then properties on random boxes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava.batch import VisualSpec
from llava.mm_utils import to_uint8_tensor
from llava.scene.geometry import one_view, picture_views
from llava.scene.patch_mask import (
    PatchRule,
    boxes_to_mask,
    dilate,
    patch_masks,
    patch_shares,
    patches_of_cells,
    snap,
    to_patches,
)

COORDINATE = st.floats(-20, 80, allow_nan=False)


@st.composite
def boxes(draw):
    def axis():
        first, second = draw(COORDINATE), draw(COORDINATE)
        return min(first, second), max(first, second)

    rows = []
    for _ in range(draw(st.integers(0, 4))):
        (left, right), (top, bottom) = axis(), axis()
        rows.append((left, top, right, bottom))
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def test_a_box_covers_every_pixel_that_it_touches():
    mask = boxes_to_mask(np.array([[1.5, 0.0, 3.0, 1.0]]), 3, 5)
    assert np.array_equal(mask, [[0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])


def test_boxes_outside_the_picture_are_cut_and_those_without_area_cover_nothing():
    outside = np.array([[-9.0, -9.0, 1.0, 1.0], [7.0, 0.0, 9.0, 2.0], [2.0, 1.0, 2.0, 2.0], [5.0, 1.0, 5.0, 2.0]])
    assert np.argwhere(boxes_to_mask(outside, 3, 5)).tolist() == [[0, 0]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_boxes_that_are_no_numbers_are_refused(value):
    with pytest.raises(ValueError, match=r"box 1 is .* expected finite pixels"):
        boxes_to_mask(np.array([[0.0, 0, 1, 1], [0, value, 1, 1]]), 3, 5)


def test_a_box_of_another_notation_is_refused():
    with pytest.raises(ValueError, match=r"box 0 is \[8\.0, 8\.0, 4\.0, 9\.0\].*left, top, width, height"):
        boxes_to_mask(np.array([[8.0, 8, 4, 9]]), 10, 10)


def test_a_mask_of_another_size_is_refused_with_both_sizes():
    with pytest.raises(ValueError, match=r"mask has 4 x 6 pixels .* picture 6 x 4"):
        to_patches(np.zeros((4, 6), bool), one_view(8, 6, 4), PatchRule(patch_size=2))


def test_any_overlap_makes_an_object_patch_and_a_share_asks_for_more():
    mask = np.zeros((4, 4), bool)
    mask[0, 0] = mask[2:, 2:] = True
    view = one_view(4, 4, 4)
    assert np.array_equal(patch_shares(mask, view, 2), [[0.25, 0], [0, 1]])
    assert np.array_equal(to_patches(mask, view, PatchRule(patch_size=2)).patches, [[1, 0], [0, 1]])
    half = PatchRule(patch_size=2, bit_exact=False, min_share=0.5)
    assert np.array_equal(to_patches(mask, view, half).patches, [[0, 0], [0, 1]])
    exactly = PatchRule(patch_size=2, bit_exact=False, min_share=0.25)
    assert np.array_equal(to_patches(mask, view, exactly).patches, [[1, 0], [0, 1]])


def test_shares_are_those_of_the_padded_square():
    """A 2 x 4 picture, all object, centred on 4 x 4: the middle half of every column of patches is covered."""
    (view,) = picture_views(VisualSpec(image_size=4, tokens_per_image=4, aspect_mode="pad"), 2, 4)
    assert np.array_equal(patch_shares(np.ones((2, 4), bool), view, 2), [[0.5, 0.5], [0.5, 0.5]])
    assert np.array_equal(patch_shares(np.ones((2, 4), bool), view, 1)[:, 0], [0, 1, 1, 0])


def test_without_bit_exactness_a_resized_object_takes_only_the_patches_that_it_covers():
    mask = np.zeros((16, 16), bool)
    mask[8:, 8:] = True
    view = one_view(8, 16, 16)
    covered = to_patches(mask, view, PatchRule(patch_size=2, bit_exact=False)).patches
    assert np.array_equal(covered[2:, 2:], np.ones((2, 2))) and covered.sum() == 4
    reached = to_patches(mask, view, PatchRule(patch_size=2)).patches  # the kernel is 4 source pixels wide
    assert np.array_equal(reached[1:, 1:], np.ones((3, 3))) and reached.sum() == 9


def test_a_cell_is_object_as_a_whole_and_the_grids_edge_is_padded_as_the_projector_does():
    patches = np.zeros((5, 5), bool)
    patches[1, 2] = patches[4, 4] = True
    cells = snap(patches, 2)
    assert np.array_equal(cells, [[0, 1, 0], [0, 0, 0], [0, 0, 1]])
    assert np.argwhere(patches_of_cells(cells, 5, 2)).tolist() == [[0, 2], [0, 3], [1, 2], [1, 3], [4, 4]]


def test_dilation_counts_in_cells_and_stops_at_the_border():
    cells = np.zeros((4, 4), bool)
    cells[0, 3] = True
    assert np.array_equal(dilate(cells, 1), [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert dilate(cells, 9).all()
    assert np.array_equal(dilate(cells, 0), cells)


def test_no_object_and_everything_an_object_are_ordinary_answers():
    spec, rule = VisualSpec(image_size=8, tokens_per_image=16), PatchRule(patch_size=2, cell=2)
    (nothing,) = patch_masks(np.zeros((5, 9), bool), spec, rule)
    (everything,) = patch_masks(np.ones((5, 9), bool), spec, rule)
    assert (nothing.object_share, everything.object_share) == (0.0, 1.0)
    assert everything.patches.all() and not nothing.patches.any()


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"patch_size": 0}, "patch_size is 0"),
        ({"patch_size": 14, "cell": 0}, "cell 0"),
        ({"patch_size": 14, "dilation": -1}, "dilation -1"),
        ({"patch_size": 14, "min_share": 1.5, "bit_exact": False}, "min_share is 1.5"),
        ({"patch_size": 14, "min_share": 0.5}, "bit_exact is on"),
    ],
)
def test_rules_that_mean_nothing_are_refused(settings_, message):
    with pytest.raises(ValueError, match=message):
        PatchRule(**settings_)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    boxes=boxes(),
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    mode=st.sampled_from(["resize", "pad", "crop"]),
    side=st.sampled_from([20, 28, 30]),
    cell=st.integers(1, 3),
    dilation=st.integers(0, 2),
)
def test_background_patches_keep_their_bits_whatever_the_objects_look_like(
    boxes, height, width, mode, side, cell, dilation
):
    spec = VisualSpec(image_size=side, tokens_per_image=1, aspect_mode=mode)
    mask = boxes_to_mask(boxes, height, width)
    rule = PatchRule(patch_size=4, cell=cell, dilation=dilation)
    (found,) = patch_masks(mask, spec, rule)
    grid = side // 4
    before = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    after = before.copy()
    after[mask] = 255 - after[mask]
    first, second = (
        to_uint8_tensor(p, spec).numpy()[:, : grid * 4, : grid * 4].reshape(3, grid, 4, grid, 4)
        for p in (before, after)
    )
    changed = (first != second).any(axis=(0, 2, 4))
    assert not (changed & ~found.patches).any()
    assert np.array_equal(found.patches, patches_of_cells(found.cells, grid, cell))
    assert found.cells.shape == (-(-grid // cell),) * 2


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(boxes=boxes(), height=st.integers(1, 60), width=st.integers(1, 60), cell=st.integers(1, 3))
def test_larger_rules_contain_smaller_ones(boxes, height, width, cell):
    mask, view = boxes_to_mask(boxes, height, width), one_view(28, height, width)
    covered = to_patches(mask, view, PatchRule(patch_size=4, bit_exact=False)).patches
    shared = to_patches(mask, view, PatchRule(patch_size=4, bit_exact=False, min_share=0.5)).patches
    reached = to_patches(mask, view, PatchRule(patch_size=4)).patches
    snapped = to_patches(mask, view, PatchRule(patch_size=4, cell=cell)).patches
    grown = to_patches(mask, view, PatchRule(patch_size=4, cell=cell, dilation=1)).patches
    for smaller, larger in ((shared, covered), (covered, reached), (reached, snapped), (snapped, grown)):
        assert not (smaller & ~larger).any()
    assert covered.any() == mask.any()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_shares_are_sums_of_overlaps_exactly(height: int, width: int, seed: int):
    draw = np.random.default_rng(seed)
    mask = draw.random((height, width)) < draw.choice([0.0, 0.02, 0.5, 1.0])
    view = one_view(28, height, width)
    expected = view.rows.overlap(7) @ mask.astype(np.float64) @ view.columns.overlap(7).T
    assert np.array_equal(patch_shares(mask, view, 7), expected / (7 * height * 7 * width))


OTHER_THREADS = """
import os, time
import numpy as np
from llava.scene.geometry import one_view
from llava.scene.patch_mask import PatchRule, to_patches

def others():
    tasks = set(os.listdir("/proc/self/task")) - {str(os.getpid())}
    return sum(int(open(f"/proc/self/task/{task}/schedstat").read().split()[0]) for task in tasks)

def spent(work):
    begin = others()
    work()
    time.sleep(0.15)
    return others() - begin

mask, view, large = np.ones((336, 336), bool), one_view(336, 336, 336), np.ones((512, 512))
print(spent(lambda: to_patches(mask, view, PatchRule(patch_size=14))), spent(lambda: large @ large))
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="needs Linux's times of every thread")
def test_no_other_thread_works_while_a_mask_becomes_patches_or_after():
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}
    run = subprocess.run([sys.executable, "-c", OTHER_THREADS], env=env, capture_output=True, text=True, check=True)
    by_us, by_a_product = map(int, run.stdout.split())  # nanoseconds
    if by_a_product < 1_000_000:
        pytest.skip("this numpy has no threads of its own, or one core to run on")
    assert by_us < 200_000
