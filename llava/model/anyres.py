"""Features of a picture's views become one run of tokens: the whole picture, then its tiles as one grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from llava.utils.anyres import AnyresLayout


def merge_views(
    features: Float[Tensor, "n_views p d"], layouts: Sequence[AnyresLayout], newline: Float[Tensor, " d"] | None
) -> Float[Tensor, "total d"]:
    """Visual tokens of all pictures end to end; `newline` ends each row of a picture's grid where its rule says so.

    Raises:
        ValueError: the views do not belong to pictures of these sizes.
    """
    counts = [layout.num_tiles for layout in layouts]
    if sum(counts) != len(features):
        raise ValueError(
            f"{len(features)} views were given, image_sizes ask for {sum(counts)} ({counts} per picture); "
            "cut with utils.cutting.cut_anyres"
        )
    parts: list[Tensor] = []
    for layout, views in zip(layouts, features.split(counts), strict=True):
        parts.append(views[0])
        if layout.rows:
            parts.append(_merge(views[1:], layout, newline))
    return torch.cat(parts)


def _merge(tiles: Tensor, layout: AnyresLayout, newline: Tensor | None) -> Float[Tensor, "t d"]:
    if layout.rule.merge == "flat":
        return tiles.flatten(0, 1)
    side, (height, width) = layout.rule.patches, layout.kept
    grid = tiles.reshape(layout.rows, layout.columns, side, side, -1).permute(4, 0, 2, 1, 3)
    grid = grid.reshape(-1, layout.rows * side, layout.columns * side)  # [d, rows, columns]
    top, left = (grid.shape[1] - height) // 2, (grid.shape[2] - width) // 2
    grid = grid[:, top : top + height, left : left + width]
    if layout.shown != layout.kept:
        grid = F.interpolate(grid[None], layout.shown, mode="bilinear")[0]
    if layout.has_newlines:
        if newline is None:
            raise ValueError("rows of tiled pictures end with image_newline, which this projector has not; load it")
        ends = newline.to(grid.dtype)[:, None, None].expand(-1, grid.shape[1], 1)
        grid = torch.cat([grid, ends], dim=2)
    return grid.flatten(1).T
