"""Habitat VLN-CE behind the `NavigationWorld` protocol, in the user's own installation (habitat-sim is not on PyPI).

Works with habitat-lab 0.1.7 (VLN-CE, NaVILA) and with newer versions: of the environment only `reset`, `step`,
`episodes`, `episode_iterator`, `current_episode`, `sim` and `close` are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from llava.navigation.worlds.base import Coordinates, Episode, Observation, Point, heading_from_rotation

INSTALL_HINT = (
    "Habitat is not installed. VLN-CE needs habitat-sim and habitat-lab 0.1.7:\n"
    "  conda install -c aihabitat -c conda-forge habitat-sim=0.1.7 headless\n"
    "  git clone --branch v0.1.7 https://github.com/facebookresearch/habitat-lab && pip install -e habitat-lab\n"
    "then give HabitatWorld(config_path='.../vlnce_task.yaml') or an environment: HabitatWorld(env)"
)


def make_environment(config_path: str, overrides: Sequence[Any] = ()) -> Any:
    """A `habitat.Env` from a task configuration file of either generation.

    Args:
        overrides: yacs (0.1.7): [key, value, key, value, ...]; hydra (newer): ["key=value", ...].
    """
    try:
        habitat = import_module("habitat")
    except ImportError as error:
        raise ImportError(f"{INSTALL_HINT}\n(the import said: {error})") from error
    config = habitat.get_config(config_path, list(overrides))
    return habitat.Env(config=config)


class HabitatWorld:
    """One Habitat environment that walks the episodes it is told to.

    Args:
        env: a `habitat.Env` (or anything that speaks its interface).
        config_path: of the task, where no environment is given.
        depth_range_m: metres that depth 0 and 1 stand for (habitat normalises depth by default); None = depth is in
            metres.
    """

    def __init__(
        self,
        env: Any = None,
        *,
        config_path: str | None = None,
        overrides: Sequence[Any] = (),
        depth_range_m: tuple[float, float] | None = (0.0, 10.0),
    ) -> None:
        if env is None and config_path is None:
            raise ValueError(f"HabitatWorld needs an environment or config_path.\n{INSTALL_HINT}")
        self.env = make_environment(str(config_path), overrides) if env is None else env
        self.depth_range_m = depth_range_m
        self._known = {str(episode.episode_id): episode for episode in self.env.episodes}
        self._moved = False

    def reset(self, episode: Episode) -> Observation:
        """Starts the environment's episode of the same id."""
        wanted = self._known.get(episode.episode_id)
        if wanted is None:
            raise ValueError(
                f"Habitat has no episode '{episode.episode_id}' among its {len(self._known)}; "
                "its DATASET.SPLIT and DATASET.DATA_PATH must name the file that the episodes were read from"
            )
        self.env.episode_iterator = iter([wanted])
        view = self.env.reset()
        started = str(self.env.current_episode.episode_id)
        if started != episode.episode_id:
            raise RuntimeError(f"Habitat started episode '{started}' instead of '{episode.episode_id}'")
        self._moved = False
        return self._observation(view)

    def step(self, action: int) -> Observation:
        if action not in (0, 1, 2, 3):
            raise ValueError(f"action is {action!r}, expected 0 STOP, 1 FORWARD, 2 LEFT, 3 RIGHT")
        self._moved = action == 1
        return self._observation(self.env.step({"action": int(action)}))

    def _observation(self, view: Any) -> Observation:
        rgb = np.ascontiguousarray(np.asarray(view["rgb"])[..., :3]).astype(np.uint8, copy=False)
        depth = view.get("depth")
        if depth is None:
            return Observation(rgb)
        metres = np.asarray(depth, dtype=np.float32).reshape(rgb.shape[:2])
        if self.depth_range_m is not None:
            low, high = self.depth_range_m
            metres = metres * np.float32(high - low) + np.float32(low)
        return Observation(rgb, metres)

    def position(self) -> Point:
        x, y, z = (float(value) for value in self.env.sim.get_agent_state().position)
        return x, y, z

    def heading(self) -> float:
        rotation = self.env.sim.get_agent_state().rotation
        if hasattr(rotation, "w"):  # numpy-quaternion
            rotation = (rotation.x, rotation.y, rotation.z, rotation.w)
        return heading_from_rotation(rotation)

    def geodesic(self, start: Coordinates, goals: Sequence[Coordinates]) -> float:
        if len(goals) == 0:
            raise ValueError("0 goals given, expected at least one position")
        distance = self.env.sim.geodesic_distance(list(map(float, start)), [list(map(float, goal)) for goal in goals])
        return float(distance) if distance is not None else math.inf

    @property
    def collided(self) -> bool:
        """Of the last forward step; turns never collide (the simulator keeps the flag of the step before)."""
        return bool(self._moved and self.env.sim.previous_step_collided)

    def close(self) -> None:
        self.env.close()
