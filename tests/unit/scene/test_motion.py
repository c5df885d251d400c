"""What moves before a camera that stands still."""

import numpy as np
import pytest

from llava.scene.detector import build_detector
from llava.scene.detectors.motion import MotionDetector


def clip_with_a_moving_square(noise: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Eight pictures of 24 x 32; a bright square of 5 x 5 walks 3 pixels to the right in each."""
    random = np.random.default_rng(0)
    scene = random.integers(40, 120, (24, 32, 3))
    pictures, masks = [], []
    for step in range(8):
        shown = scene + random.integers(-noise, noise + 1, scene.shape)
        mask = np.zeros((24, 32), bool)
        mask[10:15, 1 + 3 * step : 6 + 3 * step] = True
        shown[mask] = 240
        pictures.append(shown.astype(np.uint8))
        masks.append(mask)
    return pictures, masks


@pytest.mark.parametrize("method", ["median", "mog2"])
def test_a_moving_square_is_found_in_every_picture_of_the_clip(method):
    pictures, masks = clip_with_a_moving_square(noise=3)
    answers = build_detector("motion", method=method).detect(pictures)
    assert len(answers) == 8
    for answer, mask in zip(answers, masks, strict=True):
        found = answer.pixel_mask()
        assert found[mask].mean() > 0.9 and found[~mask].mean() < 0.02
        assert set(answer.names) == {"moving"}


def test_noise_below_the_threshold_is_no_motion():
    still = [np.full((12, 12, 3), 100 + step % 3, np.uint8) for step in range(5)]
    assert [len(answer) for answer in MotionDetector().detect(still)] == [0] * 5
    assert MotionDetector(threshold=0).detect(still)[1].pixel_mask().sum() == 0  # 101 is the median
    assert MotionDetector(threshold=0).detect(still)[0].pixel_mask().all()


def test_regions_below_the_smallest_size_are_noise():
    pictures = [np.zeros((12, 12, 3), np.uint8) for _ in range(5)]
    pictures[2][4:6, 4:6] = 255
    assert len(MotionDetector(min_pixels=5).detect(pictures)[2]) == 0
    (box,) = MotionDetector(min_pixels=4).detect(pictures)[2].boxes.tolist()
    assert box == [4, 4, 6, 6]


def test_two_squares_are_two_objects_and_the_same_clip_gives_the_same_answer():
    pictures = [np.zeros((12, 20, 3), np.uint8) for _ in range(5)]
    pictures[0][1:5, 1:5] = pictures[0][6:10, 12:16] = 200
    first, again = (MotionDetector().detect(pictures)[0] for _ in range(2))
    assert sorted(first.boxes.tolist()) == [[1, 1, 5, 5], [12, 6, 16, 10]]
    assert np.array_equal(first.pixel_mask(), again.pixel_mask())


def test_a_picture_of_the_empty_scene_answers_for_single_pictures():
    empty = np.full((10, 10, 3), 50, np.uint8)
    shown = empty.copy()
    shown[2:6, 3:8] = 200
    (answer,) = MotionDetector(background=empty).detect([shown])
    assert answer.boxes.tolist() == [[3, 2, 8, 6]]


def test_with_a_moving_camera_nearly_everything_moves():
    wall = np.random.default_rng(1).integers(0, 256, (16, 80, 3), dtype=np.uint8)
    pictures = [np.ascontiguousarray(wall[:, 7 * step : 7 * step + 24]) for step in range(7)]
    assert MotionDetector().detect(pictures)[0].pixel_mask().mean() > 0.9


def test_clips_that_show_no_motion_by_their_nature_are_refused():
    shown = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="motion cannot be seen in 1 picture"):
        MotionDetector().detect([shown])
    with pytest.raises(ValueError, match=r"sizes \[\(8, 8\), \(8, 9\)\]"):
        MotionDetector().detect([shown, shown, np.zeros((8, 9, 3), np.uint8)])
    assert MotionDetector().detect([]) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "knn"}, "method is 'knn'"),
        ({"threshold": 256}, "threshold is 256"),
        ({"variance_threshold": 0}, "variance_threshold 0"),
        ({"min_pixels": 0}, "min_pixels 0"),
        ({"method": "mog2", "background": np.zeros((4, 4, 3), np.uint8)}, "goes with method 'median'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MotionDetector(**settings)
