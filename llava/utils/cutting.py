"""Pictures of any size become the square views that a tower reads: uint8 pixels, resized and cut."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from llava.batch import VisualSpec
from llava.utils.anyres import AnyresRule
from llava.utils.dynamic_s2 import DynamicS2Rule
from llava.utils.tiles import count_tiles, tile_grid

Picture = Image.Image | np.ndarray | Tensor
"""PIL, or uint8 [height, width, 3], or a uint8 tensor [3, height, width]."""


def cut_into_tiles(image: Picture, spec: VisualSpec) -> UInt8[Tensor, "n 3 size size"]:
    """A picture as tiles row by row, then the whole of it when there are several; see `utils.tiles.tile_grid`."""
    pixels, side = as_chw(image), spec.image_size
    columns, rows = tile_grid(pixels.shape[2], pixels.shape[1], side, spec.min_tiles, spec.max_tiles)
    whole = resize(pixels, rows * side, columns * side)
    tiles = _grid_of(whole, side)
    if count_tiles(columns, rows) == len(tiles):
        return tiles.contiguous()
    return torch.cat([tiles, resize(pixels, side, side)[None]])


def cut_views(
    image: Picture, rule: AnyresRule | DynamicS2Rule
) -> tuple[UInt8[Tensor, "n 3 side side"], tuple[int, int]]:
    """The views of a picture as its model reads them, and its (height, width), which goes into `image_sizes`."""
    return cut_scales(image, rule) if isinstance(rule, DynamicS2Rule) else cut_anyres(image, rule)


def cut_anyres(image: Picture, rule: AnyresRule) -> tuple[UInt8[Tensor, "n 3 side side"], tuple[int, int]]:
    """The views of a picture under `anyres`, and its (height, width): the whole, then a letterboxed grid row by row."""
    pixels, side = as_chw(image), rule.side
    _, height, width = pixels.shape
    layout = rule.layout(height, width)
    rows, columns = layout.rows * side, layout.columns * side
    if columns / width < rows / height:
        inside = min(math.ceil(height * columns / width), rows), columns
    else:
        inside = rows, min(math.ceil(width * rows / height), columns)
    canvas = torch.zeros(3, rows, columns, dtype=torch.uint8)
    top, left = (rows - inside[0]) // 2, (columns - inside[1]) // 2
    canvas[:, top : top + inside[0], left : left + inside[1]] = resize(pixels, *inside)
    return torch.cat([resize(pixels, side, side)[None], _grid_of(canvas, side)]), (height, width)


def cut_scales(image: Picture, rule: DynamicS2Rule) -> tuple[UInt8[Tensor, "n 3 side side"], tuple[int, int]]:
    """The views of a picture under `dynamic_s2`, and its (height, width): scale after scale, tiles row by row."""
    pixels, side = as_chw(image), rule.side
    _, height, width = pixels.shape
    grids = rule.layout(height, width).grids
    tiles = [_grid_of(resize(pixels, rows * side, columns * side), side) for rows, columns in grids]
    return torch.cat(tiles), (height, width)


def _grid_of(pixels: UInt8[Tensor, "3 h w"], side: int) -> UInt8[Tensor, "n 3 side side"]:
    """Tiles row by row."""
    _, height, width = pixels.shape
    grid = pixels.reshape(3, height // side, side, width // side, side)
    return grid.permute(1, 3, 0, 2, 4).flatten(0, 1)


def as_chw(image: Picture) -> UInt8[Tensor, "3 h w"]:
    """The pixels of a picture, channels first."""
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        if not image.flags.writeable:
            image = image.copy()  # torch cannot share what may not be written to
        pixels = torch.from_numpy(image)
        pixels = pixels.permute(2, 0, 1) if pixels.ndim == 3 and pixels.shape[2] == 3 else pixels
    else:
        pixels = image
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ValueError(
            f"a picture is {pixels.dtype} of shape {tuple(pixels.shape)}, expected uint8 [height, width, 3] "
            "or a tensor [3, height, width]"
        )
    return pixels


def resize(pixels: UInt8[Tensor, "3 h w"], height: int, width: int) -> UInt8[Tensor, "3 x y"]:
    """Antialiased bicubic."""
    if pixels.shape[1:] == (height, width):
        return pixels.contiguous()
    # channels_last is the layout that the uint8 kernel is fast in; a decoded picture has it already
    batch = pixels[None].contiguous(memory_format=torch.channels_last)
    return interpolate(batch, size=(height, width), mode="bicubic", antialias=True)[0].contiguous()
