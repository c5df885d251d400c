"""Houses as arrays: many at once, regenerated from (level, seed) alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from llava.navigation.worlds.tables import COLOUR_NAMES, SHAPE_NAMES
from llava.utils.registry import Registry

AGENT_RADIUS_M = 0.1


@dataclass(frozen=True, kw_only=True)
class HouseBatch:
    """N houses with the task drawn for each. Lengths in metres; x to the east, z to the south (north is -z).

    Rooms are square cells of `room_size` in reading order (row = z); a wall stands on every cell border, `wall_boxes`
    are the inner ones with the doorways left open, `lintels` the pieces above the doorways. Absent boxes are NaN.
    """

    level: str
    seeds: Int[np.ndarray, " n"]
    bounds: Float[np.ndarray, "n 4"]  # x0 z0 x1 z1 of the inner faces of the outer walls
    room_size: Float[np.ndarray, " n"]
    grid: Int[np.ndarray, "n 2"]  # rows, columns of rooms
    wall_boxes: Float[np.ndarray, "n w 4"]  # x0 z0 x1 z1
    lintels: Float[np.ndarray, "n l 4"]
    wall_texture: Int[np.ndarray, "n r 4"]  # tint * patterns + pattern of the north, east, south, west wall of a room
    floor_tint: Int[np.ndarray, "n r"]
    ceiling_tint: Int[np.ndarray, " n"]
    num_objects: Int[np.ndarray, " n"]
    shape: UInt8[np.ndarray, "n k"]
    colour: UInt8[np.ndarray, "n k"]
    radius: Float[np.ndarray, "n k"]  # half the width of a box
    height: Float[np.ndarray, "n k"]
    object_x: Float[np.ndarray, "n k"]
    object_z: Float[np.ndarray, "n k"]
    goal_object: Int[np.ndarray, " n"]
    start_x: Float[np.ndarray, " n"]
    start_z: Float[np.ndarray, " n"]
    start_heading: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def has_object(self) -> Bool[np.ndarray, "n k"]:
        return np.arange(self.shape.shape[1])[None] < self.num_objects[:, None]

    def select(self, rows: np.ndarray | slice) -> HouseBatch:
        """The houses of some rows (indices, mask or slice)."""
        picked = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "level"}
        return HouseBatch(level=self.level, **picked)

    def object_name(self, house: int, index: int) -> str:
        return f"{COLOUR_NAMES[self.colour[house, index]]} {SHAPE_NAMES[self.shape[house, index]]}"

    def object_names(self, house: int) -> tuple[str, ...]:
        """Names in instance order: instance id i + 1 is name i."""
        return tuple(self.object_name(house, index) for index in range(int(self.num_objects[house])))


LEVELS = Registry[Callable[[Int[np.ndarray, " n"]], HouseBatch]]("level")
"""name -> generator of houses and tasks from seeds; a level module registers itself here."""


def generate_houses(level: str, seeds: Sequence[int] | np.ndarray) -> HouseBatch:
    """Houses of a level; house i depends on seeds[i] only, not on its neighbours in the batch."""
    from llava.navigation.worlds import multi_room, one_room  # noqa: F401  rows of the table

    values = np.asarray(seeds, dtype=np.int64).reshape(-1)
    if len(values) == 0:
        raise ValueError("0 houses asked for, expected at least one seed")
    if (values < 0).any():
        raise ValueError(f"seed {values.min()} is negative, expected 0 or more")
    if level not in LEVELS:
        LEVELS[level]  # raises with the nearest name
    return LEVELS[level](values)


def random_pool(seeds: np.ndarray, stream: int, size: int) -> Float[np.ndarray, "n {size}"]:
    """Uniform numbers in [0, 1) per (seed, stream): multiples of 2^-53 cut from PCG64's raw output.

    Streams 0, 1, 2, ... are the attempts at a house; larger ones belong to noise, instructions and the like.
    """
    words = ((int(seed) & 0xFFFFFFFF, int(seed) >> 32, stream) for seed in seeds)
    raw = np.stack([np.random.PCG64(word).random_raw(size) for word in words])
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def retry_until_valid(
    seeds: np.ndarray, draw: Callable[[np.ndarray, int], tuple[HouseBatch, np.ndarray]]
) -> HouseBatch:
    """Draws houses again (attempt 0, 1, ...) for the seeds whose draw was not valid.

    Args:
        draw: (seeds, attempt) -> houses and bool [n], True = keep.
    """
    pending = np.arange(len(seeds))
    result: HouseBatch | None = None
    for attempt in range(1000):
        houses, valid = draw(seeds[pending], attempt)
        if result is None:
            result = houses
        else:
            _replace_rows(result, pending[valid], houses.select(valid))
        pending = pending[~valid]
        if len(pending) == 0:
            return result
    raise AssertionError(f"no valid house in 1000 attempts for seeds {seeds[pending][:5].tolist()}")


def _replace_rows(target: HouseBatch, rows: np.ndarray, source: HouseBatch) -> None:
    for f in fields(target):
        if f.name != "level":
            getattr(target, f.name)[rows] = getattr(source, f.name)


def first_true(valid: Bool[np.ndarray, "n c"]) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Index of the first True per row (0 where there is none) and whether there is one."""
    return valid.argmax(axis=1), np.asarray(valid.any(axis=1))


def pick_integers(uniform: Float[np.ndarray, "*shape"], count: int | np.ndarray) -> Int[np.ndarray, "*shape"]:
    """Integers 0..count-1 from uniform numbers in [0, 1)."""
    return (uniform * count).astype(np.int64)
