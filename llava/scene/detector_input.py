"""A picture grows to the multiple of pixels that a detector wants (336 -> 352), and boxes and masks come back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

GREY = 114
"""Fill that YOLO models are trained with."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The fill around a picture: centred, the odd pixel below and to the right; nothing is scaled."""

    height: int
    width: int
    top: int
    left: int
    outer_height: int
    outer_width: int

    @classmethod
    def around(cls, height: int, width: int, stride: int = 32) -> Frame:
        """Up to the next multiple of `stride` in both directions."""
        if stride < 1:
            raise ValueError(f"stride is {stride}, expected at least 1; YOLO models want 32")
        down, across = -height % stride, -width % stride
        return cls(
            height=height,
            width=width,
            top=down // 2,
            left=across // 2,
            outer_height=height + down,
            outer_width=width + across,
        )

    def put(self, picture: UInt8[np.ndarray, "h w 3"], fill: int = GREY) -> UInt8[np.ndarray, "_ _ 3"]:
        """The picture inside its fill."""
        outer = np.full((self.outer_height, self.outer_width, 3), fill, dtype=np.uint8)
        outer[self.top : self.top + self.height, self.left : self.left + self.width] = picture
        return outer

    def boxes_back(self, boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
        """Boxes in pixels of the picture; what reached into the fill now lies outside."""
        return boxes - np.array([self.left, self.top, self.left, self.top])

    def masks_back(self, masks: Bool[np.ndarray, "n _ _"]) -> Bool[np.ndarray, "n h w"]:
        if masks.shape[1:] != (self.outer_height, self.outer_width):
            raise ValueError(
                f"masks have {masks.shape[1]} x {masks.shape[2]} pixels, expected {self.outer_height} x "
                f"{self.outer_width}, the size that the detector was given"
            )
        return masks[:, self.top : self.top + self.height, self.left : self.left + self.width]
