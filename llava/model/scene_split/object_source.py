"""Which patches of the pictures of a request are objects: told by the caller, or found when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from llava.batch import VisualSpec
from llava.scene.detections import Detections
from llava.scene.detector import ObjectDetector
from llava.scene.geometry import ViewMap, one_view, picture_views
from llava.scene.patch_mask import PatchRule, to_patches

PatchRow = Bool[Tensor, "p"]


class ObjectSource:
    """Patch masks of the N views of a request, True = object; a view is a picture, or a tile of one.

    Args:
        find: views -> their masks; asked once for each, and for all at once where `together`.
        is_known: `find` costs nothing, so that nobody needs to avoid it.
    """

    def __init__(
        self, num_views: int, find: Callable[[Sequence[int]], list[PatchRow]], *, is_known: bool, together: bool = False
    ) -> None:
        self.num_views, self.is_known = num_views, is_known
        self._find, self._together = find, together
        self._masks: dict[int, PatchRow] = {}
        self.looked_at: set[int] = set()
        """Views that a detector was asked about."""
        self.failures: dict[int, str] = {}
        """Views that are one whole object because the detector crashed, and why it did."""

    def patches(self, view: int) -> PatchRow:
        """[P], row by row over the grid of the tower."""
        if view not in self._masks:
            wanted = range(self.num_views) if self._together else [view]
            self._masks |= zip(wanted, self._find(wanted), strict=True)
            if not self.is_known:
                self.looked_at |= set(wanted)
        return self._masks[view]


def check_patches(name: str, patches: Any, num_views: int, grid_side: int, meaning: str) -> Bool[Tensor, "n p"]:
    """From bool [N, P] or [N, grid, grid], in main memory.

    Raises:
        ValueError: for another type or number.
    """
    masks = torch.as_tensor(patches).cpu()
    expected = f"torch.bool [{num_views}, {grid_side**2}]: one row per picture, {meaning}"
    if masks.dtype != torch.bool or masks.ndim not in (2, 3) or len(masks) != num_views:
        raise ValueError(f"{name} are {masks.dtype} {list(masks.shape)}, expected {expected}")
    flat = masks.flatten(1)
    if flat.shape[1] != grid_side**2:
        raise ValueError(
            f"{name} have {flat.shape[1]} patches, expected {expected}; make them with "
            "scene.patch_mask.patch_masks for this tower"
        )
    return flat


def given_patches(object_patches: Any, num_views: int, grid_side: int) -> ObjectSource:
    """From bool [N, P] or [N, grid, grid]."""
    flat = check_patches("object_patches", object_patches, num_views, grid_side, "True = object")
    return ObjectSource(num_views, lambda views: [flat[view] for view in views], is_known=True)


def given_masks(
    masks: Sequence[Bool[np.ndarray, "_ _"] | None], sizes: Sequence[tuple[int, int]], spec: VisualSpec, rule: PatchRule
) -> ObjectSource:
    """From pixel masks of the original pictures; None = no objects.

    Args:
        sizes: height and width of the pictures.

    Raises:
        ValueError: for another number of masks than pictures.
    """
    if len(masks) != len(sizes):
        raise ValueError(f"{len(masks)} object_masks were given for {len(sizes)} pictures, expected one each, or None")
    views = views_of(sizes, spec)
    shown = [np.zeros(size, dtype=bool) if mask is None else mask for mask, size in zip(masks, sizes, strict=True)]
    return ObjectSource(
        len(views), lambda asked: [_patches(shown[views[each][0]], views[each][1], rule) for each in asked],
        is_known=True,
    )  # fmt: skip


def detected(
    detector: ObjectDetector,
    pictures: Sequence[np.ndarray],
    spec: VisualSpec,
    rule: PatchRule,
    sources: Sequence[str | Path] | None = None,
) -> ObjectSource:
    """From a detector, asked about a picture when its mask is needed, and about all at once if it wants clips.

    Args:
        pictures: the originals, uint8 [H, W, 3].
        sources: their files, for detectors that look answers up.
    """
    views = views_of([picture.shape[:2] for picture in pictures], spec)
    found: dict[int, Detections] = {}
    together = bool(getattr(detector, "sees_clips", False))

    def find(asked: Sequence[int]) -> list[PatchRow]:
        wanted = sorted({views[each][0] for each in asked} - found.keys())
        named = None if sources is None else [sources[each] for each in wanted]
        if wanted:
            answers = detector.detect([pictures[each] for each in wanted], named)
            found.update(zip(wanted, answers, strict=True))
        source.failures |= {each: why for each in asked if (why := found[views[each][0]].failure) is not None}
        return [_patches(found[views[each][0]].pixel_mask(), views[each][1], rule) for each in asked]

    source = ObjectSource(len(views), find, is_known=False, together=together)
    return source


def views_of(sizes: Sequence[tuple[int, int]], spec: VisualSpec) -> list[tuple[int, ViewMap]]:
    """(picture, view) of everything that the tower reads. Only a picture that is alone is cut into tiles."""
    if spec.aspect_mode == "dynamic" and len(sizes) > 1:
        return [(number, one_view(spec.image_size, *size)) for number, size in enumerate(sizes)]
    return [(number, view) for number, size in enumerate(sizes) for view in picture_views(spec, *size)]


def frame_patches(mask: Bool[np.ndarray, "_ _"], spec: VisualSpec, rule: PatchRule) -> PatchRow:
    """The patches of a frame of a video, which is always one view, from its pixel mask."""
    height, width = mask.shape
    is_dynamic = spec.aspect_mode == "dynamic"
    view = one_view(spec.image_size, height, width) if is_dynamic else picture_views(spec, height, width)[0]
    return _patches(mask, view, rule)


def _patches(mask: np.ndarray, view: ViewMap, rule: PatchRule) -> PatchRow:
    return torch.from_numpy(to_patches(mask, view, rule).patches).flatten()
