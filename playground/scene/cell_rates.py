"""What a background/object split needs of a detector: the cells that show objects, and no others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool

from llava.batch import VisualSpec
from llava.scene.detections import Detections
from llava.scene.patch_mask import PatchRule, patch_masks


@dataclass(frozen=True, kw_only=True)
class CellCounts:
    """Cells of all pictures together: those that truly show an object, and those that a detector takes for one."""

    object_cells: int = 0
    objects_found: int = 0
    background_cells: int = 0
    background_taken: int = 0

    @property
    def recall(self) -> float:
        """Share of the object cells that are found. The others are answered with a background that shows objects."""
        return self.objects_found / self.object_cells

    @property
    def false_share(self) -> float:
        """Share of the background cells that are taken for objects. They are computed again and nothing is wrong."""
        return self.background_taken / self.background_cells

    def to_dict(self) -> dict[str, Any]:
        return {"recall": self.recall, "false_share": self.false_share, **vars(self)}


def count_cells(
    answers: Iterable[tuple[Detections, Bool[np.ndarray, "h w"]]], spec: VisualSpec, rule: PatchRule
) -> CellCounts:
    """
    Args:
        answers: for every picture what was found, and which pixels truly show an object.
        rule: of what was found. The truth is cut by the same rule without its dilation.

    Raises:
        ValueError: there is no cell of either kind, so there is no share of them.
    """
    exact, numbers = replace(rule, dilation=0), np.zeros(4, dtype=np.int64)
    for found, truth in answers:
        for taken, shown in zip(
            patch_masks(found.pixel_mask(), spec, rule), patch_masks(truth, spec, exact), strict=True
        ):
            is_taken, is_object = taken.cells, shown.cells
            parts = (is_object, is_object & is_taken, ~is_object, ~is_object & is_taken)
            numbers += [int(part.sum()) for part in parts]
    objects, found_objects, background, taken_background = map(int, numbers)
    if not objects or not background:
        raise ValueError(
            f"the pictures have {objects} object cells and {background} background cells, expected some of both; "
            "take more pictures or smaller patches"
        )
    return CellCounts(
        object_cells=objects,
        objects_found=found_objects,
        background_cells=background,
        background_taken=taken_background,
    )
