"""Simulators as lanes of the loop: any `NavigationWorld` side by side, or the embedded world with batched pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from llava.navigation.worlds.base import CameraProfile, Episode, NavigationWorld, Observation
from llava.navigation.worlds.embedded import EmbeddedWorldBatch


class WorldLanes:
    """One `NavigationWorld` per lane; `make_world` is called once per lane."""

    def __init__(self, make_world: Callable[[], NavigationWorld], count: int) -> None:
        self.worlds = [make_world() for _ in range(count)]
        self.episodes: list[Episode] = []
        self._seen: dict[int, Observation] = {}

    def reset(self, episodes: Sequence[Episode]) -> list[np.ndarray]:
        if len(episodes) > len(self.worlds):
            raise ValueError(f"{len(episodes)} episodes for {len(self.worlds)} lanes; make as many lanes as episodes")
        self.episodes = list(episodes)
        self._seen = dict(enumerate(world.reset(each) for world, each in zip(self.worlds, episodes, strict=False)))
        return [observation.rgb for observation in self._seen.values()]

    def step(self, actions: Mapping[int, int], *, render: bool) -> dict[int, np.ndarray]:
        self._seen |= {lane: self.worlds[lane].step(action) for lane, action in actions.items()}
        return {lane: self._seen[lane].rgb for lane in actions} if render else {}

    def object_mask(self, lane: int) -> Bool[np.ndarray, "h w"] | None:
        ids = self._seen[lane].instance_ids
        return None if ids is None else ids > 0

    def position(self, lane: int) -> np.ndarray:
        return np.asarray(self.worlds[lane].position(), dtype=float)

    def distance_to_goal(self, lane: int) -> float:
        return float(self.worlds[lane].geodesic(self.worlds[lane].position(), self.episodes[lane].goals))

    def collided(self, lane: int) -> bool:
        return bool(self.worlds[lane].collided)

    def simulator(self, lane: int) -> Any:
        return self.worlds[lane]

    def close(self) -> None:
        for world in self.worlds:
            world.close()


@dataclass(frozen=True)
class EmbeddedLane:
    """One row of a batch of the embedded world, for policies that know the house."""

    batch: EmbeddedWorldBatch
    lane: int


class EmbeddedLanes:
    """The embedded world: all lanes in one array, pictures of all lanes that need one in one pass."""

    def __init__(self, camera: CameraProfile) -> None:
        self.camera = camera
        self._batch: EmbeddedWorldBatch | None = None
        self._distances: np.ndarray | None = None
        self._instance_ids: dict[int, np.ndarray] = {}

    @property
    def batch(self) -> EmbeddedWorldBatch:
        assert self._batch is not None, "reset comes first"
        return self._batch

    def reset(self, episodes: Sequence[Episode]) -> list[np.ndarray]:
        self._batch, self._distances = EmbeddedWorldBatch(episodes, self.camera), None
        seen = self._batch.render()
        self._instance_ids = dict(enumerate(seen.instance_ids))
        return list(seen.rgb)

    def step(self, actions: Mapping[int, int], *, render: bool) -> dict[int, np.ndarray]:
        rows = np.fromiter(actions, dtype=np.int64)
        every = np.zeros(len(self.batch), dtype=np.int64)
        every[rows] = list(actions.values())
        active = np.zeros(len(self.batch), dtype=bool)
        active[rows] = True
        self.batch.step(every, active)
        self._distances = None
        if not render:
            return {}
        seen = self.batch.render(rows)
        self._instance_ids |= zip(rows.tolist(), seen.instance_ids, strict=True)
        return dict(zip(rows.tolist(), seen.rgb, strict=True))

    def object_mask(self, lane: int) -> Bool[np.ndarray, "h w"]:
        return self._instance_ids[lane] > 0

    def position(self, lane: int) -> np.ndarray:
        return self.batch.positions[lane]

    def distance_to_goal(self, lane: int) -> float:
        if self._distances is None:
            self._distances = self.batch.geodesics()
        return float(self._distances[lane])

    def collided(self, lane: int) -> bool:
        return bool(self.batch.collided[lane])

    def simulator(self, lane: int) -> EmbeddedLane:
        return EmbeddedLane(self.batch, lane)

    def close(self) -> None:
        if self._batch is not None:
            self._batch.close()
