"""The embedded world: N episodes in lockstep, or one as a gymnasium environment."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from llava.navigation.worlds.base import (
    FORWARD,
    LEFT,
    NUM_HEADINGS,
    RIGHT,
    TURN_DEG,
    CameraProfile,
    Coordinates,
    Episode,
    Observation,
    Point,
    heading_index_from_rotation,
)
from llava.navigation.worlds.house import HouseBatch, generate_houses
from llava.navigation.worlds.obstacles import Obstacles, move_forward
from llava.navigation.worlds.planner import GoalField, goal_field
from llava.navigation.worlds.renderer import Frames, render

SCENE_PREFIX = "embedded"


def scene_id(level: str, seed: int) -> str:
    return f"{SCENE_PREFIX}/{level}/{seed}"


def parse_scene_id(scene: str) -> tuple[str, int]:
    """Level and seed of `embedded/<level>/<seed>`."""
    parts = scene.split("/")
    if len(parts) != 3 or parts[0] != SCENE_PREFIX or not parts[2].isdigit():
        raise ValueError(
            f"scene '{scene}' is not of the embedded world, expected '{SCENE_PREFIX}/<level>/<seed>'; "
            "Matterport scenes need the Habitat world"
        )
    return parts[1], int(parts[2])


def houses_of(episodes: Sequence[Episode]) -> HouseBatch:
    """The houses of episodes of one level, in their order."""
    if len(episodes) == 0:
        raise ValueError("0 episodes given, expected at least one; check the split or the number of episodes asked for")
    scenes = [parse_scene_id(episode.scene_id) for episode in episodes]
    levels = sorted({level for level, _ in scenes})
    if len(levels) > 1:
        raise ValueError(f"episodes of levels {levels} in one batch, expected one level; run them level by level")
    return generate_houses(levels[0], [seed for _, seed in scenes])


class EmbeddedWorldBatch:
    """N episodes of one level that are stepped together and rendered in one pass.

    Attributes:
        positions: float64 [N, 3]; headings: int [N], multiples of 15 degrees; collided: bool [N], of the last step.
        houses: the regenerated houses, for `describe_objects` and pictures.
    """

    def __init__(self, episodes: Sequence[Episode], camera: CameraProfile) -> None:
        self.episodes, self.camera = list(episodes), camera
        self.houses = houses_of(self.episodes)
        self.obstacles = Obstacles.of(self.houses)
        self._fields: list[GoalField] | None = None
        self.reset()

    def __len__(self) -> int:
        return len(self.episodes)

    def reset(self) -> None:
        """Puts every robot back to its start; `render` shows the first views."""
        start = np.array([episode.start_position for episode in self.episodes], dtype=np.float64)
        self.x, self.z = start[:, 0].copy(), start[:, 2].copy()
        self.headings = np.array([heading_index_from_rotation(e.start_rotation) for e in self.episodes])
        self.collided = np.zeros(len(self), dtype=bool)

    @property
    def positions(self) -> Float[np.ndarray, "n 3"]:
        return np.stack([self.x, np.zeros_like(self.x), self.z], axis=1)

    def step(
        self, actions: Int[np.ndarray, " n"] | Sequence[int], active: Bool[np.ndarray, " n"] | None = None
    ) -> None:
        """One low-level action each (0 STOP, 1 FORWARD, 2 LEFT, 3 RIGHT); inactive robots stay as they are."""
        actions = np.asarray(actions)
        if actions.shape != (len(self),) or ((actions < 0) | (actions > 3)).any():
            raise ValueError(
                f"actions are {actions!r}, expected {len(self)} integers 0 STOP, 1 FORWARD, 2 LEFT, 3 RIGHT"
            )
        active = np.ones(len(self), dtype=bool) if active is None else active
        self.collided = np.where(active, False, self.collided)
        turn = (actions == LEFT) * 1 - (actions == RIGHT) * 1
        self.headings = (self.headings + turn * active) % NUM_HEADINGS
        walking = np.flatnonzero(active & (actions == FORWARD))
        if len(walking):
            self.x[walking], self.z[walking], self.collided[walking] = move_forward(
                self.obstacles.select(walking), self.x[walking], self.z[walking], self.headings[walking]
            )

    def render(self, rows: Int[np.ndarray, " r"] | None = None) -> Frames:
        """Present views of all robots, or of those in `rows` (frame i is robot rows[i])."""
        rows = np.arange(len(self)) if rows is None else np.asarray(rows)
        return render(self.houses, rows, self.x[rows], self.z[rows], self.headings[rows], self.camera)

    def geodesics(self) -> Float[np.ndarray, " n"]:
        """Shortest walkable way from each robot to its nearest goal; inf where there is none."""
        if self._fields is None:
            self._fields = self._plan()
        rows = np.arange(len(self))
        result = np.full(len(self), np.inf)
        for field in self._fields:
            result = np.minimum(result, field.query(rows, self.x, self.z)[0])
        return result

    def _plan(self) -> list[GoalField]:
        most = max(len(episode.goals) for episode in self.episodes)
        if min(len(episode.goals) for episode in self.episodes) == 0:
            raise ValueError("an episode has no goal (test split?), so there is no distance to it")
        goals = np.array([[e.goals[min(i, len(e.goals) - 1)] for i in range(most)] for e in self.episodes])
        return [goal_field(self.obstacles, goals[:, i, 0].copy(), goals[:, i, 2].copy()) for i in range(most)]

    def close(self) -> None:
        """Nothing to release; present for symmetry with other worlds."""


class EmbeddedWorld:
    """One episode at a time, as a `NavigationWorld`; `environment.EmbeddedEnv` wraps it for gymnasium."""

    def __init__(self, camera: CameraProfile | None = None) -> None:
        self.camera = camera or CameraProfile()
        self._batch: EmbeddedWorldBatch | None = None
        self._graph: dict[Point, GoalField] = {}

    @property
    def batch(self) -> EmbeddedWorldBatch:
        if self._batch is None:
            raise ValueError("no episode yet; call reset(episode) first")
        return self._batch

    def reset(self, episode: Episode) -> Observation:
        self._batch, self._graph = EmbeddedWorldBatch([episode], self.camera), {}
        return self._observe()

    def step(self, action: int) -> Observation:
        self.batch.step(np.array([action]))
        return self._observe()

    def _observe(self) -> Observation:
        frames = self.batch.render()
        return Observation(frames.rgb[0], frames.depth[0], frames.instance_ids[0])

    def position(self) -> Point:
        return float(self.batch.x[0]), 0.0, float(self.batch.z[0])

    def heading(self) -> float:
        return math.radians(int(self.batch.headings[0]) * TURN_DEG)

    def geodesic(self, start: Coordinates, goals: Sequence[Coordinates]) -> float:
        if len(goals) == 0:
            raise ValueError("0 goals given, expected at least one position")
        ways = []
        for goal in goals:
            key: Point = (float(goal[0]), float(goal[1]), float(goal[2]))
            if key not in self._graph:
                self._graph[key] = goal_field(self.batch.obstacles, np.array([key[0]]), np.array([key[2]]))
            distance, _ = self._graph[key].query(
                np.array([0]), np.array([float(start[0])]), np.array([float(start[2])])
            )
            ways.append(float(distance[0]))
        return min(ways)

    @property
    def collided(self) -> bool:
        return self._batch is not None and bool(self._batch.collided[0])

    def close(self) -> None:
        self._batch = None
