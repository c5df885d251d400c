"""Did the camera move? Phase correlation of two pictures; whole cells of motion can be followed, parts cannot."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, Shaped
from numpy import ndarray
from torch import Tensor

MIN_RESPONSE = 0.1
"""Share of the correlation's energy at its peak below which two pictures have no common motion."""
STILL_PIXELS = 0.5
"""Motion below this is none: phase correlation is hardly finer on small noisy pictures, and the guard looks anyway."""


@dataclass(frozen=True)
class CameraMotion:
    """Pixels that the scene moved down and to the right."""

    down: float
    right: float

    @property
    def is_still(self) -> bool:
        return max(abs(self.down), abs(self.right)) < STILL_PIXELS

    def whole_cells(self, cell_pixels: int) -> tuple[int, int] | None:
        """(rows, columns) where the motion is a whole number of cells, else None."""
        cells = round(self.down / cell_pixels), round(self.right / cell_pixels)
        off = max(abs(self.down - cells[0] * cell_pixels), abs(self.right - cells[1] * cell_pixels))
        return cells if off < STILL_PIXELS else None


def luminance(pixels: Shaped[Tensor, "t c h w"]) -> Float32[ndarray, "t h w"]:
    """Mean of the channels, in main memory."""
    return pixels.float().mean(1).cpu().numpy()


def camera_motion(before: Float32[ndarray, "t h w"], after: Float32[ndarray, "t h w"]) -> CameraMotion | None:
    """The motion that all frames share; None where there is none to be seen."""
    height, width = before.shape[1:]
    taper = cv2.createHanningWindow((width, height), cv2.CV_32F)
    found = [_of_frame(first, second, taper) for first, second in zip(before, after, strict=True)]
    seen = [motion for motion in found if motion is not None]
    if len(seen) < len(found):
        return None
    down, right = (np.array([getattr(motion, axis) for motion in seen]) for axis in ("down", "right"))
    if max(np.ptp(down), np.ptp(right)) >= 2 * STILL_PIXELS:
        return None
    return CameraMotion(float(np.median(down)), float(np.median(right)))


def _of_frame(
    before: Float32[ndarray, "h w"], after: Float32[ndarray, "h w"], taper: Float32[ndarray, "h w"]
) -> CameraMotion | None:
    if before.std() == 0 or after.std() == 0:  # a blank picture moves nowhere
        return None
    (right, down), response = cv2.phaseCorrelate(before - before.mean(), after - after.mean(), taper)
    return CameraMotion(down, right) if response >= MIN_RESPONSE else None
