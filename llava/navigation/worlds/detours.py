"""Demonstrations that are led astray: for a while the robot walks to another object while the label stays the oracle's.

Single random moves never bring a robot in front of a wrong object, and a policy that has only seen the right one from
near stops wherever it arrives. A detour shows it what to do there: look on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int

from llava.navigation.worlds.base import STOP, CameraProfile
from llava.navigation.worlds.expert import Expert, State, Tasks, plan_tasks
from llava.navigation.worlds.house import pick_integers, random_pool

DETOUR_STREAM = (1 << 20) + 1  # next to the noise, see expert.NOISE_STREAM
FIRST_DECISIONS = 6  # a detour begins at one of these
SHORTEST, LONGEST = 4, 13  # decisions, unless the object is reached before


class Detours:
    """At most one detour per episode, to an object that is not the goal.

    Args:
        share: probability of an episode to have one (an episode with a single object has none).
        camera: one for all tasks or one per task.
    """

    def __init__(self, tasks: Tasks, camera: CameraProfile | Sequence[CameraProfile], share: float) -> None:
        houses = tasks.houses
        draw = random_pool(houses.seeds, DETOUR_STREAM, 4)
        chosen = np.flatnonzero((draw[:, 0] < share) & (houses.num_objects > 1))
        self.begin = np.full(len(tasks), -1)
        self.begin[chosen] = pick_integers(draw[chosen, 1], FIRST_DECISIONS)
        self.end = self.begin + SHORTEST + pick_integers(draw[:, 2], LONGEST - SHORTEST + 1)
        self.place = np.full(len(tasks), -1)  # among those with a detour
        self.place[chosen] = np.arange(len(chosen))
        self.expert: Expert | None = None
        if len(chosen):
            others = houses.num_objects[chosen] - 1
            step = 1 + pick_integers(draw[chosen, 3], others)
            goal = (houses.goal_object[chosen] + step) % houses.num_objects[chosen]
            astray = plan_tasks(replace(houses.select(chosen), goal_object=goal))
            cameras = camera if isinstance(camera, CameraProfile) else [camera[i] for i in chosen.tolist()]
            self.expert = Expert(astray, cameras, scan=False)

    def lead(
        self, rows: np.ndarray, number: int, state: State, kind: np.ndarray, steps: np.ndarray
    ) -> tuple[Int[np.ndarray, " q"], Int[np.ndarray, " q"]]:
        """The moves that are executed at decision `number` in place of the oracle's; its stops are never replaced.

        Args:
            rows: the episodes that still walk.
            state: theirs.
            kind, steps: what the oracle says.
        """
        led = (self.begin[rows] >= 0) & (self.begin[rows] <= number) & (number < self.end[rows]) & (kind != STOP)
        some = np.flatnonzero(led)
        if self.expert is None or len(some) == 0:
            return kind, steps
        other_kind, other_steps = self.expert.decide(self.place[rows[some]], state.take(some))
        arrived = other_kind == STOP
        self.end[rows[some[arrived]]] = number  # seen from near: from here on the oracle leads
        kind, steps = kind.copy(), steps.copy()
        kind[some[~arrived]], steps[some[~arrived]] = other_kind[~arrived], other_steps[~arrived]
        return kind, steps
