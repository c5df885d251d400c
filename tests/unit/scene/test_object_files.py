"""Masks on disk: COCO's code, JSON and PNG, and the detector that reads them."""

import hashlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from llava.scene.detections import Detections
from llava.scene.detector import build_detector
from llava.scene.object_files import file_beside, from_record, read_png, to_record, write_png
from llava.scene.rle import decode_rle, encode_rle
from llava.utils import io

MADE_BY_PYCOCOTOOLS = "01Z6j0SJ00000000000000000000000000000HVO2j0NVO2j060000000000000000000000000000000000000000000U6"


def objects() -> Detections:
    masks = np.zeros((2, 4, 6), bool)
    masks[0, :2, :3] = masks[1, 3, 5] = True
    return Detections.of_masks(masks, scores=[0.5, 0.25], class_ids=[3, 7], names=["cup", "clock"])


def record_of(found: Detections, digest: str = "0" * 64) -> dict:
    return to_record(found, picture="a.png", digest=digest, detector={"name": "test"})


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3)).save(path)
    return path


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def same(first: Detections, second: Detections) -> bool:
    return (
        np.array_equal(first.boxes, second.boxes)
        and np.array_equal(first.scores, second.scores)
        and first.class_ids.tolist() == second.class_ids.tolist()
        and first.names == second.names
        and np.array_equal(first.pixel_mask(), second.pixel_mask())
    )


def test_the_code_is_that_of_cocos_tools():
    mask = np.zeros((40, 50), bool)
    mask[3:30, 5:45] = True
    mask[0, 0] = True
    mask[35, 20:22] = True
    code = encode_rle(mask)
    assert code == {"size": [40, 50], "counts": MADE_BY_PYCOCOTOOLS}
    assert np.array_equal(decode_rle({"size": [40, 50], "counts": MADE_BY_PYCOCOTOOLS.encode()}), mask)
    assert decode_rle({"size": [2, 2], "counts": [1, 2, 1]}).tolist() == [[False, True], [True, False]]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_every_mask_comes_back_from_its_code(mask):
    assert np.array_equal(decode_rle(encode_rle(mask)), mask)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ({"size": [2, 2], "counts": [1, 2]}, "cover 3 pixels, its size 2 x 2 has 4"),
        ({"size": [2, 2], "counts": "01Z"}, "middle of a number"),
        ({"size": [2, 2], "counts": "\x1f"}, "character"),
        ({"counts": [4]}, "expected {'size'"),
    ],
)
def test_damaged_codes_are_refused(code, message):
    with pytest.raises(ValueError, match=message):
        decode_rle(code)


def test_json_keeps_classes_scores_and_overlapping_masks(tmp_path):
    found = objects()
    io.save(tmp_path / "a.json", record_of(found))
    back = from_record(io.load(tmp_path / "a.json"), "a.json")
    assert same(found, back) and np.array_equal(back.masks, found.masks)


def test_boxes_without_masks_nothing_and_failures_come_back(tmp_path):
    boxes = Detections.of(4, 6, [[0.5, 1, 3, 2]], names=["ball"])
    assert same(from_record(record_of(boxes), "x"), boxes) and from_record(record_of(boxes), "x").masks is None
    assert len(from_record(record_of(Detections.of(4, 6)), "x")) == 0
    assert from_record(record_of(Detections.failed(4, 6, "boom")), "x").failure == "boom"
    write_png(tmp_path / "f.png", Detections.failed(4, 6, "boom"), record_of(Detections.failed(4, 6, "boom")))
    assert read_png(tmp_path / "f.png")[0].failure == "boom"


def test_png_shows_instance_numbers_and_keeps_the_rest_as_text(tmp_path):
    found = objects()
    write_png(tmp_path / "a.png", found, record_of(found))
    assert np.unique(pixels(tmp_path / "a.png")).tolist() == [0, 1, 2]
    back, record = read_png(tmp_path / "a.png")
    assert same(found, back) and record["sha256"] == "0" * 64


def test_a_png_of_instance_numbers_from_elsewhere_is_read_too(tmp_path):
    numbers = np.zeros((4, 6), np.uint8)
    numbers[0, 0], numbers[2, 2:4] = 9, 4
    Image.fromarray(numbers).save(tmp_path / "a.png")
    found, record = read_png(tmp_path / "a.png")
    assert found.boxes.tolist() == [[2, 2, 4, 3], [0, 0, 1, 1]] and record == {}
    Image.new("RGB", (4, 4)).save(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match="3 channels, expected one"):
        read_png(tmp_path / "rgb.png")


@pytest.mark.parametrize("kind", ["json", "png"])
def test_the_detector_reads_what_lies_beside_the_picture(picture, kind):
    found = objects()
    record = record_of(found, hashlib.sha256(picture.read_bytes()).hexdigest())
    if kind == "json":
        io.save(file_beside(picture, "json"), record)
    else:
        write_png(file_beside(picture, "png"), found, record)
    (answer,) = build_detector("precomputed").detect([pixels(picture)], [picture])
    assert same(answer, found)


def test_one_file_serves_a_folder(picture, tmp_path):
    record = record_of(objects(), hashlib.sha256(picture.read_bytes()).hexdigest())
    io.save(tmp_path / "objects.jsonl", [record])
    detector = build_detector("precomputed", file=tmp_path / "objects.jsonl")
    assert same(detector.detect([pixels(picture)], [picture])[0], objects())
    with pytest.raises(ValueError, match=r"no objects of .*b\.png; run scripts/make_object_masks\.py"):
        detector.detect([pixels(picture)], [tmp_path / "b.png"])


def test_objects_of_older_content_under_the_same_name_are_refused(picture):
    io.save(file_beside(picture, "json"), record_of(objects(), "f" * 64))
    with pytest.raises(ValueError, match="has changed since its objects were found"):
        build_detector("precomputed").detect([pixels(picture)], [picture])
    trusting = build_detector("precomputed", verify=False)
    assert same(trusting.detect([pixels(picture)], [picture])[0], objects())
    with pytest.raises(ValueError, match="for 4 x 6 pixels, the picture has 5 x 6"):
        trusting.detect([np.zeros((5, 6, 3), np.uint8)], [picture])


def test_pictures_without_a_file_or_without_objects_are_refused(picture):
    with pytest.raises(ValueError, match=r"each of 1 pictures as `sources`, got none"):
        build_detector("precomputed").detect([pixels(picture)])
    with pytest.raises(ValueError, match=r"no objects beside .*a\.png"):
        build_detector("precomputed").detect([pixels(picture)], [picture])
    with pytest.raises(ValueError, match="root is"):
        build_detector("precomputed", root=picture.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objects": [{}]}, "'bbox' is missing"),
        ({"version": 9}, "version 9, this program reads 1"),
        ({"size": None}, "size is None, expected"),
        (
            {"objects": [{"bbox": [0, 0, 1, 1], "segmentation": {"size": [9, 9], "counts": [81]}}]},
            "masks have 9 x 9 pixels, the picture 4 x 6",
        ),
        (
            {"objects": [{"bbox": [0, 0, 1, 1]}, {"bbox": [0, 0, 1, 1], "segmentation": {"size": [4, 6]}}]},
            "some objects have a segmentation",
        ),
    ],
)
def test_records_that_mean_nothing_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=r"(?s)hall\.json holds no objects.*" + message):
        from_record(record_of(objects()) | change, "hall.json")
