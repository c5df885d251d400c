"""Recall by cell on pictures whose cells can be counted by hand."""

import numpy as np
import pytest

from llava.batch import VisualSpec
from llava.scene.detections import Detections
from llava.scene.patch_mask import PatchRule
from playground.scene.cell_rates import count_cells

SPEC = VisualSpec(image_size=32, tokens_per_image=16)
"""The pictures have the model's size, so no kernel blurs: 4 x 4 cells of 8 pixels."""


def truth(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((32, 32), bool)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = True
    return mask


def test_cells_that_are_found_missed_and_taken_wrongly_are_counted_over_all_pictures():
    first = (
        Detections.of(32, 32, [(0, 0, 8, 8), (24, 24, 32, 32)]),
        truth((0, 0, 16, 8)),
    )  # of two cells one, and one more
    second = Detections.of(32, 32), truth((9, 9, 10, 10))  # one pixel makes an object cell, and it is missed
    counts = count_cells([first, second], SPEC, PatchRule(patch_size=8))
    assert (counts.object_cells, counts.objects_found) == (3, 1)
    assert (counts.background_cells, counts.background_taken) == (29, 1)
    assert counts.recall == 1 / 3 and counts.false_share == 1 / 29


def test_dilation_widens_what_was_found_and_never_the_truth():
    corner = Detections.of(32, 32, [(0, 0, 8, 8)]), truth((8, 8, 16, 16))
    counts = count_cells([corner], SPEC, PatchRule(patch_size=8, dilation=1))
    assert (counts.object_cells, counts.objects_found, counts.background_taken) == (1, 1, 3)


def test_a_detector_that_failed_takes_the_whole_picture():
    counts = count_cells([(Detections.failed(32, 32, "broken"), truth((0, 0, 8, 8)))], SPEC, PatchRule(patch_size=8))
    assert counts.recall == 1.0 and counts.false_share == 1.0


def test_pictures_without_an_object_have_no_recall():
    with pytest.raises(ValueError, match="0 object cells and 16 background cells"):
        count_cells([(Detections.of(32, 32), truth())], SPEC, PatchRule(patch_size=8))
