"""The embedded world for reinforcement learning and other gymnasium users."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import UInt8

from llava.navigation.worlds.base import STOP, CameraProfile, Episode, Observation
from llava.navigation.worlds.embedded import EmbeddedWorld

MAX_STEPS = 500
SUCCESS_M = 3.0
MAX_DEPTH_M = 30.0


class EmbeddedEnv(gymnasium.Env[dict[str, np.ndarray], int | np.integer]):
    """One episode at a time: Discrete(4) actions (0 STOP, 1 FORWARD, 2 LEFT, 3 RIGHT), pictures as observations.

    The reward is the geodesic progress in metres, plus 10 for a stop within 3 m of the goal. `info` holds the
    instruction, the distance to the goal, success and whether the last step collided. The option "episode" of `reset`
    chooses an episode; without it the next one is taken, or a random one when a seed is given. `world` is the same
    simulator as a `NavigationWorld`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  gymnasium's declaration

    def __init__(
        self,
        episodes: Sequence[Episode],
        camera: CameraProfile | None = None,
        max_steps: int = MAX_STEPS,
        render_mode: str | None = None,
    ) -> None:
        if len(episodes) == 0:
            raise ValueError("0 episodes given, expected at least one; make_episodes(level, seeds) makes some")
        self.episodes, self.max_steps, self.render_mode = list(episodes), max_steps, render_mode
        self.world = EmbeddedWorld(camera)
        height, width = self.world.camera.height, self.world.camera.width
        self.action_space = spaces.Discrete(4)
        self.observation_space: Any = spaces.Dict(
            rgb=spaces.Box(0, 255, (height, width, 3), np.uint8),
            depth=spaces.Box(0.0, MAX_DEPTH_M, (height, width), np.float32),
            instance_ids=spaces.Box(0, 255, (height, width), np.uint8),
        )
        self._next = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._next = int(self.np_random.integers(len(self.episodes)))
        self.episode: Episode = (options or {}).get("episode", self.episodes[self._next % len(self.episodes)])
        self._next += 1
        self._steps, self._stopped = 0, False
        self._view = self.world.reset(self.episode)
        self._distance = self._to_goal()
        return self._observation(), self._info()

    def step(self, action: int | np.integer) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self._view = self.world.step(int(action))
        self._steps += 1
        self._stopped = int(action) == STOP
        before, self._distance = self._distance, self._to_goal()
        info = self._info()
        reward = before - self._distance + 10.0 * info["success"]
        return self._observation(), reward, self._stopped, self._steps >= self.max_steps, info

    def render(self) -> UInt8[np.ndarray, "h w 3"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._view.rgb

    def close(self) -> None:
        self.world.close()

    def _to_goal(self) -> float:
        return self.world.geodesic(self.world.position(), self.episode.goals)

    def _observation(self) -> dict[str, np.ndarray]:
        view: Observation = self._view
        assert view.depth is not None and view.instance_ids is not None, "the embedded world always renders both"
        return {"rgb": view.rgb, "depth": view.depth, "instance_ids": view.instance_ids}

    def _info(self) -> dict[str, Any]:
        return {
            "instruction": self.episode.instruction,
            "distance_to_goal": self._distance,
            "success": float(self._stopped and self._distance < SUCCESS_M),
            "collided": self.world.collided,
        }
