"""Episodes walked by the expert, with or without noise, in lockstep over all houses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from llava.navigation.worlds.base import FORWARD, LEFT, NUM_HEADINGS, RIGHT, STOP, CameraProfile
from llava.navigation.worlds.detours import Detours
from llava.navigation.worlds.expert import MAX_MERGE, NOISE_STREAM, Expert, State, Tasks, needs_search, plan_tasks
from llava.navigation.worlds.house import HouseBatch, generate_houses, pick_integers, random_pool
from llava.navigation.worlds.obstacles import move_forward
from llava.navigation.worlds.renderer import Frames, render

MAX_STEPS = 200


@dataclass(frozen=True)
class Demonstrations:
    """E episodes as flat arrays over F poses (= frames) and D decisions.

    Frames of episode e: `frame_start[e]` .. `frame_start[e + 1]`; its decisions likewise. There is one pose per
    low-level action, the one at which it is executed, STOP included.
    """

    houses: HouseBatch
    tasks: Tasks
    frame_start: Int[np.ndarray, " e1"]
    x: Float[np.ndarray, " f"]
    z: Float[np.ndarray, " f"]
    heading: Int[np.ndarray, " f"]
    action: Int[np.ndarray, " f"]
    collided: Bool[np.ndarray, " f"]  # of the action executed at frame f
    decision_start: Int[np.ndarray, " e1"]
    decision_frame: Int[np.ndarray, " d"]  # index into the F frames
    label_kind: Int[np.ndarray, " d"]  # what the oracle would do
    label_steps: Int[np.ndarray, " d"]
    executed_kind: Int[np.ndarray, " d"]  # what was done
    executed_steps: Int[np.ndarray, " d"]
    stopped: Bool[np.ndarray, " e"]  # False = ran out of steps

    def __len__(self) -> int:
        return len(self.houses)

    @property
    def num_frames(self) -> int:
        return len(self.x)

    def render(self, frames: Int[np.ndarray, " q"], camera: CameraProfile) -> Frames:
        """Pictures of some of the F poses, for example `decision_frame`."""
        episode = self.episode_of_frame[frames]
        return render(self.houses, episode, self.x[frames], self.z[frames], self.heading[frames], camera)

    @property
    def episode_of_frame(self) -> Int[np.ndarray, " f"]:
        return np.repeat(np.arange(len(self)), np.diff(self.frame_start))


def demonstrate(
    level: str,
    seeds: np.ndarray,
    camera: CameraProfile | None = None,
    *,
    noise: float = 0.0,
    detours: float = 0.0,
    max_steps: int = MAX_STEPS,
) -> Demonstrations:
    """Demonstrates the task of every house (level, seed).

    Args:
        noise: probability that a decision is replaced by a random move of 1 to 3 equal actions (never a stop). The
            label stays the oracle's.
        detours: share of the episodes in which the robot is led to a wrong object for a while; the label likewise.
    """
    tasks = plan_tasks(generate_houses(level, seeds))
    return walk(tasks, camera or CameraProfile(), noise=noise, detours=detours, max_steps=max_steps)


def walk(
    tasks: Tasks,
    camera: CameraProfile | Sequence[CameraProfile],
    *,
    noise: float = 0.0,
    detours: float = 0.0,
    max_steps: int = MAX_STEPS,
) -> Demonstrations:
    """The same for tasks that are planned already, with one camera for all or one per task."""
    if not 0 <= noise < 1:
        raise ValueError(f"noise is {noise}, expected a probability in [0, 1); 0.15 is a good value")
    if not 0 <= detours <= 1:
        raise ValueError(f"detours is {detours}, expected a share of the episodes in [0, 1]; 0.3 is a good value")
    expert = Expert(tasks, camera, scan=needs_search(tasks.houses))
    state = _Walk(tasks, expert, noise, max_steps, Detours(tasks, camera, detours) if detours else None)
    while len(state.active):
        state.decide()
    return state.finish()


class _Walk:
    """Lockstep state: one call of `decide` = one decision of every episode that still walks."""

    def __init__(
        self, tasks: Tasks, expert: Expert, noise: float, max_steps: int, detours: Detours | None = None
    ) -> None:
        houses, n = tasks.houses, len(tasks)
        self.tasks, self.expert, self.max_steps = tasks, expert, max_steps
        self.state = State(houses.start_x.copy(), houses.start_z.copy(), houses.start_heading.copy(), np.zeros(n, bool))
        self.active = np.arange(n)
        self.num_steps = np.zeros(n, dtype=np.int64)
        self.stopped = np.zeros(n, dtype=bool)
        self.noise, self.detours = noise, detours
        self.pool = random_pool(houses.seeds, NOISE_STREAM, 3 * max_steps).reshape(n, max_steps, 3) if noise else None
        self.num_decisions = 0
        self.frames: list[tuple[np.ndarray, ...]] = []
        self.decisions: list[tuple[np.ndarray, ...]] = []

    def decide(self) -> None:
        rows = self.active
        state = self.state.take(rows)
        kind, steps = self.expert.decide(rows, state)
        self.state.seen[rows] = state.seen
        led = self.detours.lead(rows, self.num_decisions, state, kind, steps) if self.detours else (kind, steps)
        done_kind, done_steps = self._disturb(rows, *led)
        self.decisions.append((rows, self.num_steps[rows], kind, steps, done_kind, done_steps))
        for step in range(MAX_MERGE):
            some = done_steps > step
            if some.any():
                self._execute(rows[some], done_kind[some])
        self.num_decisions += 1
        self.stopped[rows[done_kind == STOP]] = True
        self.active = rows[(done_kind != STOP) & (self.num_steps[rows] < self.max_steps)]

    def _disturb(self, rows: np.ndarray, kind: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.pool is None:
            return kind, steps
        draw = self.pool[rows, self.num_decisions]
        noisy = draw[:, 0] < self.noise
        random_kind = np.array([FORWARD, LEFT, RIGHT])[pick_integers(draw[:, 1], 3)]
        return np.where(noisy, random_kind, kind), np.where(noisy, 1 + pick_integers(draw[:, 2], MAX_MERGE), steps)

    def _execute(self, rows: np.ndarray, action: np.ndarray) -> None:
        state = self.state
        before = state.x[rows], state.z[rows], state.heading[rows]
        collided = np.zeros(len(rows), dtype=bool)
        turn = np.where(action == LEFT, 1, np.where(action == RIGHT, -1, 0))
        state.heading[rows] = (state.heading[rows] + turn) % NUM_HEADINGS
        walking = np.flatnonzero(action == FORWARD)
        if len(walking):
            who = rows[walking]
            obstacles = self.tasks.obstacles.select(who)
            state.x[who], state.z[who], collided[walking] = move_forward(
                obstacles, state.x[who], state.z[who], state.heading[who]
            )
        self.frames.append((rows, self.num_steps[rows], *before, action, collided))
        self.num_steps[rows] += 1
        self.expert.observe(rows, watched := state.take(rows))
        state.seen[rows] = watched.seen

    def finish(self) -> Demonstrations:
        """Sorts the log by episode and time."""
        episode, time, x, z, heading, action, collided = _columns(self.frames)
        order = np.lexsort((time, episode))
        frame_start = _starts(episode, len(self.tasks))
        d_episode, d_time, kind, steps, done_kind, done_steps = _columns(self.decisions)
        d_order = np.lexsort((d_time, d_episode))
        return Demonstrations(
            houses=self.tasks.houses,
            tasks=self.tasks,
            frame_start=frame_start,
            x=x[order],
            z=z[order],
            heading=heading[order],
            action=action[order],
            collided=collided[order],
            decision_start=_starts(d_episode, len(self.tasks)),
            decision_frame=(frame_start[d_episode] + d_time)[d_order],
            label_kind=kind[d_order],
            label_steps=steps[d_order],
            executed_kind=done_kind[d_order],
            executed_steps=done_steps[d_order],
            stopped=self.stopped,
        )


def _columns(log: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(column) for column in zip(*log, strict=True))


def _starts(episode: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.bincount(episode, minlength=count))])
