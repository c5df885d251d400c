"""YOLO models of ultralytics: an untrained one through the whole path; nothing fetched, nothing written to the home."""

import copy
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from llava.scene.detector import build_detector

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def ultralytics(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("settings")))
        patch.setenv("YOLO_OFFLINE", "true")
        if find_spec("ultralytics") is None:
            pytest.skip("the extra 'yolo' is not installed: pip install 'llava[yolo]'")
        yield


@pytest.fixture(scope="module")
def segmenter(ultralytics):
    """Untrained: at confidence 0 it finds nonsense, which is enough to follow boxes and masks."""
    import torch

    torch.manual_seed(0)
    return build_detector("yolo", weights="yolov8n-seg.yaml", confidence=0, image_size=64, device="cpu", batch=2)


def test_without_the_package_the_error_carries_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(ImportError, match=r"pip install 'llava\[yolo\]'.*'precomputed' or 'motion'"):
        build_detector("yolo", weights="best.pt")


def test_an_untrained_segmenter_goes_through_the_whole_path(segmenter):
    wide = np.ascontiguousarray(PICTURE.transpose(1, 0, 2))
    answers = segmenter.detect([PICTURE, wide, PICTURE, PICTURE])
    assert [(a.height, a.width) for a in answers] == [(48, 40), (40, 48), (48, 40), (48, 40)]
    assert len(answers[0]) > 0 and answers[0].masks is not None
    assert answers[0].masks.shape == (len(answers[0]), 48, 40) and answers[0].masks.any()
    for again in answers[2:]:  # in one call with a mate, and alone in the last call
        assert np.allclose(again.scores, answers[0].scores, atol=1e-5)
        assert np.allclose(again.boxes, answers[0].boxes, atol=1e-2)


def test_threads_that_share_a_detector_get_the_objects_of_their_own_pictures(segmenter, monkeypatch):
    """A call of ultralytics that meets another one mixes up whose pictures it looks at."""
    predict, inside, most = segmenter.model.predict, [], []

    def watched(pictures, **settings):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        found = predict(pictures, **settings)
        inside.pop()
        return found

    shown = [np.full((48, 40, 3), 60 * number, dtype=np.uint8) for number in range(4)]
    alone = [segmenter.detect([picture])[0] for picture in shown]
    monkeypatch.setattr(segmenter.model, "predict", watched, raising=False)
    with ThreadPoolExecutor(4) as pool:
        together = [answer for (answer,) in pool.map(lambda picture: segmenter.detect([picture]), shown)]
    assert most == [1] * 4
    assert all(np.array_equal(one.boxes, other.boxes) for one, other in zip(alone, together, strict=True))
    assert copy.copy(segmenter)._one_at_a_time is not segmenter._one_at_a_time


def test_pillow_stays_as_it_was(segmenter, tmp_path):
    """The package replaces `PIL.Image.open` by one that starts pip when a picture cannot be decoded."""
    (tmp_path / "broken.png").write_text("no picture")
    with pytest.raises(UnidentifiedImageError):
        Image.open(tmp_path / "broken.png")


def test_pictures_reach_the_model_as_bgr_padded_to_32_and_boxes_come_back(segmenter, monkeypatch):
    seen = {}

    class Model:
        def predict(self, pictures, **settings):
            import torch
            from ultralytics.engine.results import Results

            seen.update(settings, pictures=pictures)
            boxes = torch.tensor([[12.0, 8.0, 22.0, 18.0, 0.9, 1], [4.0, 8.0, 10.0, 10.0, 0.5, 0]])
            return [Results(p, path="", names={0: "a", 1: "b"}, boxes=boxes) for p in pictures]

    monkeypatch.setattr(segmenter, "model", Model())
    monkeypatch.setattr(segmenter, "image_size", "native")
    (answer,) = segmenter.detect([PICTURE])
    outer = seen["pictures"][0]
    assert outer.shape == (64, 64, 3) and seen["imgsz"] == [64, 64]
    assert np.array_equal(outer[8:56, 12:52, ::-1], PICTURE)  # 48 x 40 in the middle of 64 x 64
    assert answer.boxes.tolist() == [[0, 0, 10, 10], [-8, 0, -2, 2]] and answer.names == ("b", "a")
    assert answer.visible().names == ("b",)
    monkeypatch.setattr(segmenter, "keep", "best")
    assert segmenter.detect([PICTURE])[0].names == ("b",)


def test_classes_are_kept_by_name_or_id(segmenter, ultralytics):
    from llava.scene.detectors.yolo import _class_ids

    names = segmenter.model.names
    assert _class_ids(["0", 2], names) == [0, 2]
    assert _class_ids([names[5], names[1]], names) == [1, 5]
    with pytest.raises(ValueError, match="no class 80; ids are 0 to 79"):
        _class_ids([80], names)
    with pytest.raises(ValueError, match="no class 'cup'; did you mean 'cap'"):
        _class_ids(["cup"], {0: "cap"})
    with pytest.raises(ValueError, match="expected a list of names or ids"):
        _class_ids([], names)


def test_a_weights_file_that_does_not_exist_is_never_fetched(ultralytics, tmp_path):
    for name in ("yolo11n.pt", "nonsense.pt"):
        with pytest.raises(ValueError, match=r"nothing is downloaded.*yolo_embedded\.sh"):
            build_detector("yolo", weights=tmp_path / name)
    with pytest.raises(ValueError, match=r"expected a \.pt file"):
        build_detector("yolo", weights="model.onnx")
    with pytest.raises(ValueError, match="neither a file nor a model that ultralytics knows"):
        build_detector("yolo", weights=tmp_path / "nonsense.yaml")
    with pytest.raises(ValueError, match="a model for 'classify'"):
        build_detector("yolo", weights="yolov8n-cls.yaml")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"confidence": 1.5}, "confidence is 1.5"),
        ({"keep": "some"}, "keep is 'some'"),
        ({"batch": 0}, "batch is 0"),
        ({"image_size": 16}, "image_size is 16"),
        ({"image_size": "large"}, "image_size is 'large'"),
    ],
)
def test_settings_that_mean_nothing_are_refused_before_a_model_is_read(settings, message):
    with pytest.raises(ValueError, match=message):
        build_detector("yolo", weights="yolov8n-seg.yaml", **settings)
