"""The same houses drawn by MiniWorld (extra `miniworld`, needs OpenGL): a renderer that nobody here wrote.

Motion, collisions and distances stay those of the embedded world; only the pictures differ.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np

from llava.navigation.worlds.base import CameraProfile, Coordinates, Episode, Observation, Point
from llava.navigation.worlds.embedded import EmbeddedWorld
from llava.navigation.worlds.house import HouseBatch
from llava.navigation.worlds.multi_room import borders_of
from llava.navigation.worlds.tables import (
    BALL,
    BOX,
    CEILING_M,
    COLOUR_NAMES,
    CONE,
    DOOR_TOP_M,
    OBJECT_COLOURS,
)

INSTALL_HINT = (
    "MiniWorld cannot draw here. Install it with: pip install 'llava[miniworld]'; it also needs OpenGL, on Debian: "
    "apt-get install libegl1 libgl1-mesa-dri libglu1-mesa"
)
WALL_TEXTURES = (
    "drywall",
    "stucco",
    "brick_wall",
    "wood_planks",
    "concrete_tiles",
    "cinder_blocks",
    "marble",
    "metal_grill",
)
FLOOR_TEXTURES = ("floor_tiles_bw", "wood", "asphalt", "concrete")
SIDES = 24  # of round objects


class MiniWorldWorld:
    """A `NavigationWorld` whose pictures come from MiniWorld; one at a time, RGB and depth."""

    def __init__(self, camera: CameraProfile | None = None) -> None:
        self.camera = camera or CameraProfile()
        self.world = EmbeddedWorld(CameraProfile(width=8, height=8))
        self._scene: Any = None
        _scene_class()  # fail now rather than at the first episode

    def reset(self, episode: Episode) -> Observation:
        self.world.reset(episode)
        if self._scene is not None:
            self._scene.close()
        self._scene = _scene_class()(self.world.batch.houses, self.camera)
        return self._observe()

    def step(self, action: int) -> Observation:
        self.world.step(action)
        return self._observe()

    def _observe(self) -> Observation:
        scene, (x, _, z) = self._scene, self.world.position()
        scene.agent.pos = np.array([x, 0.0, z])
        scene.agent.dir = math.pi / 2 + self.world.heading()
        rgb = np.ascontiguousarray(scene.render_obs())
        depth = np.asarray(scene.render_depth(), dtype=np.float32).reshape(rgb.shape[:2])
        return Observation(rgb, depth)

    def position(self) -> Point:
        return self.world.position()

    def heading(self) -> float:
        return self.world.heading()

    def geodesic(self, start: Coordinates, goals: Sequence[Coordinates]) -> float:
        return self.world.geodesic(start, goals)

    @property
    def collided(self) -> bool:
        return self.world.collided

    def close(self) -> None:
        if self._scene is not None:
            self._scene.close()
            self._scene = None


def solid_triangles(shape: int, radius: float, height: float) -> tuple[np.ndarray, np.ndarray]:
    """Corners and normals [T, 3, 3] of a ball, cone or cylinder of revolution that stands on the floor."""
    if shape == BALL:
        angles = np.linspace(-np.pi / 2, np.pi / 2, SIDES // 2 + 1)
        profile = np.stack([radius * np.cos(angles), radius + radius * np.sin(angles)], axis=1)
        lean = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    elif shape == CONE:
        profile = np.array([[radius, 0.0], [0.0, height]])
        lean = np.array([[height, radius]] * 2) / math.hypot(height, radius)
    else:
        profile = np.array([[radius, 0.0], [radius, height], [radius, height], [0.0, height]])
        lean = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    around = np.linspace(0, 2 * np.pi, SIDES + 1)
    ring = np.stack([np.cos(around), np.sin(around)], axis=1)  # [S + 1, 2]
    points = np.stack(
        [ring[:, None, 0] * profile[:, 0], 0 * ring[:, :1] + profile[:, 1], ring[:, None, 1] * profile[:, 0]], -1
    )
    normals = np.stack([ring[:, None, 0] * lean[:, 0], 0 * ring[:, :1] + lean[:, 1], ring[:, None, 1] * lean[:, 0]], -1)

    def triangles(grid: np.ndarray) -> np.ndarray:
        a, b, c, d = grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]
        return np.concatenate([np.stack([a, d, c], -2), np.stack([a, c, b], -2)]).reshape(-1, 3, 3)

    return triangles(points), triangles(normals)


@lru_cache(maxsize=1)
def _scene_class() -> Any:
    """The MiniWorld environment of a house; made on first use because importing MiniWorld opens an OpenGL context."""
    try:
        import pyglet  # pyright: ignore[reportMissingImports]

        if not os.environ.get("DISPLAY"):
            pyglet.options["headless"] = True
        from miniworld.entity import Box, Entity  # pyright: ignore[reportMissingImports]
        from miniworld.miniworld import MiniWorldEnv  # pyright: ignore[reportMissingImports]
        from pyglet import gl  # pyright: ignore[reportMissingImports]
    except Exception as error:  # ImportError, missing libraries, no display: pyglet raises its own kinds
        raise ImportError(f"{INSTALL_HINT}\n(the import said: {type(error).__name__}: {error})") from error

    class Solid(Entity):
        """A round landmark."""

        def __init__(self, shape: int, radius: float, height: float, colour: np.ndarray) -> None:
            super().__init__()
            self.radius, self.height, self.colour = radius, height, colour
            self.points, self.normals = solid_triangles(shape, radius, height)

        def render(self) -> None:
            gl.glDisable(gl.GL_TEXTURE_2D)
            gl.glColor3f(*self.colour)
            gl.glPushMatrix()
            gl.glTranslatef(*cast(Any, self.pos))
            gl.glBegin(gl.GL_TRIANGLES)
            for point, normal in zip(self.points.reshape(-1, 3), self.normals.reshape(-1, 3), strict=True):
                gl.glNormal3f(*normal)
                gl.glVertex3f(*point)
            gl.glEnd()
            gl.glPopMatrix()

        def draw_bound(self) -> None:
            """Nothing: bounds are a debugging aid."""

    class ColouredBox(Box):
        def __init__(self, size: np.ndarray, colour: np.ndarray) -> None:
            super().__init__("red", cast(Any, size))
            self.own_colour = colour

        def randomize(self, params: Any, rng: Any) -> None:
            self.color_vec = self.own_colour

    class Scene(MiniWorldEnv):
        """One house of the embedded world."""

        def __init__(self, houses: HouseBatch, camera: CameraProfile) -> None:
            self.houses, self.camera = houses, camera
            super().__init__(obs_width=camera.width, obs_height=camera.height, window_width=64, window_height=64)

        def _gen_world(self) -> None:
            add_rooms(self, self.houses)
            for k in range(int(self.houses.num_objects[0])):
                self.entities.append(self._landmark(k))
            agent = cast(Any, self.agent)
            agent.pos, agent.dir = np.zeros(3), 0.0  # moved before every picture
            self.entities.append(agent)

        def _landmark(self, k: int) -> Any:
            houses = self.houses
            shape, radius, height = int(houses.shape[0, k]), float(houses.radius[0, k]), float(houses.height[0, k])
            colour = np.array(OBJECT_COLOURS[COLOUR_NAMES[houses.colour[0, k]]]) / 255
            box = ColouredBox(np.array([2 * radius, height, 2 * radius]), colour) if shape == BOX else None
            entity: Any = box or Solid(shape, radius, height, colour)
            entity.pos = np.array([float(houses.object_x[0, k]), 0.0, float(houses.object_z[0, k])])
            entity.dir = 0.0
            return entity

        def reset(self, **options: Any) -> Any:
            result = super().reset(**options)
            camera, agent = self.camera, cast(Any, self.agent)
            agent.cam_height, agent.cam_pitch = camera.height_m, camera.pitch_deg
            agent.cam_fov_y = math.degrees(2 * math.atan(camera.tan_half_hfov * camera.height / camera.width))
            agent.cam_fwd_disp = 0.0
            return result

    return Scene


def add_rooms(scene: Any, houses: HouseBatch) -> None:
    """Rooms and doorways of house 0."""
    rows, columns = (int(value) for value in houses.grid[0])
    size, half_wall = float(houses.room_size[0]), float(houses.bounds[0, 0])
    rooms = []
    for room in range(rows * columns):
        row, column = divmod(room, columns)
        rooms.append(
            scene.add_rect_room(
                min_x=column * size + half_wall,
                max_x=(column + 1) * size - half_wall,
                min_z=row * size + half_wall,
                max_z=(row + 1) * size - half_wall,
                wall_height=CEILING_M,
                wall_tex=WALL_TEXTURES[int(houses.wall_texture[0, room, 0]) % len(WALL_TEXTURES)],
                floor_tex=FLOOR_TEXTURES[int(houses.floor_tint[0, room])],
                ceil_tex="ceiling_tiles",
            )
        )
    for border, lintel in zip(borders_of(rows, columns), houses.lintels[0], strict=False):
        if not np.isnan(lintel[0]):
            low, high = (lintel[1], lintel[3]) if border.vertical else (lintel[0], lintel[2])
            span = (
                {"min_z": float(low), "max_z": float(high)}
                if border.vertical
                else {"min_x": float(low), "max_x": float(high)}
            )
            scene.connect_rooms(*(rooms[room] for room in border.rooms), **span, max_y=DOOR_TOP_M)
