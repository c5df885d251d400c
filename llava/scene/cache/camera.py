"""Did the camera move? Phase correlation of two backgrounds; whole cells of motion can be followed, parts cannot.

A thing that moves before a camera that stands still correlates too. Objects are therefore left out, and a motion counts
only if it explains the background better than no motion does.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Shaped
from numpy import ndarray
from torch import Tensor

MIN_RESPONSE = 0.1
"""Share of the correlation's energy at its peak below which two pictures have no common motion."""
STILL_PIXELS = 0.5
"""Motion below this is none: phase correlation is hardly finer on small noisy pictures, and the guard looks anyway."""
MAX_RESIDUAL = 0.8
"""Share of the difference without motion that may be left with it."""
MIN_OVERLAP = 0.25
"""Share of the pixels compared without motion that has to be compared with it."""
SOFT_EDGE = 8.0
"""Pixels over which the background fades towards objects: hard edges, which do not move, would say "still"."""


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


Light = Float32[ndarray, "t h w"]
Shown = Bool[ndarray, "t h w"]


def luminance(pixels: Shaped[Tensor, "t c h w"]) -> Light:
    """Mean of the channels, in main memory."""
    return pixels.float().mean(1).cpu().numpy()


def camera_motion(before: Light, after: Light, background: tuple[Shown, Shown] | None = None) -> CameraMotion | None:
    """The motion that all frames share; None where there is none to be seen.

    Args:
        background: pixels of either picture that show no object; None = all of them do.
    """
    everything = np.ones(before.shape, dtype=bool)
    shown = (everything, everything) if background is None else background
    proposals = [_common_motion(_softened(before, shown[0]), _softened(after, shown[1]))]
    if not (shown[0].all() and shown[1].all()):  # objects move with the camera: where they do not hide it, they help
        proposals.append(_common_motion(before, after))
    seen = [motion for motion in proposals if motion is not None]
    moved = [motion for motion in seen if not motion.is_still]
    if not moved:
        return seen[0] if seen else None
    still, overlap = _residual(before, after, shown, (0, 0))
    least, best = np.inf, moved[0]
    for motion in moved:
        left, common = _residual(before, after, shown, (round(motion.down), round(motion.right)))
        if left < least and common >= MIN_OVERLAP * overlap:
            least, best = left, motion
    return _refined(before, after, shown, best) if least < MAX_RESIDUAL * still else None


def _refined(before: Light, after: Light, shown: tuple[Shown, Shown], motion: CameraMotion) -> CameraMotion:
    """What is left of the motion once its whole pixels are undone, added: both pictures then show the same part."""
    down, right = round(motion.down), round(motion.right)
    (to_y, from_y), (to_x, from_x) = _overlap(down, before.shape[1]), _overlap(right, before.shape[2])
    both = shown[0][:, from_y, from_x] & shown[1][:, to_y, to_x]
    rest = _common_motion(_softened(before[:, from_y, from_x], both), _softened(after[:, to_y, to_x], both))
    return motion if rest is None else CameraMotion(down + rest.down, right + rest.right)


def _common_motion(before: Light, after: Light) -> CameraMotion | None:
    height, width = before.shape[1:]
    taper = cv2.createHanningWindow((width, height), cv2.CV_32F)
    found = [_of_frame(first, second, taper) for first, second in zip(before, after, strict=True)]
    seen = [motion for motion in found if motion is not None]
    if not seen or len(seen) < len(found):
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


def _softened(light: Light, shown: Shown) -> Light:
    """The background less its mean, fading to zero where objects are."""
    if shown.all():
        return light
    frames = []
    for frame, mask in zip(light, shown, strict=True):
        if not mask.any():
            frames.append(np.zeros_like(frame))
            continue
        weight = np.ones_like(frame) if mask.all() else cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
        frames.append((frame - frame[mask].mean()) * np.minimum(weight / SOFT_EDGE, 1))
    return np.stack(frames).astype(np.float32)


def _residual(before: Light, after: Light, shown: tuple[Shown, Shown], moved: tuple[int, int]) -> tuple[float, int]:
    """(mean difference of the backgrounds if the scene moved by so many pixels, number of pixels compared).

    Other light changes all pixels alike and says nothing about motion: the median difference is taken off.
    """
    to_y, from_y = _overlap(moved[0], before.shape[1])
    to_x, from_x = _overlap(moved[1], before.shape[2])
    both = shown[0][:, from_y, from_x] & shown[1][:, to_y, to_x]
    if not both.any():
        return np.inf, 0
    difference = (after[:, to_y, to_x] - before[:, from_y, from_x])[both]
    return float(np.abs(difference - np.median(difference)).mean()), difference.size


def _overlap(moved: int, length: int) -> tuple[slice, slice]:
    """Where the common part of an axis lies now, and where it lay before."""
    return slice(max(moved, 0), length + min(moved, 0)), slice(max(-moved, 0), length + min(-moved, 0))
