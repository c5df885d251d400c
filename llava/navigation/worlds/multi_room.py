"""Level `multi_room`: 2x2, 2x3 or 3x2 rooms of 4.5 m joined by doorways, each with its own walls.

The goal is in another room than the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
from jaxtyping import Bool, Int

from llava.navigation.worlds.house import LEVELS, HouseBatch, pick_integers, random_pool, retry_until_valid
from llava.navigation.worlds.tables import (
    COLOUR_NAMES,
    NUM_CEILING_TINTS,
    NUM_FLOOR_TINTS,
    NUM_PATTERNS,
    NUM_WALL_TINTS,
    SHAPE_HEIGHT_M,
    SHAPE_RADIUS_M,
)

ROOM_M, WALL_M, DOOR_M = 4.5, 0.2, 1.1
GRIDS = ((2, 2), (2, 3), (3, 2))
MAX_ROOMS, MAX_BORDERS, MAX_OBJECTS = 6, 7, 8
EXTRA_DOOR_SHARE = 0.3
MIN_WALK_M = 5.85  # to the object; its approach point is then at least 5 m away
OBJECT_TO_WALL_M, OBJECT_TO_DOOR_M, OBJECT_TO_OBJECT_M = 0.75, 1.25, 1.5
START_TO_WALL_M, START_TO_OBJECT_M = 0.6, 1.0
TRIES = 24
Point2 = tuple[float, float]
POOL = 128 + 2 * TRIES * (MAX_OBJECTS + 1)


@dataclass(frozen=True)
class Border:
    """The wall between two neighbouring rooms. vertical: it runs along z at x = line; else along x at z = line."""

    rooms: tuple[int, int]
    vertical: bool
    line: float
    begin: float


def borders_of(rows: int, columns: int) -> list[Border]:
    """All inner walls of a grid of rooms in reading order."""
    result = []
    for room in range(rows * columns):
        row, column = divmod(room, columns)
        if column + 1 < columns:
            result.append(Border((room, room + 1), True, (column + 1) * ROOM_M, row * ROOM_M))
        if row + 1 < rows:
            result.append(Border((room, room + columns), False, (row + 1) * ROOM_M, column * ROOM_M))
    return result


@LEVELS.register("multi_room")
def multi_room(seeds: Int[np.ndarray, " n"]) -> HouseBatch:
    return retry_until_valid(seeds, _draw)


def _draw(seeds: np.ndarray, attempt: int) -> tuple[HouseBatch, Bool[np.ndarray, " n"]]:
    pool = random_pool(seeds, attempt, POOL)
    n = len(seeds)
    shape = pick_integers(pool[:, 32:40], len(SHAPE_HEIGHT_M))
    size = 0.8 + 0.2 * pool[:, 40:48]
    order = np.argsort(pool[:, 48 : 48 + len(COLOUR_NAMES)], axis=1, kind="stable")
    tint = np.argsort(pool[:, 56 : 56 + NUM_WALL_TINTS], axis=1, kind="stable")[:, :MAX_ROOMS]
    pattern = np.argsort(pool[:, 64 : 64 + NUM_PATTERNS], axis=1, kind="stable")[:, :MAX_ROOMS]
    grid = np.array(GRIDS)[pick_integers(pool[:, 0], len(GRIDS))]
    far = np.stack([grid[:, 1], grid[:, 0]], axis=1) * ROOM_M - WALL_M / 2
    houses = HouseBatch(
        level="multi_room",
        seeds=seeds.copy(),
        bounds=np.concatenate([np.full((n, 2), WALL_M / 2), far], axis=1),
        room_size=np.full(n, ROOM_M),
        grid=grid,
        wall_boxes=np.full((n, 2 * MAX_BORDERS, 4), np.nan),
        lintels=np.full((n, MAX_BORDERS, 4), np.nan),
        wall_texture=np.repeat((tint * NUM_PATTERNS + pattern)[..., None], 4, axis=2),
        floor_tint=pick_integers(pool[:, 72 : 72 + MAX_ROOMS], NUM_FLOOR_TINTS),
        ceiling_tint=pick_integers(pool[:, 1], NUM_CEILING_TINTS),
        num_objects=np.zeros(n, dtype=np.int64),
        shape=shape.astype(np.uint8),
        colour=order[:, :MAX_OBJECTS].astype(np.uint8),
        radius=SHAPE_RADIUS_M[shape] * size,
        height=SHAPE_HEIGHT_M[shape] * size,
        object_x=np.full((n, MAX_OBJECTS), -100.0),
        object_z=np.full((n, MAX_OBJECTS), -100.0),
        goal_object=np.zeros(n, dtype=np.int64),
        start_x=np.zeros(n),
        start_z=np.zeros(n),
        start_heading=pick_integers(pool[:, 2], 24),
    )
    return houses, np.array([_furnish(houses, i, pool[i]) for i in range(n)])


def _furnish(houses: HouseBatch, i: int, pool: np.ndarray) -> bool:
    """Doors, objects, goal and start of one house; False where something found no place."""
    rows, columns = (int(value) for value in houses.grid[i])
    borders = borders_of(rows, columns)
    doors = _open_doors(houses, i, borders, pool[96 : 96 + 3 * MAX_BORDERS].reshape(3, MAX_BORDERS))
    rooms = rows * columns
    num_objects = min(MAX_OBJECTS, rooms + 1 + int(pool[3] * 2))
    spare = np.argsort(pool[4 : 4 + rooms], kind="stable")
    room_of = [*range(rooms), *spare[: num_objects - rooms]]
    draws = pool[128:].reshape(MAX_OBJECTS + 1, 2, TRIES)
    points: list[Point2] = []
    for k in range(num_objects):
        row, column = divmod(int(room_of[k]), columns)
        margin = WALL_M / 2 + OBJECT_TO_WALL_M
        obstacles = [(*middle, OBJECT_TO_DOOR_M) for middle, _ in doors] + [(*p, OBJECT_TO_OBJECT_M) for p in points]
        point = _find_place(row, column, margin, obstacles, draws[k])
        if point is None:
            return False
        points.append(point)
        houses.object_x[i, k], houses.object_z[i, k] = point
    houses.num_objects[i] = num_objects
    goal = houses.goal_object[i] = int(pool[12] * num_objects)
    start_room = (int(room_of[goal]) + 1 + int(pool[13] * (rooms - 1))) % rooms
    margin = WALL_M / 2 + START_TO_WALL_M
    start = _find_place(*divmod(start_room, columns), margin, [(*p, START_TO_OBJECT_M) for p in points], draws[-1])
    if start is None:
        return False
    houses.start_x[i], houses.start_z[i] = start
    passages = [(middle, border.rooms) for middle, border in doors]
    return _walk_at_least(start, start_room, points[goal], int(room_of[goal]), passages) >= MIN_WALK_M


def _walk_at_least(
    start: Point2, start_room: int, end: Point2, end_room: int, passages: list[tuple[Point2, tuple[int, int]]]
) -> float:
    """A lower bound of the walking distance: through the middles of the doorways, less one width per doorway."""
    best = [inf] * len(passages)  # to the middle of each doorway
    for i, (middle, rooms) in enumerate(passages):
        if start_room in rooms:
            best[i] = _distance(start, middle) - DOOR_M / 2
    for _ in passages:
        for i, (middle, rooms) in enumerate(passages):
            for j, (other, other_rooms) in enumerate(passages):
                if set(rooms) & set(other_rooms) and i != j:
                    best[i] = min(best[i], best[j] + _distance(middle, other) - DOOR_M)
    ways = [
        best[i] + _distance(middle, end) - DOOR_M / 2 for i, (middle, rooms) in enumerate(passages) if end_room in rooms
    ]
    return max(_distance(start, end), min(ways, default=inf))


def _distance(a: Point2, b: Point2) -> float:
    return sqrt((a[0] - b[0]) * (a[0] - b[0]) + (a[1] - b[1]) * (a[1] - b[1]))


def _find_place(
    row: int, column: int, margin: float, obstacles: list[tuple[float, float, float]], draws: np.ndarray
) -> Point2 | None:
    """First drawn point of a room that keeps the margin to its walls and each obstacle's distance."""
    for u, v in draws.T.tolist():
        x, z = column * ROOM_M + margin + u * (ROOM_M - 2 * margin), row * ROOM_M + margin + v * (ROOM_M - 2 * margin)
        if all((x - ox) * (x - ox) + (z - oz) * (z - oz) >= far * far for ox, oz, far in obstacles):
            return x, z
    return None


def _open_doors(houses: HouseBatch, i: int, borders: list[Border], draws: np.ndarray) -> list[tuple[Point2, Border]]:
    """Writes walls and lintels: a random spanning tree of doorways and a few more. Returns the doorways."""
    weight, extra, position = draws
    group = list(range(MAX_ROOMS))
    doors = []
    for b in np.argsort(weight[: len(borders)], kind="stable").tolist():
        border = borders[b]
        one, other = (group[room] for room in border.rooms)
        if one == other and extra[b] >= EXTRA_DOOR_SHARE:
            _wall(houses, i, 2 * b, border, border.begin, border.begin + ROOM_M)
            continue
        group = [one if g == other else g for g in group]
        middle = border.begin + 1.0 + float(position[b]) * (ROOM_M - 2.0)
        _wall(houses, i, 2 * b, border, border.begin, middle - DOOR_M / 2)
        _wall(houses, i, 2 * b + 1, border, middle + DOOR_M / 2, border.begin + ROOM_M)
        houses.lintels[i, b] = _box(border, middle - DOOR_M / 2, middle + DOOR_M / 2)
        doors.append(((border.line, middle) if border.vertical else (middle, border.line), border))
    return doors


def _wall(houses: HouseBatch, i: int, slot: int, border: Border, begin: float, end: float) -> None:
    houses.wall_boxes[i, slot] = _box(border, begin, end)


def _box(border: Border, begin: float, end: float) -> tuple[float, float, float, float]:
    low, high = border.line - WALL_M / 2, border.line + WALL_M / 2
    return (low, begin, high, end) if border.vertical else (begin, low, end, high)
