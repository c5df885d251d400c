"""Where every pixel of a picture goes on its way to a vision tower: one map per view, in whole numbers, so exact.

It repeats in numbers what `mm_utils.to_uint8_tensor`, `mm_utils.process_images` and `utils.cutting` do to pixels; a
property test holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from llava.batch import VisualSpec
from llava.utils.registry import Registry
from llava.utils.tiles import count_tiles, tile_grid

KERNEL_RADIUS = 2
"""Of the bicubic kernel, in pixels of the coarser side."""


@dataclass(frozen=True, kw_only=True)
class AxisMap:
    """One axis of a picture on its way to one axis of a view: padded, resized, then cut.

    Attributes:
        source: pixels of the picture.
        before: fill pixels in front of them.
        padded: pixels with the fill on both sides.
        resized: pixels that `padded` becomes.
        start: resized pixel at which the view begins; negative where the view begins with fill.
        view: pixels of the view.
    """

    source: int
    before: int
    padded: int
    resized: int
    start: int
    view: int

    def __post_init__(self) -> None:
        if min(self.source, self.resized, self.view) < 1 or not 0 <= self.before <= self.padded - self.source:
            raise ValueError(f"{self} is no axis of a picture; expected lengths of at least 1 and room for the fill")

    def overlap(self, length: int) -> Float[np.ndarray, "bins source"]:
        """How much of each source pixel lies in each bin of `length` view pixels; a whole bin is `length * padded`.

        Bins that would reach beyond the view are left out: a tower's patches are whole.
        """
        first, last = self._bins(length)
        pixel = np.arange(self.source, dtype=np.int64) + self.before
        low = np.maximum(first[:, None] * self.padded, pixel * self.resized)
        high = np.minimum(last[:, None] * self.padded, (pixel + 1) * self.resized)
        return np.maximum(high - low, 0).astype(np.float64)  # integers far below 2^53

    def influence(self, length: int) -> Bool[np.ndarray, "bins source"]:
        """Which source pixels can change a value inside each bin of `length` view pixels, through the kernel too."""
        first, last = self._bins(length)
        first, last = np.maximum(first, 0), np.minimum(last, self.resized) - 1  # first and last resized pixel
        if self.resized == self.padded:
            low, high = first, last + 1
        else:
            reach = 2 * KERNEL_RADIUS * max(self.padded, self.resized)  # in half pixels of the finer grid
            low = ((2 * first + 1) * self.padded - reach) // (2 * self.resized)
            high = -((-(2 * last + 1) * self.padded - reach) // (2 * self.resized))
        pixel = np.arange(self.source) + self.before
        is_shown = (first <= last)[:, None]  # a bin of fill alone depends on nothing
        return is_shown & (pixel >= low[:, None]) & (pixel < high[:, None])

    def _bins(self, length: int) -> tuple[Int[np.ndarray, " bins"], Int[np.ndarray, " bins"]]:
        """First resized pixel of every bin, and the one after its last."""
        if not 1 <= length <= self.view:
            raise ValueError(f"bins of {length} pixels do not fit a view of {self.view}; expected 1 to {self.view}")
        first = np.arange(self.view // length, dtype=np.int64) * length + self.start
        return first, first + length


@dataclass(frozen=True, kw_only=True)
class ViewMap:
    """One square view of a picture."""

    rows: AxisMap
    columns: AxisMap

    @property
    def side(self) -> int:
        """Pixels of the view."""
        return self.rows.view


ViewBuilder = Callable[[VisualSpec, int, int], list[ViewMap]]
_MODES: Registry[ViewBuilder] = Registry("image mode")


def picture_views(spec: VisualSpec, height: int, width: int) -> list[ViewMap]:
    """The views of a picture of this size under `spec.aspect_mode`, in the order in which the tower reads them.

    A picture among others of its sample stays one view where `spec.view_rule.cuts` says so: give `one_view` its size.
    """
    if min(height, width) < 1:
        raise ValueError(f"a picture of {height} x {width} pixels has no patches; expected at least 1 x 1")
    return _MODES[spec.aspect_mode](spec, height, width)


def one_view(side: int, height: int, width: int) -> ViewMap:
    """The whole picture resized to a square, its aspect ratio not kept."""
    return ViewMap(rows=_stretched(height, side, 0, side), columns=_stretched(width, side, 0, side))


@_MODES.register("resize")
def _resize(spec: VisualSpec, height: int, width: int) -> list[ViewMap]:
    return [one_view(spec.image_size, height, width)]


@_MODES.register("pad")
def _pad(spec: VisualSpec, height: int, width: int) -> list[ViewMap]:
    square, side = max(height, width), spec.image_size

    def axis(length: int) -> AxisMap:
        before = (square - length) // 2
        return AxisMap(source=length, before=before, padded=square, resized=side, start=0, view=side)

    return [ViewMap(rows=axis(height), columns=axis(width))]


@_MODES.register("crop")
def _crop(spec: VisualSpec, height: int, width: int) -> list[ViewMap]:
    side = spec.image_size
    long = int(side * max(height, width) / min(height, width))
    resized = (side, long) if height <= width else (long, side)
    rows, columns = (
        _stretched(length, after, (after - side) // 2, side)
        for length, after in zip((height, width), resized, strict=True)
    )
    return [ViewMap(rows=rows, columns=columns)]


@_MODES.register("dynamic")
def _dynamic(spec: VisualSpec, height: int, width: int) -> list[ViewMap]:
    side = spec.image_size
    columns, rows = tile_grid(width, height, side, spec.min_tiles, spec.max_tiles)
    tiles = _tiles(height, width, rows * side, columns * side, side, (rows, columns))
    if count_tiles(columns, rows) == len(tiles):
        return tiles
    return [*tiles, one_view(side, height, width)]


@_MODES.register("dynamic_s2")
def _dynamic_s2(spec: VisualSpec, height: int, width: int) -> list[ViewMap]:
    rule = spec.dynamic_s2
    if rule is None:
        raise ValueError("aspect_mode is 'dynamic_s2' and the spec has no dynamic_s2 rule; take both from one model")
    side = rule.side
    return [
        tile
        for rows, columns in rule.layout(height, width).grids
        for tile in _tiles(height, width, rows * side, columns * side, side, (rows, columns))
    ]


@_MODES.register("anyres")
def _anyres(spec: VisualSpec, height: int, width: int) -> list[ViewMap]:
    rule = spec.anyres
    if rule is None:
        raise ValueError("aspect_mode is 'anyres' and the spec has no anyres rule; take both from one model")
    side, layout = rule.side, rule.layout(height, width)
    rows, columns = layout.rows * side, layout.columns * side
    if columns / width < rows / height:
        inside = min(math.ceil(height * columns / width), rows), columns
    else:
        inside = rows, min(math.ceil(width * rows / height), columns)
    tiles = _tiles(height, width, *inside, side, (layout.rows, layout.columns))
    return [one_view(side, height, width), *tiles]


def _tiles(height: int, width: int, inner_h: int, inner_w: int, side: int, grid: tuple[int, int]) -> list[ViewMap]:
    """Tiles row by row of a canvas of `grid` tiles; in its middle the picture, resized to `inner_h` x `inner_w`."""
    top, left = (grid[0] * side - inner_h) // 2, (grid[1] * side - inner_w) // 2
    return [
        ViewMap(
            rows=_stretched(height, inner_h, row * side - top, side),
            columns=_stretched(width, inner_w, column * side - left, side),
        )
        for row in range(grid[0])
        for column in range(grid[1])
    ]


def _stretched(source: int, resized: int, start: int, view: int) -> AxisMap:
    return AxisMap(source=source, before=0, padded=source, resized=resized, start=start, view=view)
