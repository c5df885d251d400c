"""What a detector found in one picture, valid from birth, and the pixel mask that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from llava.scene.patch_mask import boxes_to_mask, check_boxes


@dataclass(frozen=True, kw_only=True)
class Detections:
    """N objects of one picture; boxes are (left, top, right, bottom) in its pixels and may reach beyond it.

    Attributes:
        height, width: of the picture.
        names: of the classes, one per object.
        masks: of the objects, in the picture's size; None where the detector gives boxes only.
        failure: why there are no answers. Such a picture counts as one whole object: nothing of it is background,
            so nothing of it is taken from a cache or written to one.
    """

    height: int
    width: int
    boxes: Float[np.ndarray, "_ 4"]  # all have one row per object, checked below
    scores: Float[np.ndarray, " _"]
    class_ids: Int[np.ndarray, " _"]
    names: tuple[str, ...]
    masks: Bool[np.ndarray, "_ h w"] | None = None
    failure: str | None = None

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise ValueError(f"detections of a picture of {self.height} x {self.width} pixels, expected at least 1 x 1")
        lengths = {"boxes": len(self.boxes), "scores": len(self.scores), "class_ids": len(self.class_ids)}
        lengths |= {"names": len(self.names)} | ({} if self.masks is None else {"masks": len(self.masks)})
        if len(set(lengths.values())) > 1:
            raise ValueError(f"detections have unequal lengths {lengths}, expected one row per object in each")
        check_boxes(self.boxes)
        if not np.isfinite(self.scores).all():
            raise ValueError(f"scores are {self.scores.tolist()}, expected finite numbers; the detector is broken")
        if self.masks is not None and self.masks.shape[1:] != (self.height, self.width):
            raise ValueError(
                f"instance masks have {self.masks.shape[1]} x {self.masks.shape[2]} pixels, the picture "
                f"{self.height} x {self.width}; scale them to the picture (ultralytics: retina_masks=True)"
            )

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def of(
        cls,
        height: int,
        width: int,
        boxes: Sequence[Sequence[float | int]] | np.ndarray = (),
        *,
        scores: Sequence[float | int] | np.ndarray | None = None,
        class_ids: Sequence[int] | np.ndarray | None = None,
        names: Sequence[str] | None = None,
        masks: Bool[np.ndarray, "n h w"] | None = None,
    ) -> Detections:
        """From plain lists; score 1, class 0 and the name "object" where none are given."""
        found = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        return cls(
            height=height,
            width=width,
            boxes=found,
            scores=np.ones(len(found)) if scores is None else np.asarray(scores, dtype=np.float64),
            class_ids=np.zeros(len(found), np.int64) if class_ids is None else np.asarray(class_ids, dtype=np.int64),
            names=("object",) * len(found) if names is None else tuple(names),
            masks=masks,
        )

    @classmethod
    def of_masks(
        cls,
        masks: Bool[np.ndarray, "n h w"],
        *,
        scores: Sequence[float | int] | None = None,
        class_ids: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
    ) -> Detections:
        """Boxes follow from the masks; an empty mask gets a box without area."""
        boxes = [_box_of(mask) for mask in masks]
        height, width = masks.shape[1:]
        return cls.of(height, width, boxes, scores=scores, class_ids=class_ids, names=names, masks=masks)

    @classmethod
    def failed(cls, height: int, width: int, reason: str) -> Detections:
        """The whole picture as one object."""
        return replace(cls.of(height, width), failure=reason)

    def select(self, rows: Int[np.ndarray, " k"]) -> Detections:
        """Some of the objects, in the order asked for."""
        return replace(
            self,
            boxes=self.boxes[rows],
            scores=self.scores[rows],
            class_ids=self.class_ids[rows],
            names=tuple(self.names[row] for row in rows),
            masks=None if self.masks is None else self.masks[rows],
        )

    def most_confident(self) -> Detections:
        """The object with the highest score, the first of equals; nothing stays nothing."""
        return self.select(np.argsort(-self.scores, kind="stable")[:1])

    def visible(self) -> Detections:
        """Without the objects that show no pixel of the picture: outside it, or without area."""
        if self.masks is not None:
            return self.select(np.flatnonzero(self.masks.any(axis=(1, 2))))
        inside = np.clip(self.boxes, 0, [self.width, self.height, self.width, self.height])
        return self.select(np.flatnonzero((inside[:, 0] < inside[:, 2]) & (inside[:, 1] < inside[:, 3])))

    def pixel_mask(self) -> Bool[np.ndarray, "h w"]:
        """True where an object is: by the instance masks, else by the boxes; everywhere after a failure."""
        if self.failure is not None:
            return np.ones((self.height, self.width), dtype=bool)
        if self.masks is not None:
            return np.any(self.masks, axis=0, keepdims=True)[0]
        return boxes_to_mask(self.boxes, self.height, self.width)


def _box_of(mask: Bool[np.ndarray, "h w"]) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
