"""What every detector answers, and what becomes of a picture on which one crashes."""

import logging

import numpy as np
import pytest

from llava.scene.detections import Detections
from llava.scene.detector import DETECTORS, GuardedDetector, ObjectDetector, build_detector, check_pictures
from llava.scene.detector_input import Frame


def picture(value: int, height: int = 4, width: int = 6) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


class CrashesOn:
    """Finds one box in every picture, and raises when a picture's value is among `bad`."""

    def __init__(self, *bad: int) -> None:
        self.bad, self.sizes = bad, []

    def detect(self, pictures, sources=None):
        self.sizes.append(len(pictures))
        for shown in pictures:
            if shown[0, 0, 0] in self.bad:
                raise RuntimeError(f"value {shown[0, 0, 0]}")
        return [Detections.of(4, 6, [[0, 0, 1, 1]]) for _ in pictures]


def test_a_mask_follows_from_boxes_or_from_instance_masks():
    assert Detections.of(3, 3, [[0, 0, 2, 1]]).pixel_mask().tolist() == [[True, True, False], [False] * 3, [False] * 3]
    masks = np.zeros((2, 3, 3), bool)
    masks[0, 0, 0] = masks[1, 2, 2] = True
    found = Detections.of_masks(masks, names=["cup", "ball"])
    assert found.pixel_mask().sum() == 2
    assert found.boxes.tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]


def test_no_object_and_everything_an_object():
    assert not Detections.of(3, 3).pixel_mask().any()
    assert Detections.of(3, 3, [[-5, -5, 9, 9]]).pixel_mask().all()


def test_a_failed_picture_is_one_whole_object():
    failed = Detections.failed(2, 2, "out of memory")
    assert len(failed) == 0 and failed.pixel_mask().all() and failed.failure == "out of memory"


def test_the_most_confident_object_is_kept_the_first_of_equals_and_nothing_of_nothing():
    found = Detections.of(9, 9, [[0, 0, 1, 1], [1, 1, 2, 2], [2, 2, 3, 3]], scores=[0.5, 0.9, 0.9])
    assert found.most_confident().boxes.tolist() == [[1, 1, 2, 2]]
    assert len(Detections.of(9, 9).most_confident()) == 0


def test_objects_that_show_no_pixel_are_not_visible():
    found = Detections.of(4, 4, [[5, 5, 9, 9], [1, 1, 1, 3], [3, 3, 8, 8]], names=["outside", "flat", "corner"])
    assert found.visible().names == ("corner",)
    masks = np.zeros((2, 4, 4), bool)
    masks[1, 0, 0] = True
    assert Detections.of_masks(masks, names=["empty", "dot"]).visible().names == ("dot",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"boxes": [[0, 0, float("nan"), 1]]}, "box 0 is .* expected finite"),
        ({"boxes": [[3, 0, 1, 1]]}, "right >= left"),
        ({"boxes": [[0, 0, 1, 1]], "scores": [float("inf")]}, "scores are"),
        ({"boxes": [[0, 0, 1, 1]], "scores": [1.0, 2.0]}, "unequal lengths.*'scores': 2"),
        ({"boxes": [[0, 0, 1, 1]], "masks": np.ones((1, 8, 8), bool)}, "masks have 8 x 8 pixels, the picture 4 x 4"),
    ],
)
def test_answers_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Detections.of(4, 4, arguments.pop("boxes"), **arguments)


def test_a_crash_costs_one_picture_of_the_batch(caplog):
    inner = CrashesOn(2)
    guard = GuardedDetector(inner)
    with caplog.at_level(logging.WARNING):
        answers = guard.detect([picture(1), picture(2), picture(3)])
    assert [answer.failure for answer in answers] == [None, "RuntimeError: value 2", None]
    assert answers[1].pixel_mask().all() and answers[0].pixel_mask().sum() == 1
    assert inner.sizes == [3, 1, 1, 1]
    assert (guard.report.num_pictures, guard.report.num_failures, guard.report.num_crashes) == (3, 1, 1)
    assert "taken as a whole: RuntimeError: value 2" in caplog.text
    assert str(guard.report) == "1 of 3 pictures without an answer, each taken as a whole\n  RuntimeError: value 2"


def test_too_many_crashes_end_the_run_with_their_reasons():
    guard = GuardedDetector(CrashesOn(1, 2), max_crashes=2)
    guard.detect([picture(1), picture(2)])
    with pytest.raises(RuntimeError, match=r"(?s)more than 2 crashes.*value 1\n.*value 2"):
        guard.detect([picture(2)])
    with pytest.raises(ValueError, match="max_crashes is -1"):
        GuardedDetector(CrashesOn(), max_crashes=-1)


def test_a_clip_fails_as_a_whole_and_counts_as_one_crash():
    guard = GuardedDetector(build_detector("motion"), max_crashes=1)
    answers = guard.detect([picture(1)] * 2)  # too short to see motion
    assert all(answer.failure and "motion cannot be seen in 2" in answer.failure for answer in answers)
    assert (guard.report.num_failures, guard.report.num_crashes) == (2, 1)


def test_an_answer_of_another_picture_or_a_missing_answer_counts_as_a_crash():
    class Wrong:
        def __init__(self, answers):
            self.answers = answers

        def detect(self, pictures, sources=None):
            return self.answers

    small, none = GuardedDetector(Wrong([Detections.of(2, 2)])), GuardedDetector(Wrong([]))
    assert "for 2 x 2 pixels, its picture has 4 x 6" in str(small.detect([picture(1)])[0].failure)
    assert "0 answers for 1 pictures" in str(none.detect([picture(1)])[0].failure)


def test_detectors_are_rows_of_a_table():
    assert isinstance(build_detector("motion", min_pixels=4), ObjectDetector)
    assert set(DETECTORS) == {"yolo", "precomputed", "motion"}
    with pytest.raises(ValueError, match="unknown object detector 'yol'; did you mean 'yolo'"):
        build_detector("yol")
    with pytest.raises(ValueError, match=r"no setting \['treshold'\]; it has .*'threshold'"):
        build_detector("motion", treshold=3)


NO_PICTURES = [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]


@pytest.mark.parametrize("bad", NO_PICTURES)
def test_what_is_no_rgb_picture_is_refused_by_its_place(bad):
    with pytest.raises(ValueError, match="picture 1 is"):
        check_pictures([picture(0), bad])
    with pytest.raises(ValueError, match="picture 0 is str"):
        check_pictures(["hall.jpg"])


def test_336_pixels_become_352_and_boxes_and_masks_come_back():
    frame = Frame.around(336, 336)
    assert (frame.outer_height, frame.outer_width, frame.top, frame.left) == (352, 352, 8, 8)
    shown = np.arange(336 * 336 * 3, dtype=np.uint32).astype(np.uint8).reshape(336, 336, 3)
    outer = frame.put(shown)
    assert outer.shape == (352, 352, 3) and (outer[:8] == 114).all() and (outer[344:] == 114).all()
    assert np.array_equal(frame.masks_back(outer[None, ..., 0] > 0)[0], shown[..., 0] > 0)
    boxes = np.array([[8.0, 8, 344, 344], [0, 0, 20, 20]])
    assert frame.boxes_back(boxes).tolist() == [[0, 0, 336, 336], [-8, -8, 12, 12]]


def test_odd_sizes_put_the_extra_pixel_below_and_to_the_right():
    frame = Frame.around(33, 64)
    assert (frame.outer_height, frame.top, frame.outer_width, frame.left) == (64, 15, 64, 0)
    with pytest.raises(ValueError, match="masks have 33 x 64 pixels, expected 64 x 64"):
        frame.masks_back(np.zeros((1, 33, 64), bool))
    with pytest.raises(ValueError, match="stride is 0"):
        Frame.around(5, 5, stride=0)
