"""Level `one_room`: a square room of 9-12 m with 4-6 landmarks; all but one are at least 4.8 m away from the goal."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from llava.navigation.worlds.house import LEVELS, HouseBatch, first_true, pick_integers, random_pool, retry_until_valid
from llava.navigation.worlds.tables import (
    NUM_CEILING_TINTS,
    NUM_FLOOR_TINTS,
    NUM_PATTERNS,
    NUM_WALL_TINTS,
    SHAPE_HEIGHT_M,
    SHAPE_RADIUS_M,
)

MIN_SIDE_M, MAX_SIDE_M = 9.0, 12.0
MAX_OBJECTS, MIN_OBJECTS = 6, 4
NUM_COLOURS = 6  # the first six: easily told apart at 64 pixels
START_TO_GOAL_M = 4.9  # straight line to the object; its approach point is then at least 4 m away
GOAL_TO_OTHER_M = 4.8
OBJECT_TO_OBJECT_M = 1.7
START_TO_OBJECT_M = 1.4
OBJECT_TO_WALL_M, START_TO_WALL_M = 0.9, 0.6
CANDIDATES = 48
POOL = 64 + 2 * CANDIDATES * (MAX_OBJECTS + 1)


@LEVELS.register("one_room")
def one_room(seeds: Int[np.ndarray, " n"]) -> HouseBatch:
    return retry_until_valid(seeds, _draw)


def _draw(seeds: np.ndarray, attempt: int) -> tuple[HouseBatch, Bool[np.ndarray, " n"]]:
    pool = random_pool(seeds, attempt, POOL)
    n = len(seeds)
    head, candidates = pool[:, :64], pool[:, 64:].reshape(n, MAX_OBJECTS + 1, 2, CANDIDATES)
    side = MIN_SIDE_M + pick_integers(head[:, 0], 301) / 100.0
    num_objects = MIN_OBJECTS + pick_integers(head[:, 1], MAX_OBJECTS - MIN_OBJECTS + 1)
    x, z, start, valid = _place(side, num_objects, candidates)
    goal = pick_integers(head[:, 2], num_objects)
    rows = np.arange(n)
    for values in (x, z):  # the goal was placed first; hide that
        values[rows, 0], values[rows, goal] = values[rows, goal].copy(), values[rows, 0].copy()
    shape = pick_integers(head[:, 8:14], 4)
    size = 0.9 + 0.2 * head[:, 14:20]
    textures = pick_integers(head[:, 32:36], NUM_PATTERNS) + NUM_PATTERNS * pick_integers(
        head[:, 36:40], NUM_WALL_TINTS
    )
    houses = HouseBatch(
        level="one_room",
        seeds=seeds.copy(),
        bounds=np.stack([0 * side, 0 * side, side, side], axis=1),
        room_size=side,
        grid=np.ones((n, 2), dtype=np.int64),
        wall_boxes=np.empty((n, 0, 4)),
        lintels=np.empty((n, 0, 4)),
        wall_texture=textures[:, None],
        floor_tint=pick_integers(head[:, 40:41], NUM_FLOOR_TINTS),
        ceiling_tint=pick_integers(head[:, 41], NUM_CEILING_TINTS),
        num_objects=num_objects,
        shape=shape.astype(np.uint8),
        colour=np.argsort(head[:, 20 : 20 + NUM_COLOURS], axis=1, kind="stable")[:, :MAX_OBJECTS].astype(np.uint8),
        radius=SHAPE_RADIUS_M[shape] * size,
        height=SHAPE_HEIGHT_M[shape] * size,
        object_x=x,
        object_z=z,
        goal_object=goal,
        start_x=start[:, 0].copy(),
        start_z=start[:, 1].copy(),
        start_heading=pick_integers(head[:, 3], 24),
    )
    return houses, valid


def _place(
    side: Float[np.ndarray, " n"], num_objects: Int[np.ndarray, " n"], candidates: Float[np.ndarray, "n m 2 c"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Bool[np.ndarray, " n"]]:
    """Goal object, start, then the others: the first candidate that keeps every distance.

    Returns x and z [n, k], start [n, 2], and which houses are complete.
    """
    n = len(side)
    rows = np.arange(n)
    free = side - 2 * OBJECT_TO_WALL_M
    cx = OBJECT_TO_WALL_M + free[:, None] * candidates[:, 0, 0]
    cz = OBJECT_TO_WALL_M + free[:, None] * candidates[:, 0, 1]
    centre = side[:, None] / 2
    off_centre = np.maximum(abs(cx - centre), abs(cz - centre)) >= 0.22 * side[:, None]
    first, valid = first_true(off_centre)
    x, z = np.full((n, MAX_OBJECTS), -100.0), np.full((n, MAX_OBJECTS), -100.0)
    x[:, 0], z[:, 0] = cx[rows, first], cz[rows, first]

    cx = START_TO_WALL_M + (side - 2 * START_TO_WALL_M)[:, None] * candidates[:, 1, 0]
    cz = START_TO_WALL_M + (side - 2 * START_TO_WALL_M)[:, None] * candidates[:, 1, 1]
    first, found = first_true(_squared(cx, cz, x[:, :1], z[:, :1]) >= START_TO_GOAL_M**2)
    start = np.stack([cx[rows, first], cz[rows, first]], axis=1)
    valid &= found
    for k in range(1, MAX_OBJECTS):
        cx = OBJECT_TO_WALL_M + free[:, None] * candidates[:, k + 1, 0]
        cz = OBJECT_TO_WALL_M + free[:, None] * candidates[:, k + 1, 1]
        good = _squared(cx, cz, x[:, :1], z[:, :1]) >= GOAL_TO_OTHER_M**2
        good &= _squared(cx, cz, start[:, :1], start[:, 1:]) >= START_TO_OBJECT_M**2
        for other in range(1, k):
            good &= _squared(cx, cz, x[:, other : other + 1], z[:, other : other + 1]) >= OBJECT_TO_OBJECT_M**2
        first, found = first_true(good)
        wanted = k < num_objects
        x[wanted, k], z[wanted, k] = cx[rows, first][wanted], cz[rows, first][wanted]
        valid &= found | ~wanted
    return x, z, start, valid


def _squared(ax: np.ndarray, az: np.ndarray, bx: np.ndarray, bz: np.ndarray) -> np.ndarray:
    return (ax - bx) * (ax - bx) + (az - bz) * (az - bz)
