"""Episodes of the embedded world from seeds or from demonstrations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llava.navigation.worlds.base import STOP, CameraProfile, Episode, Point, rotation_from_heading
from llava.navigation.worlds.demonstrations import Demonstrations, demonstrate
from llava.navigation.worlds.embedded import scene_id
from llava.navigation.worlds.instructions import write_instructions


def _point(x: float, z: float) -> Point:
    return (float(x), 0.0, float(z))


def make_episodes(
    level: str, seeds: Sequence[int] | np.ndarray, camera: CameraProfile | None = None, first_id: int = 0
) -> list[Episode]:
    """One episode per house seed, with the clean oracle's walk as dense ground truth."""
    return episodes_of(demonstrate(level, np.asarray(seeds), camera), camera, first_id)


def episodes_of(
    walks: Demonstrations, camera: CameraProfile | Sequence[CameraProfile] | None = None, first_id: int = 0
) -> list[Episode]:
    """Episodes with the walked positions as ground truth; numbered from `first_id`. One camera for all or one each."""
    cameras = camera if isinstance(camera, Sequence) else [camera] * len(walks)
    instructions = write_instructions(walks.tasks)
    return [_episode(walks, e, instructions[e], cameras[e], first_id + e) for e in range(len(walks))]


def _episode(walks: Demonstrations, e: int, instruction: str, camera: CameraProfile | None, number: int) -> Episode:
    houses, tasks = walks.houses, walks.tasks
    frames = slice(int(walks.frame_start[e]), int(walks.frame_start[e + 1]))
    x, z = walks.x[frames], walks.z[frames]
    moved = np.concatenate([[True], (np.diff(x) != 0) | (np.diff(z) != 0)])
    goal = _point(tasks.goal_x[e], tasks.goal_z[e])
    actions = tuple(int(a) for a in walks.action[frames])
    names = houses.object_names(e)
    return Episode(
        episode_id=str(number),
        scene_id=scene_id(houses.level, int(houses.seeds[e])),
        instruction=instruction,
        start_position=_point(x[0], z[0]),
        start_rotation=rotation_from_heading(int(houses.start_heading[e])),
        goals=(goal,),
        reference_path=(_point(x[0], z[0]), *(_point(*bend) for bend in tasks.routes[e])),
        locations=tuple(_point(a, b) for a, b in zip(x[moved], z[moved], strict=True)),
        actions=actions if actions and actions[-1] == STOP else (*actions, STOP),
        geodesic_distance=float(tasks.distance[e]),
        trajectory_id=number,
        camera=camera,
        info={
            "goal_object": names[int(houses.goal_object[e])],
            "objects": {name: _point(houses.object_x[e, i], houses.object_z[e, i]) for i, name in enumerate(names)},
        },
    )
