"""Free labels of a view: which objects are in it, in which column, how far away. Integers only, so bit-exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int, UInt8

NUM_COLUMNS = 8
MIN_SHARE = 1 / 2048  # of the picture's pixels: less is not "in view" (2 pixels of 64 x 64)


@dataclass(frozen=True)
class ObjectView:
    """One object in one picture.

    Attributes:
        column: 1 (left edge) .. 8 (right edge) of its pixels' centre.
        distance_m: mean depth of its pixels, rounded to metres, at least 1.
    """

    name: str
    column: int
    distance_m: int
    pixels: int


@dataclass(frozen=True)
class ObjectTable:
    """The same for F pictures and K objects as arrays; column 0 = not in view."""

    pixels: Int[np.ndarray, "f k"]
    column: Int[np.ndarray, "f k"]
    distance_m: Int[np.ndarray, "f k"]


def tabulate_objects(
    instance_ids: UInt8[np.ndarray, "f h w"], depth: Float32[np.ndarray, "f h w"], num_objects: int
) -> ObjectTable:
    """Counts, columns and distances of instance ids 1..num_objects in every picture."""
    num_frames, height, width = instance_ids.shape
    flat = np.flatnonzero(instance_ids.reshape(-1) != 0)  # on booleans this is several times faster than on bytes
    key = flat // (height * width) * num_objects + instance_ids.reshape(-1)[flat] - 1
    millimetres = (depth.reshape(-1)[flat] * np.float32(1000)).astype(np.int64)

    def total(values: np.ndarray | None = None) -> np.ndarray:  # sums of integers below 2^53 are exact in float64
        return np.bincount(key, values, num_frames * num_objects).astype(np.int64).reshape(num_frames, num_objects)

    pixels, columns, depths = total(), total(2 * (flat % width) + 1), total(millimetres)
    seen = pixels >= max(2, int(height * width * MIN_SHARE))
    some = np.maximum(pixels, 1)
    return ObjectTable(
        pixels=pixels,
        column=np.where(seen, columns * NUM_COLUMNS // (2 * width * some) + 1, 0),
        distance_m=np.where(seen, np.maximum((depths + 500 * some) // (1000 * some), 1), 0),
    )


def describe_objects(
    instance_ids: UInt8[np.ndarray, "*f h w"], depth: Float32[np.ndarray, "*f h w"], names: Sequence[str]
) -> list[list[ObjectView]]:
    """The visible objects of every picture in instance order; a single picture counts as a batch of one.

    Args:
        names: of instance ids 1, 2, ... (`HouseBatch.object_names`); the same house for all pictures.
    """
    shape = (-1, *instance_ids.shape[-2:])
    table = tabulate_objects(instance_ids.reshape(shape), depth.reshape(shape), len(names))
    return [views_of(table, frame, names) for frame in range(len(table.pixels))]


def views_of(table: ObjectTable, frame: int, names: Sequence[str]) -> list[ObjectView]:
    """One row of a table with names."""
    return [
        ObjectView(name, int(table.column[frame, i]), int(table.distance_m[frame, i]), int(table.pixels[frame, i]))
        for i, name in enumerate(names)
        if table.column[frame, i] > 0
    ]
