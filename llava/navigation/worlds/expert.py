"""The oracle that demonstrates episodes, many at once, and the noise that makes the demonstrations robust.

Every decision is a function of what the robot could see or remember: until the target has been in view it scans to
the right, then it walks the shortest way (turning only when the way-point is more than 18 degrees off), and it stops
when it faces the target within the approach distance. It never looks at pixels, so the same seeds give the same
demonstrations for every picture size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from llava.navigation.worlds import tables
from llava.navigation.worlds.base import FORWARD, LEFT, NUM_HEADINGS, RIGHT, STOP, CameraProfile
from llava.navigation.worlds.house import HouseBatch
from llava.navigation.worlds.obstacles import Obstacles, blocked, move_forward
from llava.navigation.worlds.planner import GoalField, goal_field, length

STAND_OFF_M = 0.8  # the goal is this far from the centre of the goal object
STOP_WITHIN_M = 0.95  # of the centre of the goal object
GOAL_WITHIN_M = 0.9  # of the goal point, else a stop would not count at 1 m
COS_KEEP_WALKING = 0.95  # a forward step must gain 95 % of its length
CLEARANCE_M = 0.1  # way-points keep off the corners that the shortest way touches
MAX_MERGE = 3
NOISE_STREAM = 1 << 20  # second word of the noise generator's seed; attempts of house generation use 0, 1, 2, ...


@dataclass(frozen=True)
class Tasks:
    """What the expert must know about N houses: where the goal is and how to get there.

    routes: way-points of the shortest way from start to goal, the goal included, the start not.
    """

    houses: HouseBatch
    obstacles: Obstacles
    to_object: GoalField  # to the centre of the goal object, which itself does not block
    goal_x: Float[np.ndarray, " n"]
    goal_z: Float[np.ndarray, " n"]
    distance: Float[np.ndarray, " n"]  # geodesic from start to goal
    routes: list[list[tuple[float, float]]]

    def __len__(self) -> int:
        return len(self.houses)


def plan_tasks(houses: HouseBatch) -> Tasks:
    """Finds the goal point of every house: where the shortest way from the start comes within the stand-off."""
    rows = np.arange(len(houses))
    obstacles = Obstacles.of(houses)
    object_x, object_z = houses.object_x[rows, houses.goal_object], houses.object_z[rows, houses.goal_object]
    field = goal_field(obstacles.without(houses.goal_object), object_x, object_z)
    distance, routes = field.bends(rows, houses.start_x, houses.start_z)
    starts = zip(houses.start_x.tolist(), houses.start_z.tolist(), strict=True)
    last = np.array([way[-1] if way else start for way, start in zip(routes, starts, strict=True)])
    back_x, back_z = last[:, 0] - object_x, last[:, 1] - object_z
    scale = STAND_OFF_M / length(back_x, back_z)
    goal_x, goal_z = object_x + back_x * scale, object_z + back_z * scale
    for way, x, z in zip(routes, goal_x.tolist(), goal_z.tolist(), strict=True):
        way.append((x, z))
    return Tasks(houses, obstacles, field, goal_x, goal_z, distance - STAND_OFF_M, routes)


def needs_search(houses: HouseBatch) -> bool:
    """True in one room, where the instruction names the object but not the way; a route tells the first turn."""
    return houses.wall_boxes.shape[1] == 0


@dataclass
class State:
    """Where the robots are: x, z [n], heading [n] (multiples of 15 degrees), seen [n] (the target has been in view)."""

    x: np.ndarray
    z: np.ndarray
    heading: np.ndarray
    seen: np.ndarray

    def take(self, rows: np.ndarray) -> State:
        return State(self.x[rows].copy(), self.z[rows].copy(), self.heading[rows].copy(), self.seen[rows].copy())

    def put(self, rows: np.ndarray, other: State) -> None:
        self.x[rows], self.z[rows], self.heading[rows], self.seen[rows] = other.x, other.z, other.heading, other.seen


class Expert:
    """Answers with the oracle's next merged action for any state of the given houses.

    Args:
        camera: one for all houses or one per house; only the field of view matters.
        scan: search for the target by turning right until it has been in view; without it the way is known from the
            start (route instructions describe it).
    """

    def __init__(self, tasks: Tasks, camera: CameraProfile | Sequence[CameraProfile], scan: bool) -> None:
        self.tasks, self.scan = tasks, scan
        cameras = [camera] * len(tasks) if isinstance(camera, CameraProfile) else camera
        self.view_tangent = np.array([camera.tan_half_hfov * 0.97 for camera in cameras])
        self.sight = tasks.obstacles.walls_only()
        houses = tasks.houses
        rows = np.arange(len(houses))
        self.object_x = houses.object_x[rows, houses.goal_object]
        self.object_z = houses.object_z[rows, houses.goal_object]

    def observe(self, rows: Int[np.ndarray, " q"], state: State) -> Bool[np.ndarray, " q"]:
        """True where the goal object's centre is in the field of view and no wall hides it; remembered in the state."""
        to_x, to_z = self.object_x[rows] - state.x, self.object_z[rows] - state.z
        side = to_x * tables.RIGHT_X[state.heading] + to_z * tables.RIGHT_Z[state.heading]
        ahead = to_x * tables.FORWARD_X[state.heading] + to_z * tables.FORWARD_Z[state.heading]
        in_view = (ahead > 0) & (abs(side) < self.view_tangent[rows] * ahead)
        candidates = np.flatnonzero(in_view)
        if self.sight.num_walls and len(candidates):
            x, z = state.x[candidates], state.z[candidates]
            house = rows[candidates]
            in_view[candidates] = ~blocked(self.sight, house, x, z, self.object_x[house], self.object_z[house])
        state.seen |= in_view
        return in_view

    def decide(self, rows: Int[np.ndarray, " q"], state: State) -> tuple[Int[np.ndarray, " q"], Int[np.ndarray, " q"]]:
        """Kind and number of steps (1..3) of the next merged action; `state.seen` is brought up to date."""
        in_view = self.observe(rows, state)
        target_x, target_z, near = self._steer(rows, state)
        kind, steps = self._turn_towards(state, target_x, target_z)
        kind[near & in_view], steps[near & in_view] = STOP, 1
        if self.scan:
            search = ~state.seen
            kind[search], steps[search] = RIGHT, MAX_MERGE
        walking = np.flatnonzero(kind == FORWARD)
        if len(walking):
            steps[walking] = self._count_forward(rows[walking], state.take(walking))
        return kind, steps

    def _steer(self, rows: np.ndarray, state: State) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Point to walk to, and whether the robot is where it should stop."""
        _, corner = self.tasks.to_object.query(rows, state.x, state.z)
        target_x, target_z = self.object_x[rows].copy(), self.object_z[rows].copy()
        bend = np.flatnonzero(corner >= 0)
        at, obstacles = (rows[bend], corner[bend]), self.tasks.obstacles
        target_x[bend] = obstacles.corner_x[at] + CLEARANCE_M * obstacles.out_x[at]
        target_z[bend] = obstacles.corner_z[at] + CLEARANCE_M * obstacles.out_z[at]
        to_object = length(self.object_x[rows] - state.x, self.object_z[rows] - state.z)
        to_goal = length(self.tasks.goal_x[rows] - state.x, self.tasks.goal_z[rows] - state.z)
        reached = (to_object <= STOP_WITHIN_M) & (corner < 0)
        astray = reached & (to_goal > GOAL_WITHIN_M)  # beside the object, on the wrong side of it
        target_x = np.where(astray, self.tasks.goal_x[rows], target_x)
        target_z = np.where(astray, self.tasks.goal_z[rows], target_z)
        return target_x, target_z, reached & ~astray

    def _turn_towards(self, state: State, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Forward while that gains 95 %, else the turn to the nearest heading (at most 45 degrees at once)."""
        to_x, to_z = x - state.x, z - state.z
        gain = to_x[:, None] * tables.FORWARD_X + to_z[:, None] * tables.FORWARD_Z  # [q, 24]
        best = gain.argmax(axis=1)
        keep = gain[np.arange(len(x)), state.heading] >= COS_KEEP_WALKING * length(to_x, to_z)
        off = (best - state.heading + NUM_HEADINGS // 2) % NUM_HEADINGS - NUM_HEADINGS // 2
        kind = np.where(keep, FORWARD, np.where(off > 0, LEFT, RIGHT))
        return kind, np.where(keep, 1, np.clip(abs(off), 1, MAX_MERGE))

    def _count_forward(self, rows: np.ndarray, state: State) -> np.ndarray:
        """How many forward steps follow each other before the oracle would do something else (1..3)."""
        count = np.ones(len(rows), dtype=np.int64)
        going = np.arange(len(rows))
        for _ in range(MAX_MERGE - 1):
            some = state.take(going)
            some.x, some.z, _ = move_forward(self.tasks.obstacles.select(rows[going]), some.x, some.z, some.heading)
            state.put(going, some)
            x, z, near = self._steer(rows[going], some)
            kind, _ = self._turn_towards(some, x, z)
            going = going[(kind == FORWARD) & ~near]
            if len(going) == 0:
                break
            count[going] += 1
        return count
