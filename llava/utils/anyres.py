"""Sizes of pictures under `anyres` (LLaVA-1.6, OneVision): which grid of tiles, and how many tokens come out of it.

The data side expands placeholders and the model side merges features by the same `AnyresLayout`, so the two cannot
disagree. Rounding is that of transformers, which differs from the original code for a few sizes by a row or a column.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_RANGE = re.compile(r"\((\d+)x(\d+)\),\.\.\.,\((\d+)x(\d+)\)")
_MAX = re.compile(r"anyres_max_(\d+)")

UNCUT = (0, 0)
"""Size of a picture that stays one view."""


@dataclass(frozen=True, kw_only=True)
class AnyresRule:
    """How a model was trained to read pictures of any size.

    Attributes:
        resolutions: (height, width) in pixels of the canvases that a picture may be fitted into.
        patches: side of the patch grid of one tile, after the projector.
        side: pixels of a tile.
        merge: "spatial_unpad" cuts the letterbox away and ends each row with a newline token, "spatial" keeps it and
            has no newlines, "flat" lays tile after tile.
        most_tiles: above so many tiles' worth of tokens the merged grid is shrunk (OneVision's `anyres_max_9`).
    """

    resolutions: tuple[tuple[int, int], ...]
    patches: int
    side: int
    merge: str = "spatial_unpad"
    most_tiles: int | None = None

    def __post_init__(self) -> None:
        if not self.resolutions:
            raise ValueError("anyres needs image_grid_pinpoints, e.g. [[336, 672], [672, 336]]; the config has none")
        odd = [r for r in self.resolutions if r[0] % self.side or r[1] % self.side or min(r) < self.side]
        if odd:
            raise ValueError(f"image_grid_pinpoints {odd[0]} is no multiple of the tower's {self.side} pixels")
        if self.merge not in ("spatial_unpad", "spatial", "flat"):
            raise ValueError(
                f"mm_patch_merge_type is {self.merge!r}, expected spatial_unpad, spatial or flat; others are not built"
            )

    def layout(self, height: int, width: int) -> AnyresLayout:
        """What becomes of a picture of this size; 0 x 0 stands for one that is not cut (a frame of a video)."""
        if (height, width) == UNCUT:
            return AnyresLayout(rule=self, rows=0, columns=0, kept=UNCUT, shown=UNCUT)
        canvas = best_resolution(height, width, self.resolutions)
        rows, columns = canvas[0] // self.side, canvas[1] // self.side
        full = rows * self.patches, columns * self.patches
        kept = unpadded(height, width, *full) if self.merge == "spatial_unpad" else full
        return AnyresLayout(rule=self, rows=rows, columns=columns, kept=kept, shown=self._shrunk(*kept))

    def cuts(self, num_pictures: int) -> bool:
        """Whether the pictures of a sample are cut: any number of them."""
        return num_pictures > 0

    @property
    def most_views(self) -> int:
        """Views of the picture that is cut into most."""
        return 1 + max(height * width for height, width in self.resolutions) // self.side**2

    def _shrunk(self, height: int, width: int) -> tuple[int, int]:
        if self.most_tiles is None:
            return height, width
        times = math.sqrt(height * width / (self.most_tiles * self.patches**2))
        return (int(height // times), int(width // times)) if times > 1.1 else (height, width)


@dataclass(frozen=True, kw_only=True)
class AnyresLayout:
    """One picture: `rows` x `columns` tiles behind the whole picture; features kept of their grid, and shown."""

    rule: AnyresRule
    rows: int
    columns: int
    kept: tuple[int, int]
    shown: tuple[int, int]

    @property
    def num_tiles(self) -> int:
        """Pictures that the tower reads: the whole one first, then its tiles row by row."""
        return 1 + self.rows * self.columns

    @property
    def num_tokens(self) -> int:
        """Language-model positions."""
        base = self.rule.patches**2
        if self.rule.merge == "flat":
            return base * self.num_tiles
        height, width = self.shown
        return base + height * (width + self.has_newlines)

    @property
    def has_newlines(self) -> bool:
        return self.rule.merge == "spatial_unpad"


def best_resolution(height: int, width: int, resolutions: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """(height, width) that shows most of the picture's pixels, and among these wastes least.

    >>> best_resolution(300, 1000, [(336, 672), (672, 672), (336, 1008)])
    (336, 1008)
    """

    def merit(resolution: tuple[int, int]) -> tuple[int, int]:
        scale = min(resolution[1] / width, resolution[0] / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return shown, -(resolution[0] * resolution[1] - shown)

    if min(height, width) < 1:
        raise ValueError(f"a picture of {width} x {height} pixels has no content")
    return max(resolutions, key=merit)


def unpadded(height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of a feature grid that lie inside a letterboxed picture of that height and width."""
    if width / height > columns / rows:
        content = int(round(height * columns / width, 7))
        return rows - 2 * ((rows - content) // 2), columns
    content = int(round(width * rows / height, 7))
    return rows, columns - 2 * ((columns - content) // 2)


def most_tiles_of(image_aspect_ratio: str) -> int | None:
    """9 of "anyres_max_9"; None of "anyres".

    Raises:
        ValueError: for another word.
    """
    if match := _MAX.fullmatch(image_aspect_ratio):
        return int(match[1])
    if image_aspect_ratio != "anyres":
        raise ValueError(
            f"image_aspect_ratio is {image_aspect_ratio!r}, expected anyres or anyres_max_N (anyres_max_9)"
        )
    return None


def read_pinpoints(stored: Any, side: int) -> tuple[tuple[int, int], ...]:
    """(height, width) pairs of a config: a list of them, or a range of tiles in words.

    >>> read_pinpoints("(1x1),...,(1x2)", 384)
    ((384, 384), (384, 768))
    """
    if isinstance(stored, str) and (match := _RANGE.fullmatch(stored.replace(" ", ""))):
        first, last = (int(match[1]), int(match[2])), (int(match[3]), int(match[4]))
        rows, columns = range(first[0], last[0] + 1), range(first[1], last[1] + 1)
        return tuple((side * row, side * column) for row in rows for column in columns)
    try:
        pairs = ast.literal_eval(stored) if isinstance(stored, str) else stored
        return tuple((int(height), int(width)) for height, width in pairs or ())
    except (ValueError, SyntaxError, TypeError):
        raise ValueError(
            f"image_grid_pinpoints is {stored!r}, expected pairs such as [[336, 672], [672, 336]] or '(1x1),...,(6x6)'"
        ) from None
