"""Several scales of one picture (S2): large ones are cut into tiles of the tower's size, encoded and pooled.

After Shi et al., "When Do We Not Need Larger Vision Models?" (2024): as many tokens as with one scale, their channels
side by side from the smallest scale to the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def cut_tiles(pixels: Float[Tensor, "n c H H"], side: int) -> Float[Tensor, "m c h h"]:
    """Tiles of side x side pixels, row by row, picture after picture."""
    n, channels, height, _ = pixels.shape
    k = height // side
    tiles = pixels.reshape(n, channels, k, side, k, side)  # [n, c, tile row, y, tile column, x]
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(n * k * k, channels, side, side)


def merge_tiles(features: Float[Tensor, "m p d"], tiles_per_side: int) -> Float[Tensor, "n d G G"]:
    """Patch features of tiles (in the order of `cut_tiles`) laid out as one map per picture."""
    k, width = tiles_per_side, features.shape[-1]
    grid = round(features.shape[1] ** 0.5)
    maps = features.reshape(-1, k, k, grid, grid, width)  # [n, tile row, tile column, y, x, d]
    return maps.permute(0, 5, 1, 3, 2, 4).reshape(-1, width, k * grid, k * grid)


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
    pooled = [F.interpolate(m.float(), size=(grid, grid), mode="area").to(m.dtype) for m in maps]
    return torch.cat(pooled, dim=1).flatten(2).transpose(1, 2)
