"""The embedded world's true objects as labels: boxes and outlines by hand, no house in both parts."""

import cv2
import numpy as np
import pytest
from PIL import Image

from llava.navigation.worlds import CameraProfile
from llava.utils import io
from playground.scene.yolo_data import SHAPES, VAL_SEED, PictureSet, label_lines, walk_pictures, write_yolo_data

CAMERA = CameraProfile(width=32, height=24)


def test_a_box_is_centre_and_size_in_shares_of_the_picture():
    ids = np.zeros((10, 20), np.uint8)
    ids[2:6, 4:12] = 3
    (line,) = label_lines(ids, {3: "cone", 4: "ball"}, 6, polygons=False)
    assert line == f"{SHAPES.index('cone')} 0.400000 0.400000 0.400000 0.400000"


def outline(ids: np.ndarray, name: str = "box") -> np.ndarray:
    """Corners in pixels [n, 2] of object 1 of a square picture."""
    (line,) = label_lines(ids, {1: name}, 1, polygons=True)
    kind, *numbers = line.split()
    assert kind == str(SHAPES.index(name))
    return np.array(numbers, float).reshape(-1, 2) * len(ids)


def test_an_outline_lies_a_sixteenth_of_a_pixel_inside_the_edges_and_takes_the_larger_part():
    ids = np.zeros((10, 10), np.uint8)
    ids[2:5, 2:5] = ids[7:9, 7:9] = 1
    corners = sorted((x, y) for x in (2.0625, 4.9375) for y in (2.0625, 4.9375))
    assert sorted({(x, y) for x, y in outline(ids).round(4).tolist()}) == corners


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_an_outline_filled_by_whole_pixels_is_the_mask_again_at_every_scale(scale):
    """ultralytics cuts the corners of the enlarged picture down to whole pixels and fills them, rim included."""
    ids = np.zeros((16, 16), np.uint8)
    ids[3:9, 2:5] = ids[6:12, 4:11] = ids[2, 13] = 1
    filled = np.zeros((16 * scale, 16 * scale), np.uint8)
    cv2.fillPoly(filled, [(outline(ids) * scale).astype(np.int32)], color=1)
    ids[2, 13] = 0  # the smaller part
    assert (filled == ids.repeat(scale, axis=0).repeat(scale, axis=1)).all()


def test_one_pixel_has_an_outline():
    ids = np.zeros((8, 8), np.uint8)
    ids[7, 0] = 1
    corners = outline(ids)
    assert corners.min(axis=0).round(4).tolist() == [0.0625, 7.0625] and len(corners) == 4


def test_what_nobody_could_name_is_no_label():
    ids = np.zeros((10, 10), np.uint8)
    ids[0, :5] = 1
    assert label_lines(ids, {1: "box"}, 6, polygons=False) == []
    assert label_lines(ids, {1: "box"}, 5, polygons=True) != []


def test_most_pictures_that_show_nothing_are_left_out():
    def shows(keep_empty: float) -> float:
        wanted = PictureSet(num_pictures=40, first_seed=0, camera=CAMERA, keep_empty=keep_empty)
        return np.mean([any(label_lines(ids, names, 6, polygons=False)) for _, names, ids in walk_pictures(wanted)])

    assert shows(1.0) < 0.75 and shows(0.1) > 0.8 and shows(0.0) == 1.0


def test_pictures_and_labels_agree_and_the_same_seed_gives_the_same_files(tmp_path):
    parts = {
        "train": PictureSet(num_pictures=6, first_seed=0, camera=CAMERA),
        "val": PictureSet(num_pictures=3, first_seed=VAL_SEED, camera=CAMERA),
    }
    described = io.load(write_yolo_data(tmp_path / "a", parts, polygons=False))
    write_yolo_data(tmp_path / "b", parts, polygons=False)
    assert described["names"] == dict(enumerate(SHAPES)) and described["val"] == "images/val"
    pictures = sorted((tmp_path / "a" / "images" / "train").iterdir())
    assert len(pictures) == 6 and Image.open(pictures[0]).size == (32, 24)
    labels = [path.read_text() for path in sorted((tmp_path / "a" / "labels" / "train").iterdir())]
    assert len(labels) == 6 and any(labels)
    values = np.array([line.split()[1:] for text in labels for line in text.splitlines()], float)
    assert ((values > 0) & (values <= 1)).all()
    for path in (tmp_path / "a").rglob("*"):
        if path.suffix in (".png", ".txt"):
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    train, val = ((tmp_path / "a" / "images" / part / "000000.png").read_bytes() for part in parts)
    assert train != val
