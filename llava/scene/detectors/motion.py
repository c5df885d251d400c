"""Objects are what moves in a clip of a camera that stands still: background subtraction, no weights needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from llava.scene.detections import Detections
from llava.scene.detector import DETECTORS, Picture, check_pictures

WARM_UP_ROUNDS = 5
"""Times that MOG2 sees the clip before it is asked: the first pictures are judged by the same model as the last."""
BACKGROUND_RATIO = 0.5
"""Share of the time for which the colours of the background, all of them together, are seen at least."""


@DETECTORS.register("motion")
class MotionDetector:
    """The pictures of one call are one clip, in order; each answer depends on all of them.

    With a moving camera nearly everything counts as moving, which is right for a cache: nothing repeats.

    Args:
        method: "median" = difference to the median picture, for a background that is seen more than half of the time;
            "mog2" = OpenCV's mixture of Gaussians, which also learns a background that flickers.
        threshold: smallest difference in grey levels of a colour channel ("median"), above the sensor's noise.
        variance_threshold: smallest squared distance in standard deviations ("mog2").
        min_pixels: regions with fewer pixels are noise.
        background: a picture of the empty scene; differences are then taken to it, and single pictures have an answer.
    """

    sees_clips = True

    def __init__(
        self,
        *,
        method: str = "median",
        threshold: int = 20,
        variance_threshold: float | int = 16.0,
        min_pixels: int = 8,
        background: Picture | None = None,
    ) -> None:
        if method not in ("median", "mog2"):
            raise ValueError(f"method is {method!r}, expected 'median' or 'mog2'")
        if not 0 <= threshold <= 255 or variance_threshold <= 0 or min_pixels < 1:
            raise ValueError(
                f"threshold is {threshold}, variance_threshold {variance_threshold}, min_pixels {min_pixels}; "
                "expected 0 to 255, above 0, at least 1"
            )
        if background is not None:
            check_pictures([background])
            if method != "median":
                raise ValueError("a background picture goes with method 'median'; 'mog2' learns its own")
        self.method, self.threshold, self.min_pixels = method, threshold, min_pixels
        self.variance_threshold, self.background = variance_threshold, background

    def detect(self, pictures: Sequence[Picture], sources: Sequence[str | Path] | None = None) -> list[Detections]:
        """
        Raises:
            ValueError: for fewer than 3 pictures without a background picture, or pictures of unequal size.
        """
        check_pictures(pictures)
        if not len(pictures):
            return []
        others = [] if self.background is None else [self.background]
        if len(shapes := {picture.shape[:2] for picture in [*pictures, *others]}) > 1:
            raise ValueError(f"a clip has pictures of sizes {sorted(shapes)}, expected one size; give each clip alone")
        if len(pictures) < 3 and self.background is None:
            raise ValueError(
                f"motion cannot be seen in {len(pictures)} picture(s); give a clip of at least 3, or a picture of the "
                "empty scene as background, or use another detector"
            )
        clip = np.stack(pictures)
        moving = self._differences(clip) if self.method == "median" else self._mixture(clip)
        return [self._regions(mask) for mask in moving]

    def _differences(self, clip: UInt8[np.ndarray, "t h w 3"]) -> list[UInt8[np.ndarray, "h w"]]:
        still = np.median(clip, axis=0).astype(np.uint8) if self.background is None else self.background
        return [(cv2.absdiff(picture, still).max(axis=2) > self.threshold).astype(np.uint8) for picture in clip]

    def _mixture(self, clip: UInt8[np.ndarray, "t h w 3"]) -> list[UInt8[np.ndarray, "h w"]]:
        model = cv2.createBackgroundSubtractorMOG2(
            history=len(clip), varThreshold=self.variance_threshold, detectShadows=False
        )
        model.setBackgroundRatio(BACKGROUND_RATIO)
        for _ in range(WARM_UP_ROUNDS):
            for picture in clip:
                model.apply(picture, learningRate=0.5 / len(clip))
        return [(model.apply(picture, learningRate=0) > 0).astype(np.uint8) for picture in clip]

    def _regions(self, moving: UInt8[np.ndarray, "h w"]) -> Detections:
        """Connected regions of at least `min_pixels`, gaps of one pixel closed; the score is the share that is filled
        of the region's box."""
        # a rim of nothing, else regions near the border would grow to it
        rimmed = cv2.copyMakeBorder(moving, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=0)
        closed = cv2.morphologyEx(rimmed, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))[2:-2, 2:-2]
        count, labels, table, _ = cv2.connectedComponentsWithStats(closed, connectivity=8)
        large = [label for label in range(1, count) if table[label, cv2.CC_STAT_AREA] >= self.min_pixels]
        if not large:
            return Detections.of(*moving.shape)
        masks: Bool[np.ndarray, "n h w"] = np.stack([labels == label for label in large])
        boxes_area = table[large, cv2.CC_STAT_WIDTH] * table[large, cv2.CC_STAT_HEIGHT]
        scores = table[large, cv2.CC_STAT_AREA] / boxes_area
        return Detections.of_masks(masks, scores=scores.tolist(), names=["moving"] * len(large))
