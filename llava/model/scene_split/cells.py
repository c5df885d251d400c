"""Masks and the cells of a projector: what is merged into one token lies in one group."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor

from llava.scene.split import places_of_cells


def cell_mask(
    is_object: Bool[Tensor, "n patches"], grid_side: int, cell_side: int, order: str = "row"
) -> Bool[Tensor, "n cells"]:
    """The mask of the merged tokens of a snapped patch mask. The first patch of a cell always exists.

    Raises:
        ValueError: for a mask of another size, and for one that cuts through a cell.
    """
    check_snapped(is_object, grid_side, cell_side)
    return is_object[:, places_of_cells(grid_side, cell_side, order)[:, 0].to(is_object.device)]


def check_snapped(is_object: Bool[Tensor, "n patches"], grid_side: int, cell_side: int) -> None:
    """Refuses masks of another grid, and those that put patches of one cell into both groups.

    Raises:
        ValueError: naming the picture, the cell and what to do.
    """
    num_patches = is_object.shape[1]
    if num_patches != grid_side**2:
        raise ValueError(
            f"the object mask has {num_patches} patches, the encoder has {grid_side}x{grid_side}={grid_side**2}; "
            "make it with scene.patch_mask.patch_masks for this tower, and flatten it row by row"
        )
    patches = places_of_cells(grid_side, cell_side).to(is_object.device)  # [cells, k]
    exists = patches >= 0
    values = is_object[:, patches.clamp(min=0)]  # [n, cells, k]
    is_mixed = (values & exists).any(dim=-1) & (~values & exists).any(dim=-1)
    if not bool(is_mixed.any()):
        return
    picture, cell = is_mixed.nonzero()[0].tolist()
    row, column = divmod(cell, -(-grid_side // cell_side))
    raise ValueError(
        f"the object mask of picture {picture} cuts through the cell in row {row}, column {column} of the projector, "
        f"which merges {cell_side}x{cell_side} patches; expected all of its patches in one group; make it with "
        f"scene.patch_mask.patch_masks and PatchRule(cell={cell_side})"
    )
