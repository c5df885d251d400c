"""Boxes and pixel masks become patch masks: which patches of a view show an object, by whole cells of the projector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped

from llava.batch import VisualSpec
from llava.scene.geometry import ViewMap, picture_views


@dataclass(frozen=True, kw_only=True)
class PatchRule:
    """When a patch is an object patch.

    Attributes:
        patch_size: pixels of the tower's patches.
        cell: patches on each side of the square that the projector makes one token of (`downsample_rate`). A cell is
            object or background as a whole.
        dilation: cells by which the objects grow, diagonals included.
        bit_exact: a patch is an object patch if an object pixel can change any of its values, also through the bicubic
            kernel of the resizing; background patches then have the same bits whatever the objects look like. False:
            if object pixels cover it, whatever the kernel mixes in.
        min_share: smallest covered share of a patch; 0 = any. More than 0 leaves object pixels in the background, so
            it excludes `bit_exact`.
    """

    patch_size: int
    cell: int = 1
    dilation: int = 0
    bit_exact: bool = True
    min_share: float | int = 0.0

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.cell < 1 or self.dilation < 0:
            raise ValueError(
                f"patch_size is {self.patch_size}, cell {self.cell} and dilation {self.dilation}; "
                "expected at least 1, 1 and 0"
            )
        if not 0 <= self.min_share <= 1:
            raise ValueError(f"min_share is {self.min_share}, expected 0 (any overlap) to 1 (the whole patch)")
        if self.min_share > 0 and self.bit_exact:
            raise ValueError(
                f"min_share is {self.min_share} and bit_exact is on: patches below the share show object pixels, so "
                "their bits depend on the objects; set bit_exact=False, or min_share=0 and a dilation"
            )


@dataclass(frozen=True, kw_only=True)
class PatchMask:
    """One view: True = object. A cell and all its patches always agree.

    Attributes:
        patches: as the tower sees them, row by row.
        cells: as the language model sees them; where `cell` does not divide the grid, the last row and column of cells
            hold patches of zeros that the projector adds.
        cell: patches on each side of a cell.
    """

    patches: Bool[np.ndarray, "grid grid"]
    cells: Bool[np.ndarray, "coarse coarse"]
    cell: int

    @property
    def object_share(self) -> float:
        """Of the tokens that the language model gets."""
        return float(self.cells.mean())


def patch_masks(mask: Bool[np.ndarray, "h w"], spec: VisualSpec, rule: PatchRule) -> list[PatchMask]:
    """A pixel mask of the original picture (True = object) in every view that the tower reads."""
    return [to_patches(mask, view, rule) for view in picture_views(spec, *mask.shape)]


def to_patches(mask: Bool[np.ndarray, "h w"], view: ViewMap, rule: PatchRule) -> PatchMask:
    """A pixel mask of the original picture in one of its views: covered patches, whole cells, dilation."""
    if rule.bit_exact:
        touched = touched_bins(mask, view, rule.patch_size)
    else:
        shares = patch_shares(mask, view, rule.patch_size)
        touched = (shares > 0) & (shares >= rule.min_share)
    cells = dilate(snap(touched, rule.cell), rule.dilation)
    return PatchMask(patches=patches_of_cells(cells, len(touched), rule.cell), cells=cells, cell=rule.cell)


def touched_bins(mask: Bool[np.ndarray, "h w"], view: ViewMap, length: int) -> Bool[np.ndarray, "bins bins"]:
    """Squares of `length` view pixels that an object pixel can change; length 1 is the mask at the model's size."""
    _check_size(mask, view)
    rows, columns = view.rows.influence(length), view.columns.influence(length)
    return _between(rows.astype(np.float64), mask, columns.astype(np.float64)) > 0


def patch_shares(mask: Bool[np.ndarray, "h w"], view: ViewMap, patch_size: int) -> Float[np.ndarray, "grid grid"]:
    """Exact share of every patch's area that object pixels cover; fill counts as background."""
    _check_size(mask, view)
    covered = _between(view.rows.overlap(patch_size), mask, view.columns.overlap(patch_size))
    return covered / (patch_size * view.rows.padded * patch_size * view.columns.padded)


def _between(rows: np.ndarray, mask: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """rows @ mask @ columns.T, over the rectangle that has objects; sums of integers, so exact in float64."""
    high, wide = (_stretch(np.any(mask, axis=axis)) for axis in (1, 0))
    inner = mask[high, wide].astype(np.float64)
    return _in_bins(columns[:, wide], _in_bins(rows[:, high], inner).T).T


def _stretch(values: Shaped[np.ndarray, "n"]) -> slice:
    """From the first to the last that is not zero; empty where all are."""
    (used,) = values.nonzero()
    return slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0)


def _in_bins(weights: Float[np.ndarray, "bins n"], values: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "bins m"]:
    """weights @ values, each bin over its own stretch and without BLAS.

    Idle threads of OpenBLAS spin for about 0.1 s after a product, on the cores that the model needs next.
    """
    sums = np.zeros((len(weights), values.shape[1]))
    for weight, total in zip(weights, sums, strict=True):
        stretch = _stretch(weight)
        np.einsum("n,nm->m", weight[stretch], values[stretch], out=total)
    return sums


def _check_size(mask: np.ndarray, view: ViewMap) -> None:
    expected = view.rows.source, view.columns.source
    if mask.shape != expected:
        raise ValueError(
            f"the object mask has {mask.shape[0]} x {mask.shape[1]} pixels (height x width), the picture "
            f"{expected[0]} x {expected[1]}; give the mask in pixels of the original picture"
        )


def snap(patches: Bool[np.ndarray, "grid grid"], cell: int) -> Bool[np.ndarray, "coarse coarse"]:
    """Cells with at least one object patch; a grid that the cell does not divide gets zeros below and to the right."""
    missing = -len(patches) % cell
    padded = np.pad(patches, ((0, missing), (0, missing)))
    coarse = len(padded) // cell
    return np.asarray(padded.reshape(coarse, cell, coarse, cell).any(axis=(1, 3)))


def dilate(cells: Bool[np.ndarray, "coarse coarse"], reach: int) -> Bool[np.ndarray, "coarse coarse"]:
    """Every cell within `reach` of an object cell, diagonals included."""
    if reach == 0:
        return cells
    size = len(cells)
    padded = np.pad(cells, reach)
    rows = np.logical_or.reduce([padded[shift : shift + size] for shift in range(2 * reach + 1)])
    return np.logical_or.reduce([rows[:, shift : shift + size] for shift in range(2 * reach + 1)])


def patches_of_cells(cells: Bool[np.ndarray, "coarse coarse"], grid: int, cell: int) -> Bool[np.ndarray, "grid grid"]:
    """The patches of every cell; those that only the projector's padding adds are left out."""
    return cells.repeat(cell, axis=0).repeat(cell, axis=1)[:grid, :grid]


def boxes_to_mask(boxes: Float[np.ndarray, "n 4"], height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Pixels that any box touches; boxes are (left, top, right, bottom) in pixels, pixel i covers i to i + 1.

    Parts outside the picture are cut off; a box without area inside it covers nothing.

    Raises:
        ValueError: for values that are no numbers, and boxes whose right or bottom comes first.
    """
    check_boxes(boxes)
    mask = np.zeros((height, width), dtype=bool)
    for left, top, right, bottom in np.clip(boxes, 0, [width, height, width, height]):
        if left < right and top < bottom:
            mask[int(np.floor(top)) : int(np.ceil(bottom)), int(np.floor(left)) : int(np.ceil(right))] = True
    return mask


def check_boxes(boxes: Float[np.ndarray, "n 4"]) -> None:
    """Refuses boxes that mean nothing; boxes outside a picture or without area are fine."""
    if not np.isfinite(boxes).all():
        row = int(np.flatnonzero(~np.isfinite(boxes).all(axis=1))[0])
        raise ValueError(f"box {row} is {boxes[row].tolist()}, expected finite pixels; the detector is broken")
    swapped = (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])
    if swapped.any():
        row = int(np.flatnonzero(swapped)[0])
        raise ValueError(
            f"box {row} is {boxes[row].tolist()}, expected (left, top, right, bottom) with right >= left and "
            "bottom >= top; is it (left, top, width, height)?"
        )
