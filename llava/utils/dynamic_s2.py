"""Sizes of pictures under NVILA's `dynamic_s2`: grids of tiles at every scale, and how many tokens come out of them.

The data side expands placeholders and the model side merges features by the same `DynamicS2Layout`, so the two cannot
disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llava.utils.anyres import UNCUT
from llava.utils.tiles import tile_grid


@dataclass(frozen=True, kw_only=True)
class DynamicS2Rule:
    """How a model of several scales was trained to read pictures of any size.

    Attributes:
        scales: sides in pixels, rising multiples of the first, which is the side of a tile. Smaller scales are squares
            of tiles; the grid of the largest has the shape of the picture.
        patches: side of the token grid of one tile, after the projector.
        max_tiles: most tiles of the largest scale; the fewest are those of its square.
        output: index of the scale whose grid the features of all scales are brought to; -1 = the largest.
    """

    scales: tuple[int, ...]
    patches: int
    max_tiles: int = 12
    output: int = 0

    def __post_init__(self) -> None:
        if not -len(self.scales) <= self.output < len(self.scales):
            raise ValueError(
                f"s2_resize_output_to_scale_idx is {self.output}, expected an index into s2_scales {self.scales}: "
                f"{-len(self.scales)}..{len(self.scales) - 1}"
            )
        if self.max_tiles < self.min_tiles:
            raise ValueError(
                f"max_tiles is {self.max_tiles}, expected at least {self.min_tiles}: the square of the largest scale "
                f"({self.scales[-1]}) has so many tiles of {self.side} pixels; raise max_tiles or leave out a scale"
            )

    @property
    def side(self) -> int:
        """Pixels of a tile."""
        return self.scales[0]

    @property
    def min_tiles(self) -> int:
        """Fewest tiles of the largest scale."""
        return (self.scales[-1] // self.side) ** 2

    @property
    def most_views(self) -> int:
        """As many uncut pictures take at least the tokens of any cut one."""
        if self.output % len(self.scales) == len(self.scales) - 1:
            return self.max_tiles
        return (self.scales[self.output] // self.side) ** 2

    def cuts(self, num_pictures: int) -> bool:
        """Whether the pictures of a sample are cut: only one that is alone, as NVILA does."""
        return num_pictures == 1

    def layout(self, height: int, width: int) -> DynamicS2Layout:
        """What becomes of a picture of this size; 0 x 0 stands for one that is not cut (a frame, one of several)."""
        if (height, width) == UNCUT:
            return DynamicS2Layout(rule=self, grids=())
        columns, rows = tile_grid(width, height, self.side, self.min_tiles, self.max_tiles)
        squares = [scale // self.side for scale in self.scales[:-1]]
        return DynamicS2Layout(rule=self, grids=(*((side, side) for side in squares), (rows, columns)))


@dataclass(frozen=True, kw_only=True)
class DynamicS2Layout:
    """One picture: (rows, columns) of tiles at every scale, from the smallest on; () for one that is not cut."""

    rule: DynamicS2Rule
    grids: tuple[tuple[int, int], ...]

    @property
    def num_tiles(self) -> int:
        """Pictures that the tower reads: scale after scale, tiles row by row."""
        return sum(rows * columns for rows, columns in self.grids) if self.grids else 1

    @property
    def shown(self) -> tuple[int, int]:
        """(rows, columns) in tiles of the map that the language model sees."""
        return self.grids[self.rule.output] if self.grids else (1, 1)

    @property
    def num_tokens(self) -> int:
        """Language-model positions."""
        rows, columns = self.shown
        return rows * columns * self.rule.patches**2


def read_scales(stored: Any) -> tuple[int, ...]:
    """Rising sides of a config's `s2_scales`: numbers, or a text of them.

    >>> read_scales("448,1344,896")
    (448, 896, 1344)
    """
    parts = stored.split(",") if isinstance(stored, str) else stored or ()
    return tuple(sorted(int(part) for part in parts))


def dynamic_s2_rule(config: Any, patches: int) -> DynamicS2Rule | None:
    """The rule of a model's config, read by name; None for models of other image modes.

    Raises:
        ValueError: for a config whose image mode is dynamic_s2 and whose tower has one scale.
    """
    if getattr(config, "image_aspect_ratio", None) != "dynamic_s2":
        return None
    scales = read_scales(getattr(config, "s2_scales", None))
    if not (getattr(config, "dynamic_s2", None) and scales):
        raise ValueError(
            "image_aspect_ratio is 'dynamic_s2' and the tower has one scale; set dynamic_s2 and s2_scales "
            "(--dynamic_s2 True --s2_scales 448,896,1344), or another image_aspect_ratio"
        )
    most, output = getattr(config, "max_tiles", None), getattr(config, "s2_resize_output_to_scale_idx", None)
    return DynamicS2Rule(scales=scales, patches=patches, max_tiles=12 if most is None else most, output=output or 0)
