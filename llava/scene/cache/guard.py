"""Is this cell still what it was? The largest difference decides: an average would let a moved clock hand pass."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from llava.scene.cache.grid import CellGrid

MAD_TO_STD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


def cell_differences(
    before: Shaped[Tensor, "t c h w"], after: Shaped[Tensor, "t c h w"], grid: CellGrid, windows: tuple[int, ...] = (1,)
) -> Float[Tensor, "p"]:
    """Largest difference within each cell, in units of the pixels.

    A window of w x w pixels counts with its mean difference times w: noise of independent pixels then has the same
    standard deviation in windows of every width, and one threshold serves all. Windows lie within their cell, half of
    their width apart, so that what an object does is not blamed on its neighbours.
    """
    difference = grid.cells(after.float() - before.to(after.device).float())
    squares = difference.reshape(grid.num_cells, -1, grid.cell_pixels, grid.cell_pixels)  # [P, c, px, px]
    largest = [_largest_window(squares, min(width, grid.cell_pixels)) for width in windows]
    return torch.stack(largest).amax(0)


def differs(
    before: Shaped[Tensor, "t c h w"],
    after: Shaped[Tensor, "t c h w"],
    grid: CellGrid,
    *,
    noise: float | int,
    sigmas: float | int,
    windows: tuple[int, ...],
) -> Bool[Tensor, "p"]:
    """Cells with a difference that the noise of two pictures does not explain; not-a-number counts as different."""
    threshold = sigmas * math.sqrt(2) * noise
    return ~(cell_differences(before, after, grid, windows) <= threshold)


def estimate_noise(frames: Shaped[Tensor, "t c h w"]) -> float:
    """Standard deviation of the sensor's noise, from at least two frames of a camera and a scene that stand still.

    The median of the differences between neighbouring frames: a few things that move do not matter.
    """
    if frames.ndim != 4 or frames.shape[0] < 2:
        raise ValueError(f"frames have shape {tuple(frames.shape)}, expected at least two as [t, c, h, w]")
    difference = frames[1:].float() - frames[:-1].float()
    spread = (difference - difference.median()).abs().median()
    return float(MAD_TO_STD * spread / math.sqrt(2))


def _largest_window(squares: Float[Tensor, "p c px px"], width: int) -> Float[Tensor, "p"]:
    means = squares if width == 1 else F.avg_pool2d(squares, width, stride=max(1, width // 2))
    return means.abs().flatten(1).amax(1) * width
