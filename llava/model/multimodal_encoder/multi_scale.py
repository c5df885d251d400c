"""Several scales of one picture (S2): large ones are cut into tiles of the tower's size, encoded and pooled.

`encode_scales` cuts here and gives one map per picture; under `dynamic_s2` pictures of any shape arrive cut
(`utils/cutting.py`), and `merge_scales` and `join_tiles` stand before and behind the projector.

After Shi et al., "When Do We Not Need Larger Vision Models?" (2024): as many tokens as with one scale, their channels
side by side from the smallest scale to the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from llava.utils.dynamic_s2 import DynamicS2Layout


def cut_tiles(pixels: Float[Tensor, "n c H H"], side: int) -> Float[Tensor, "m c h h"]:
    """Tiles of side x side pixels, row by row, picture after picture."""
    n, channels, height, _ = pixels.shape
    k = height // side
    tiles = pixels.reshape(n, channels, k, side, k, side)  # [n, c, tile row, y, tile column, x]
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(n * k * k, channels, side, side)


def merge_tiles(features: Float[Tensor, "m p d"], rows: int, columns: int | None = None) -> Float[Tensor, "n d G F"]:
    """Patch features of tiles (in the order of `cut_tiles`) laid out as one map per picture; a square by default."""
    columns, width = columns or rows, features.shape[-1]
    grid = round(features.shape[1] ** 0.5)
    maps = features.reshape(-1, rows, columns, grid, grid, width)  # [n, tile row, tile column, y, x, d]
    return maps.permute(0, 5, 1, 3, 2, 4).reshape(-1, width, rows * grid, columns * grid)


def split_map(features: Float[Tensor, "d G F"], rows: int, columns: int) -> Float[Tensor, "m p d"]:
    """The patches of each of rows x columns tiles of a map: `merge_tiles` backwards."""
    width, height, breadth = features.shape
    grid = features.reshape(width, rows, height // rows, columns, breadth // columns)
    return grid.permute(1, 3, 2, 4, 0).reshape(rows * columns, -1, width)


def encode_scales(
    encode: Callable[[Tensor], Tensor], pixels: Float[Tensor, "n c h h"], scales: Sequence[int]
) -> Float[Tensor, "n p e"]:
    """Features of all scales, e = their number times the width of one.

    Args:
        encode: [m, c, s, s] with s = the smallest scale -> [m, p, d], p a square grid of patches without class token.
        pixels: normalised, of the largest scale; the smaller ones are made of them (bicubic, as in the original).
        scales: rising multiples of the first.
    """
    maps = []
    for scale in scales:
        scaled = pixels
        if scale != pixels.shape[-1]:
            scaled = F.interpolate(pixels.float(), size=(scale, scale), mode="bicubic").to(pixels.dtype)
        tiles_per_side = scale // scales[0]
        maps.append(merge_tiles(encode(cut_tiles(scaled, scales[0])), tiles_per_side))
    grid = maps[0].shape[-1]
    return _pool(maps, (grid, grid)).flatten(2).transpose(1, 2)


def _pool(maps: Sequence[Tensor], size: tuple[int, int]) -> Float[Tensor, "n e G F"]:
    """Maps [n, d, y, x] of all scales averaged (where smaller: repeated) to one size, their channels joined."""
    return torch.cat([F.interpolate(m.float(), size=size, mode="area").to(m.dtype) for m in maps], dim=1)


def merge_scales(features: Float[Tensor, "m p d"], layouts: Sequence[DynamicS2Layout]) -> Float[Tensor, "k p e"]:
    """Tiles of all scales become tiles of the output scale, which a projector reads one by one.

    A picture that is not cut has the same features at every scale.

    Raises:
        ValueError: the tiles do not belong to pictures of these sizes.
    """
    counts = [layout.num_tiles for layout in layouts]
    if sum(counts) != len(features):
        raise ValueError(
            f"{len(features)} views were given, image_sizes ask for {sum(counts)} ({counts} per picture); "
            "cut with utils.cutting.cut_scales"
        )
    pictures = zip(features.split(counts), layouts, strict=True)
    return torch.cat([_merge_picture(tiles, layout) for tiles, layout in pictures])


def _merge_picture(tiles: Float[Tensor, "m p d"], layout: DynamicS2Layout) -> Float[Tensor, "k p e"]:
    if not layout.grids:
        return tiles.repeat(1, 1, len(layout.rule.scales))
    of_scale = tiles.split([rows * columns for rows, columns in layout.grids])
    maps = [merge_tiles(part, *grid) for part, grid in zip(of_scale, layout.grids, strict=True)]
    *_, height, width = maps[layout.rule.output].shape
    merged = _pool(maps, (height, width))
    return split_map(merged[0], *layout.shown)


def join_tiles(tokens: Float[Tensor, "k q h"], layouts: Sequence[DynamicS2Layout]) -> Float[Tensor, "total h"]:
    """Projected tiles become one map per picture, its tokens row by row over the whole picture, end to end."""
    counts = [rows * columns for rows, columns in (layout.shown for layout in layouts)]
    maps = [merge_tiles(part, *layout.shown)[0] for part, layout in zip(tokens.split(counts), layouts, strict=True)]
    return torch.cat([each.flatten(1).T for each in maps])
