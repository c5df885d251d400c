"""A projector over groups of patches instead of whole pictures: the same tokens, wherever a group has them.

A down-sampling projector sees each gathered cell as a tiny picture of its own, so that the projector itself, with its
wrappers and adapters, merges the patches: the order inside a cell and the zeros at the edge are its own.
"""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llava.model.multimodal_encoder.patch_groups import PatchGroup, join_groups
from llava.model.multimodal_projector.base_projector import MultimodalProjector
from llava.scene.split import places_of_cells


def copy_projector(projector: MultimodalProjector) -> MultimodalProjector:
    """A projector of its own with the same weights: the split starts from what the model knows.

    Raises:
        ValueError: for a projector of models that cut pictures into tiles.
    """
    if projector.image_newline is not None:
        raise ValueError(
            "mm_projector has an image_newline (anyres), which ends rows of tiled pictures, expected none: groups of "
            "patches have no rows; leave scene_split out, or use image_aspect_ratio 'pad'"
        )
    return copy.deepcopy(projector)


def project_group(
    projector: MultimodalProjector, group: PatchGroup, grid_side: int, *, bit_stable: bool = False
) -> PatchGroup:
    """Tokens of one group; their places are the indices of the tokens of the unsplit picture.

    Args:
        group: what the split encoder gave, from masks snapped to the projector's cells.
        bit_stable: pictures are projected one by one, so that none changes the rounding of another.

    Raises:
        ValueError: where a cell lacks patches, because the mask cut through it.
    """
    if bit_stable and len(group.counts) > 1:
        return join_groups([project_group(projector, alone, grid_side) for alone in group.of_pictures()])
    dtype = next(projector.parameters(), group.features).dtype
    if projector.downsample_rate == 1:
        tokens = projector(group.features[None].to(dtype))[0]
        return PatchGroup(features=tokens, places=group.places, counts=group.counts)
    cells, places, counts = gather_cells(group, grid_side, projector.downsample_rate, projector.config.token_order)
    return PatchGroup(features=projector(cells.to(dtype))[:, 0], places=places, counts=counts)


def gather_cells(
    group: PatchGroup, grid_side: int, cell_side: int, order: str | None
) -> tuple[Float[Tensor, "cells k d"], Int[Tensor, "cells"], tuple[int, ...]]:
    """Patches of each cell (missing ones at the edge are zero), the cells' places, and cells per picture.

    Raises:
        ValueError: naming a cell of which only a part is in the group.
    """
    table = places_of_cells(grid_side, cell_side, order or "row")  # [cells, k]
    places, rows, counts = [], [], []
    start, zero_row = 0, len(group.features)
    for picture in group.places.cpu().split(list(group.counts)):
        row_of = torch.full((grid_side**2 + 1,), zero_row)  # its last entry is that of a missing patch (-1)
        row_of[picture] = start + torch.arange(len(picture))
        is_here = row_of[table] != zero_row
        exists = table >= 0
        _require_whole(is_here, exists, table)
        chosen = is_here.any(dim=1)
        places.append(chosen.nonzero()[:, 0])
        rows.append(row_of[table[chosen]])
        counts.append(len(places[-1]))
        start += len(picture)
    padded = torch.cat([group.features, group.features.new_zeros(1, group.features.shape[-1])])
    device = group.features.device
    index = torch.cat(rows) if rows else torch.zeros(0, cell_side**2, dtype=torch.long)
    place = torch.cat(places) if places else torch.zeros(0, dtype=torch.long)
    return padded[index.to(device)], place.to(device), tuple(counts)


def _require_whole(is_here: Tensor, exists: Tensor, table: Tensor) -> None:
    is_cut = is_here.any(dim=1) & (exists & ~is_here).any(dim=1)
    if bool(is_cut.any()):
        cell = int(is_cut.nonzero()[0])
        present = table[cell][is_here[cell]].tolist()
        raise ValueError(
            f"cell {cell} of the projector has only the patches {present} of {table[cell][exists[cell]].tolist()} in "
            "this group, expected all or none: encode with masks snapped to the projector's cells"
        )
