"""The pixels of a view by its map: what the tower reads, for pictures to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from llava.batch import VisualSpec
from llava.scene.geometry import ViewMap
from llava.utils.cutting import as_chw, resize


def view_pixels(
    picture: UInt8[np.ndarray, "h w 3"], view: ViewMap, fill: Sequence[int]
) -> UInt8[np.ndarray, "side side 3"]:
    """The picture padded, resized and cut as the map says; fill is the colour around it."""
    rows, columns = view.rows, view.columns
    if picture.shape[:2] != (rows.source, columns.source):
        raise ValueError(
            f"the view is of a picture of {rows.source} x {columns.source}, this one has "
            f"{picture.shape[0]} x {picture.shape[1]}"
        )
    colour = torch.tensor(list(fill), dtype=torch.uint8)[:, None, None]
    padded = colour.repeat(1, rows.padded, columns.padded)
    padded[:, rows.before : rows.before + rows.source, columns.before : columns.before + columns.source] = as_chw(
        picture
    )
    whole = resize(padded, rows.resized, columns.resized)
    shown = colour.repeat(1, rows.view, columns.view)
    top, bottom = max(rows.start, 0), min(rows.start + rows.view, rows.resized)
    left, right = max(columns.start, 0), min(columns.start + columns.view, columns.resized)
    if top < bottom and left < right:
        inside = whole[:, top:bottom, left:right]
        shown[:, top - rows.start : bottom - rows.start, left - columns.start : right - columns.start] = inside
    return shown.permute(1, 2, 0).contiguous().numpy()


def fill_colour(spec: VisualSpec) -> tuple[int, ...]:
    """The mean colour around padded pictures, black around the tiles of others."""
    return tuple(int(mean * 255) for mean in spec.image_mean) if spec.aspect_mode == "pad" else (0, 0, 0)
