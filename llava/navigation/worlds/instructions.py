"""Sentences that tell the way: to an object in one room, or along a route through rooms.

A route is told as a person would who walks it: the first turn, what is passed, on which side the next doorway lies, and
the object at the end. Sides are relative to the direction in which the robot enters a room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

import numpy as np

from llava.navigation.worlds.expert import Tasks
from llava.navigation.worlds.house import HouseBatch, random_pool
from llava.navigation.worlds.tables import FORWARD_X, FORWARD_Z

INSTRUCTION_STREAM = 1 << 21  # second word of the generator's seed
COS_AHEAD = sqrt(3) / 2  # within 30 degrees
PASS_WITHIN_M = 1.4

TO_OBJECT = (
    "Walk to the {goal} and stop.",
    "Go to the {goal} and stop.",
    "Find the {goal} and stop next to it.",
    "Look for the {goal}, walk to it and stop.",
)
THROUGH = ("go through", "walk through")
ARRIVE = ("stop next to", "wait next to", "stop by")

Vector = tuple[float, float]


def write_instructions(tasks: Tasks) -> list[str]:
    """One instruction per task; the wording depends on the house's seed, the content on the shortest way."""
    choices = random_pool(tasks.houses.seeds, INSTRUCTION_STREAM, 8)
    one_room = tasks.houses.wall_boxes.shape[1] == 0
    return [_to_object(tasks, i, row) if one_room else _along_route(tasks, i, row) for i, row in enumerate(choices)]


def _to_object(tasks: Tasks, i: int, choices: np.ndarray) -> str:
    template = TO_OBJECT[int(choices[0] * len(TO_OBJECT))]
    return template.format(goal=tasks.houses.object_name(i, int(tasks.houses.goal_object[i])))


def _along_route(tasks: Tasks, i: int, choices: np.ndarray) -> str:
    houses, goal = tasks.houses, int(tasks.houses.goal_object[i])
    start: Vector = (float(houses.start_x[i]), float(houses.start_z[i]))
    end: Vector = (float(houses.object_x[i, goal]), float(houses.object_z[i, goal]))
    legs = split_route(houses, i, [start, *tasks.routes[i]])
    heading = int(houses.start_heading[i])
    facing: Vector = (float(FORWARD_X[heading]), float(FORWARD_Z[heading]))
    entry, sentences = start, []
    for number, leg in enumerate(legs):
        target = leg.door if leg.door is not None else end
        towards = (target[0] - entry[0], target[1] - entry[1])
        side = _side(facing, towards)
        if number == 0:
            sentences += _first_turn(side)
            side = "ahead"
        passing = f"walk past the {houses.object_name(i, leg.passed)} and " if leg.passed is not None else ""
        if leg.door is not None:
            verb = THROUGH[0] if passing else THROUGH[int(choices[1] * len(THROUGH))]
            where = "ahead" if side == "ahead" else "behind you" if side == "behind" else f"on your {side}"
            sentences.append(f"{passing}{verb} the doorway {where}.")
            entry, facing = leg.door, leg.direction
        else:
            verb = ARRIVE[int(choices[2] * len(ARRIVE))]
            where = "" if side in ("ahead", "behind") else f" on your {side}"
            sentences.append(f"{passing}{verb} the {houses.object_name(i, goal)}{where}.")
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def _first_turn(side: str) -> list[str]:
    return {"ahead": [], "behind": ["turn around."]}.get(side, [f"turn {side}."])


def _side(facing: Vector, towards: Vector) -> str:
    """ahead (within 30 degrees), left, right or behind (beyond 150 degrees)."""
    size = sqrt(facing[0] * facing[0] + facing[1] * facing[1]) * sqrt(towards[0] * towards[0] + towards[1] * towards[1])
    dot = facing[0] * towards[0] + facing[1] * towards[1]
    if abs(dot) >= COS_AHEAD * size:
        return "ahead" if dot > 0 else "behind"
    return "right" if facing[0] * towards[1] - facing[1] * towards[0] > 0 else "left"


@dataclass(frozen=True)
class Leg:
    """The part of a route inside one room: the doorway by which it is left (None = the goal's room), what is passed."""

    door: Vector | None
    direction: Vector
    passed: int | None


def split_route(houses: HouseBatch, i: int, route: Sequence[Vector]) -> list[Leg]:
    """Cuts a route (start, bends, goal) at the doorways it goes through."""
    crossings = sorted(
        (along, door, direction)
        for lintel in houses.lintels[i][~np.isnan(houses.lintels[i, :, 0])].tolist()
        for along, door, direction in _crossings(route, lintel)
    )
    ends = [along for along, _, _ in crossings] + [float("inf")]
    seen = _passed_objects(houses, i, route)
    legs, begin = [], 0.0
    for number, end in enumerate(ends):
        passed = next((k for along, k in seen if begin <= along < end), None)
        door, direction = crossings[number][1:] if number < len(crossings) else (None, (0.0, 0.0))
        legs.append(Leg(door, direction, passed))
        begin = end
    return legs


def _crossings(route: Sequence[Vector], lintel: Sequence[float]) -> list[tuple[float, Vector, Vector]]:
    """Where the route goes through one doorway: way so far, the doorway's middle, direction of walking."""
    x0, z0, x1, z1 = lintel
    middle = ((x0 + x1) / 2, (z0 + z1) / 2)
    axis = 0 if x1 - x0 < z1 - z0 else 1
    low, high = ((z0, z1), (x0, x1))[axis]
    result, walked = [], 0.0
    for a, b in pairwise(route):
        size = sqrt((b[0] - a[0]) * (b[0] - a[0]) + (b[1] - a[1]) * (b[1] - a[1]))
        if (a[axis] - middle[axis]) * (b[axis] - middle[axis]) < 0:
            t = (middle[axis] - a[axis]) / (b[axis] - a[axis])
            across = a[1 - axis] + t * (b[1 - axis] - a[1 - axis])
            if low <= across <= high:
                sign = 1.0 if b[axis] > a[axis] else -1.0
                result.append((walked + t * size, middle, (sign, 0.0) if axis == 0 else (0.0, sign)))
        walked += size
    return result


def _passed_objects(houses: HouseBatch, i: int, route: Sequence[Vector]) -> list[tuple[float, int]]:
    """Objects other than the goal that the route passes closely in their own room: way so far, object."""
    found = []
    for k in range(int(houses.num_objects[i])):
        if k == int(houses.goal_object[i]):
            continue
        x, z = float(houses.object_x[i, k]), float(houses.object_z[i, k])
        distance, along, point = _nearest_point(route, x, z)
        if distance <= PASS_WITHIN_M and _room(houses, i, x, z) == _room(houses, i, *point) and along > 0.5:
            found.append((along, k))
    return sorted(found)


def _nearest_point(route: Sequence[Vector], x: float, z: float) -> tuple[float, float, Vector]:
    """Distance of a point from the route, way walked until the nearest point, that point."""
    best, walked = (float("inf"), 0.0, route[0]), 0.0
    for a, b in pairwise(route):
        dx, dz = b[0] - a[0], b[1] - a[1]
        squared = dx * dx + dz * dz
        t = min(1.0, max(0.0, ((x - a[0]) * dx + (z - a[1]) * dz) / squared)) if squared else 0.0
        point = (a[0] + t * dx, a[1] + t * dz)
        distance = sqrt((x - point[0]) * (x - point[0]) + (z - point[1]) * (z - point[1]))
        if distance < best[0]:
            best = (distance, walked + t * sqrt(squared), point)
        walked += sqrt(squared)
    return best


def _room(houses: HouseBatch, i: int, x: float, z: float) -> tuple[int, int]:
    size = float(houses.room_size[i])
    return int(z // size), int(x // size)
