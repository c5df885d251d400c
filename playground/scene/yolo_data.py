"""Pictures of the embedded world with their true objects, in the files that ultralytics trains from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from llava.navigation.worlds import CameraProfile, EmbeddedWorldBatch, make_episodes
from llava.navigation.worlds.base import FORWARD, LEFT, RIGHT
from llava.utils import io

SHAPES = ("ball", "box", "cone", "cylinder")
HOUSES_AT_ONCE = 50
FINE = 8
"""Steps per pixel of an outline."""
MOST_HOUSES = 10
"""Per picture before a camera that sees nothing is given up."""
VAL_SEED = 1 << 20
"""Houses of the validation pictures begin here, so no room is in both parts."""


@dataclass(frozen=True, kw_only=True)
class PictureSet:
    """num_pictures are taken on random walks, `per_house` of each house.

    min_pixels: objects that show fewer are no labels: nobody could name them.
    keep_empty: share of the pictures without a label that is kept: most views of a room show walls, which teach little.
    """

    num_pictures: int
    first_seed: int
    level: str = "one_room"
    camera: CameraProfile = field(default_factory=CameraProfile)
    per_house: int = 4
    steps_between: int = 6
    min_pixels: int = 6
    keep_empty: float = 0.1


def walk_pictures(wanted: PictureSet) -> Iterator[tuple[UInt8[np.ndarray, "h w 3"], dict[int, str], np.ndarray]]:
    """RGB, the shape of every instance number, and the instance numbers of each picture."""
    made, seed, empty = 0, wanted.first_seed, 0
    while made < wanted.num_pictures:
        if seed - wanted.first_seed > MOST_HOUSES * (wanted.num_pictures + HOUSES_AT_ONCE):
            raise ValueError(
                f"{made} of {wanted.num_pictures} pictures show an object, is the camera turned away? {wanted}"
            )
        count = min(HOUSES_AT_ONCE, -(-(wanted.num_pictures - made) // wanted.per_house))
        worlds = EmbeddedWorldBatch(make_episodes(wanted.level, range(seed, seed + count)), wanted.camera)
        random, seed = np.random.default_rng(seed), seed + count
        for _ in range(wanted.per_house):
            for _ in range(wanted.steps_between):
                worlds.step(random.choice([FORWARD, FORWARD, LEFT, RIGHT], size=count))
            frames = worlds.render()
            for house in range(count):
                if made == wanted.num_pictures:
                    return
                names = {i + 1: name.split()[-1] for i, name in enumerate(worlds.houses.object_names(house))}
                sizes = np.bincount(frames.instance_ids[house].ravel(), minlength=2)[1:]
                if sizes.max() < wanted.min_pixels:
                    empty += 1
                    if int(empty * wanted.keep_empty) == int((empty - 1) * wanted.keep_empty):
                        continue
                yield frames.rgb[house], names, frames.instance_ids[house]
                made += 1


def write_yolo_data(out: Path, parts: dict[str, PictureSet], *, polygons: bool) -> Path:
    """`images/`, `labels/` and `data.yaml` below `out`; the path of the latter.

    Args:
        parts: name of the part ("train", "val") -> its pictures.
        polygons: outlines for a model that segments, boxes for one that detects.
    """
    for part, wanted in parts.items():
        images, labels = out / "images" / part, out / "labels" / part
        for folder in (images, labels):
            shutil.rmtree(folder, ignore_errors=True)  # pictures of an earlier, larger run
            folder.mkdir(parents=True)
        for number, (rgb, names, ids) in enumerate(walk_pictures(wanted)):
            Image.fromarray(rgb).save(images / f"{number:06d}.png")
            lines = label_lines(ids, names, wanted.min_pixels, polygons=polygons)
            (labels / f"{number:06d}.txt").write_text("".join(f"{line}\n" for line in lines))
    described = {"path": str(out.resolve()), **{part: f"images/{part}" for part in parts}}
    io.save(out / "data.yaml", {**described, "names": dict(enumerate(SHAPES))})
    return out / "data.yaml"


def label_lines(
    instance_ids: UInt8[np.ndarray, "h w"], names: dict[int, str], min_pixels: int, *, polygons: bool
) -> list[str]:
    """One line per visible object: class, then numbers as shares of the picture's width and height."""
    lines = []
    for number, name in names.items():
        mask = instance_ids == number
        if mask.sum() >= min_pixels and (numbers := _outline(mask) if polygons else _box(mask)):
            lines.append(" ".join([str(SHAPES.index(name)), *(f"{value:.6f}" for value in numbers)]))
    return lines


def _box(mask: Bool[np.ndarray, "h w"]) -> list[float]:
    """Centre, width and height."""
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    middle = (left + right) / 2 / width, (top + bottom) / 2 / height
    return [*middle, (right - left) / width, (bottom - top) / height]


def _outline(mask: Bool[np.ndarray, "h w"]) -> list[float]:
    """Corners of the largest part; an object that another cuts in two keeps its larger half.

    They lie 1/16 pixel inside the part's outer edges: ultralytics takes the box from them, and cuts them down to whole
    pixels where it fills the mask, so both come out right.
    """
    height, width = mask.shape
    fine = mask.repeat(FINE, axis=0).repeat(FINE, axis=1).astype(np.uint8)
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    points = max(contours, key=cv2.contourArea).reshape(-1, 2)
    return ((points + 0.5) / FINE / np.array([width, height])).ravel().tolist()
