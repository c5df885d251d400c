"""Pictures with a background, an object that fills the rest, and what may happen to them; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from llava.scene.detector import ObjectDetector, build_detector

Picture = np.ndarray
"""uint8 [side, side, 3]"""


class StillCamera:
    """A smooth background, and objects in front of its lower rows that are always brighter.

    Args:
        share: of the rows of patches that stay background.
        patch: pixels.
    """

    def __init__(self, side: int, patch: int, share: float, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.side, self.patch = side, patch
        self.object_rows = max(1, round((1 - share) * (side // patch)))
        self.empty = _smooth(draw, side, 40, 120)

    @property
    def share(self) -> float:
        """Of the patches, as it came out on this grid."""
        return 1 - self.object_rows / (self.side // self.patch)

    def picture(self, seed: int) -> Picture:
        """The background with the object of that number."""
        shown, top = self.empty.copy(), self.side // self.patch - self.object_rows
        objects = _smooth(np.random.default_rng([seed, 1]), self.side, 175, 250)
        shown[top * self.patch :] = objects[top * self.patch :]
        return shown

    def probe(self, seed: int, contrast: int) -> tuple[Picture, int]:
        """A picture with a block of 5 x 5 pixels changed by `contrast` in the background, and the cell it lies in."""
        draw, shown = np.random.default_rng([seed, contrast]), self.picture(0)
        rows = max(1, self.side // self.patch - self.object_rows)
        row, col = int(draw.integers(rows)), int(draw.integers(self.side // self.patch))
        y, x = row * self.patch + self.patch // 4, col * self.patch + self.patch // 4
        shown[y : y + 5, x : x + 5] += np.uint8(contrast)
        return shown, row * (self.side // self.patch) + col

    def detector(self) -> ObjectDetector:
        """Finds what differs from the empty scene."""
        return build_detector("motion", background=self.empty, threshold=25)


def _smooth(draw: np.random.Generator, side: int, low: int, high: int) -> Picture:
    coarse = draw.integers(low, high, (8, 8, 3)).astype(np.float32)
    fine = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_LINEAR)
    grain = draw.integers(-3, 4, (side, side, 3))
    return np.clip(fine + grain, low, high).astype(np.uint8)


def jpeg(picture: Picture, quality: int = 85) -> Picture:
    _, code = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR))


def brighter(picture: Picture, levels: int = 12) -> Picture:
    return np.clip(picture.astype(np.int16) + levels, 0, 255).astype(np.uint8)


def shifted(picture: Picture, pixels: int = 2) -> Picture:
    return np.roll(picture, pixels, axis=1)


CHANGES: dict[str, Callable[[StillCamera, StillCamera], Picture]] = {
    "same picture": lambda camera, other: camera.picture(0),
    "new object": lambda camera, other: camera.picture(1),
    "JPEG noise": lambda camera, other: jpeg(camera.picture(0)),
    "lighting": lambda camera, other: brighter(camera.picture(0)),
    "shift 2 px": lambda camera, other: shifted(camera.picture(0)),
    "all new": lambda camera, other: other.picture(2),
}
"""What is seen after `camera.picture(0)` was, by column; `other` looks at another place."""
