"""The cells of a picture: the smallest pieces that are either background or object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int32, Shaped
from numpy import ndarray
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class CellGrid:
    """`frames` pictures of `rows` x `cols` cells, each `cell_pixels` wide; ids count frame by frame, row by row.

    A cell is one patch, or a square of patches where the projector makes one token of them. Pixels to the right and
    below of the last whole patch are outside the grid: the encoder does not see them either. A last row of cells that
    has too few patches is filled up with zeros.
    """

    frames: int
    rows: int
    cols: int
    cell_pixels: int
    seen_height: int
    seen_width: int

    @property
    def num_cells(self) -> int:
        return self.frames * self.rows * self.cols

    @classmethod
    def of(cls, shape: tuple[int, ...], patch_size: int, cell: int) -> CellGrid:
        """The grid of pixels [frames, channels, height, width]."""
        frames, _, height, width = shape
        patch_rows, patch_cols = height // patch_size, width // patch_size
        if not patch_rows or not patch_cols:
            raise ValueError(
                f"pixels of {height}x{width} hold no whole patch of {patch_size}x{patch_size}; "
                "give the preprocessed picture, channels first, and the encoder's patch size"
            )
        return cls(
            frames,
            -(-patch_rows // cell),
            -(-patch_cols // cell),
            patch_size * cell,
            patch_rows * patch_size,
            patch_cols * patch_size,
        )

    def seen(self, pixels: Shaped[Tensor, "t c h w"]) -> Shaped[Tensor, "t c rows_px cols_px"]:
        """The pixels under the grid, cropped and filled up to whole cells."""
        kept = pixels[:, :, : self.seen_height, : self.seen_width]
        below = self.rows * self.cell_pixels - self.seen_height
        right = self.cols * self.cell_pixels - self.seen_width
        return F.pad(kept, (0, right, 0, below)) if below or right else kept

    def cells(self, pixels: Shaped[Tensor, "t c h w"]) -> Shaped[Tensor, "p values"]:
        """One row of pixel values per cell, in the order of the ids."""
        t, c = pixels.shape[:2]
        tiled = self.seen(pixels).reshape(t, c, self.rows, self.cell_pixels, self.cols, self.cell_pixels)
        return tiled.permute(0, 2, 4, 1, 3, 5).reshape(self.num_cells, c * self.cell_pixels**2)

    def pixel_mask(self, ids: Int32[ndarray, "n"]) -> Bool[ndarray, "t rows_px cols_px"]:
        """True = pixel of one of these cells, over the pixels that `seen` returns."""
        chosen = np.zeros(self.num_cells, dtype=bool)
        chosen[ids] = True
        cells = chosen.reshape(self.frames, self.rows, self.cols)
        return cells.repeat(self.cell_pixels, axis=1).repeat(self.cell_pixels, axis=2)

    def per_cell(self, values: Shaped[Tensor, "t rows cols"]) -> Shaped[Tensor, "p"]:
        return values.reshape(self.num_cells)

    def describe(self) -> bytes:
        """What of the grid belongs into a key."""
        fields = (self.frames, self.rows, self.cols, self.cell_pixels, self.seen_height, self.seen_width)
        return ",".join(map(str, fields)).encode()

    def all_ids(self) -> Tensor:
        return torch.arange(self.num_cells)
