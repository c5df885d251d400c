"""The collision model, shared by motion and planning.

The robot is a point; everything solid is grown by the robot's radius. A landmark object is a regular octagon around its
circle (or box), walls are rectangles with square corners. Each obstacle is thus the intersection of up to four slabs
|n . (p - c)| < half with n = x, z and the two diagonals, which makes sweeps and lines of sight exact and cheap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from llava.navigation.worlds.base import FORWARD_M
from llava.navigation.worlds.house import AGENT_RADIUS_M, HouseBatch
from llava.navigation.worlds.tables import FORWARD_X, FORWARD_Z, ROOT_HALF

SKIN_M = 1e-6  # a blocked robot stands this far off the surface
TOLERANCE_M = 1e-9  # touching is not crossing
TAN_22_5 = float(np.sqrt(2.0) - 1.0)
_CORNER_A = np.array([1.0, TAN_22_5, -TAN_22_5, -1.0, -1.0, -TAN_22_5, TAN_22_5, 1.0])
_CORNER_B = np.array([TAN_22_5, 1.0, 1.0, TAN_22_5, -TAN_22_5, -1.0, -1.0, -TAN_22_5])
_NORMAL_X = np.array([1.0, 0.0, ROOT_HALF, ROOT_HALF])
_NORMAL_Z = np.array([0.0, 1.0, ROOT_HALF, -ROOT_HALF])


@dataclass(frozen=True)
class Obstacles:
    """O obstacles in each of N houses, walls first, then the objects in instance order, and the walkable rectangle.

    half [N, O, 4]: half-widths along x, z and the diagonals; -1 where an obstacle is absent.
    corner_x, corner_z [N, M]: convex corners, the only points at which a shortest path can bend.
    corner_owner [M]: obstacle index of each corner.
    """

    x: Float[np.ndarray, "n o"]
    z: Float[np.ndarray, "n o"]
    half: Float[np.ndarray, "n o 4"]
    bounds: Float[np.ndarray, "n 4"]
    corner_x: Float[np.ndarray, "n m"]
    corner_z: Float[np.ndarray, "n m"]
    corner_owner: Int[np.ndarray, " m"]
    num_walls: int

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def of(cls, houses: HouseBatch, agent_radius: float = AGENT_RADIUS_M) -> Obstacles:
        boxes = houses.wall_boxes
        wall_x, wall_z = (boxes[..., 0] + boxes[..., 2]) / 2, (boxes[..., 1] + boxes[..., 3]) / 2
        wall_hx = (boxes[..., 2] - boxes[..., 0]) / 2 + agent_radius
        wall_hz = (boxes[..., 3] - boxes[..., 1]) / 2 + agent_radius
        far = np.full_like(wall_hx, 1e9)
        wall_half = np.stack([wall_hx, wall_hz, far, far], axis=-1)
        wall_half[np.isnan(boxes[..., 0])] = -1.0
        reach = np.where(houses.has_object, houses.radius + agent_radius, -1.0)
        corner_x = [wall_x + sign * wall_hx for sign in (1, 1, -1, -1)]
        corner_z = [wall_z + sign * wall_hz for sign in (1, -1, -1, 1)]
        n, num_walls, num_objects = len(houses), boxes.shape[1], reach.shape[1]
        octagon_x = houses.object_x[..., None] + reach[..., None] * _CORNER_A
        octagon_z = houses.object_z[..., None] + reach[..., None] * _CORNER_B
        inset = np.array([agent_radius, agent_radius, -agent_radius, -agent_radius])
        clean_x, clean_z = np.nan_to_num(wall_x), np.nan_to_num(wall_z)
        return cls(
            x=np.concatenate([clean_x, houses.object_x], axis=1),
            z=np.concatenate([clean_z, houses.object_z], axis=1),
            half=np.concatenate([wall_half, np.repeat(reach[..., None], 4, axis=-1)], axis=1),
            bounds=houses.bounds + inset,
            corner_x=np.nan_to_num(np.concatenate([*corner_x, octagon_x.reshape(n, -1)], axis=1), nan=-100.0),
            corner_z=np.nan_to_num(np.concatenate([*corner_z, octagon_z.reshape(n, -1)], axis=1), nan=-100.0),
            corner_owner=np.concatenate(
                [np.tile(np.arange(num_walls), 4), np.repeat(num_walls + np.arange(num_objects), 8)]
            ),
            num_walls=num_walls,
        )

    def select(self, rows: np.ndarray | slice) -> Obstacles:
        picked = (getattr(self, name)[rows] for name in ("x", "z", "half", "bounds", "corner_x", "corner_z"))
        return Obstacles(*picked, self.corner_owner, self.num_walls)

    def without(self, objects: Int[np.ndarray, " n"]) -> Obstacles:
        """The same with one object removed from each house (the corners stay, but nothing is there to block)."""
        half = self.half.copy()
        half[np.arange(len(self)), self.num_walls + objects] = -1.0
        return Obstacles(
            self.x, self.z, half, self.bounds, self.corner_x, self.corner_z, self.corner_owner, self.num_walls
        )

    def walls_only(self) -> Obstacles:
        w = self.num_walls
        empty = self.corner_x[:, :0]
        return Obstacles(
            self.x[:, :w], self.z[:, :w], self.half[:, :w], self.bounds, empty, empty, self.corner_owner[:0], w
        )


def _slab_times(
    obstacles: Obstacles, x: np.ndarray, z: np.ndarray, dx: np.ndarray, dz: np.ndarray, shrink: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fractions of the moves (x, z) + t (dx, dz), shapes [N, ..., 1], at which each obstacle is entered and left, and the entry's slab.

    Returned shapes [N, ..., O].
    """
    lead = (slice(None),) + (None,) * (x.ndim - 2)
    from_x, from_z = x - obstacles.x[lead], z - obstacles.z[lead]
    enter: np.ndarray | float = -np.inf
    leave: np.ndarray | float = np.inf
    axis = np.zeros(from_x.shape, dtype=np.int8)
    for k in range(4):
        if k >= 2 and obstacles.num_walls == obstacles.x.shape[1]:
            break  # rectangles only
        half = obstacles.half[lead][..., k] - shrink
        offset, speed = _along(k, from_x, from_z), _along(k, dx, dz)
        speed = speed + (abs(speed) < 1e-12) * 2e-12
        first, second = (-half - offset) / speed, (half - offset) / speed
        begin = np.minimum(first, second)
        if k:
            np.copyto(axis, k, where=begin > enter)
        enter = np.maximum(enter, begin)
        leave = np.minimum(leave, np.maximum(first, second))
    gone = obstacles.half[lead][..., 0] < 0
    return np.where(gone, np.inf, enter), np.where(gone, -np.inf, leave), axis


def _along(k: int, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    if k < 2:
        return z if k else x
    return (x + z if k == 2 else x - z) * ROOT_HALF


def blocked(
    obstacles: Obstacles, ax: np.ndarray, az: np.ndarray, bx: np.ndarray, bz: np.ndarray
) -> Bool[np.ndarray, "..."]:
    """True where the straight way from a to b (arrays [N, ...]) crosses an obstacle; touching is allowed."""
    if obstacles.x.shape[1] == 0:
        return np.zeros(np.broadcast_shapes(ax.shape, bx.shape), dtype=bool)
    ax, az = ax[..., None], az[..., None]
    enter, leave, _ = _slab_times(obstacles, ax, az, bx[..., None] - ax, bz[..., None] - az, TOLERANCE_M)
    return ((enter < leave) & (enter < 1) & (leave > 0)).any(axis=-1)


def inside(obstacles: Obstacles, x: Float[np.ndarray, "n m"], z: Float[np.ndarray, "n m"]) -> Bool[np.ndarray, "n m"]:
    """True for points inside an obstacle or outside the walkable rectangle."""
    from_x, from_z = x[..., None] - obstacles.x[:, None], z[..., None] - obstacles.z[:, None]
    within = np.ones(from_x.shape, dtype=bool)
    for k in range(4):
        within &= abs(_along(k, from_x, from_z)) < obstacles.half[:, None, :, k] - TOLERANCE_M
    x0, z0, x1, z1 = (obstacles.bounds[:, i, None] for i in range(4))
    outside = (x < x0 - TOLERANCE_M) | (x > x1 + TOLERANCE_M) | (z < z0 - TOLERANCE_M) | (z > z1 + TOLERANCE_M)
    return within.any(axis=-1) | outside


def move_forward(
    obstacles: Obstacles, x: Float[np.ndarray, " n"], z: Float[np.ndarray, " n"], heading: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """One step of 0.25 m; what is left of a blocked step slides along the surface. Returns x, z, collided."""
    dx, dz = FORWARD_M * FORWARD_X[heading], FORWARD_M * FORWARD_Z[heading]
    t, normal_x, normal_z = _first_hit(obstacles, x, z, dx, dz)
    collided = t < 1
    new_x, new_z = x + dx * t, z + dz * t
    rows = np.flatnonzero(collided)
    if len(rows) == 0:
        return new_x, new_z, collided
    some, nx, nz = obstacles.select(rows), normal_x[rows], normal_z[rows]
    left = 1 - t[rows]
    into = dx[rows] * nx + dz[rows] * nz
    slide_x, slide_z = (dx[rows] - into * nx) * left, (dz[rows] - into * nz) * left
    at_x, at_z = new_x[rows] + nx * SKIN_M, new_z[rows] + nz * SKIN_M
    stop, stop_nx, stop_nz = _first_hit(some, at_x, at_z, slide_x, slide_z)
    second = stop < 1
    new_x[rows] = at_x + slide_x * stop + np.where(second, stop_nx * SKIN_M, 0.0)
    new_z[rows] = at_z + slide_z * stop + np.where(second, stop_nz * SKIN_M, 0.0)
    return new_x, new_z, collided


def _first_hit(
    obstacles: Obstacles, x: np.ndarray, z: np.ndarray, dx: np.ndarray, dz: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fraction of the move that is free (1 = all) and the outward normal of what stops it."""
    n = np.arange(len(x))
    t, normal_x, normal_z = np.ones(len(x)), np.zeros(len(x)), np.zeros(len(x))
    if obstacles.x.shape[1]:
        enter, leave, axis = _slab_times(obstacles, x[:, None], z[:, None], dx[:, None], dz[:, None], 0.0)
        hit = (enter < leave) & (leave > 0) & (enter < 1) & (enter > -0.01)
        enter = np.where(hit, np.maximum(enter, 0.0), 1.0)
        nearest = enter.argmin(axis=1)
        t = enter[n, nearest]
        side = axis[n, nearest]
        normal_x, normal_z = _NORMAL_X[side], _NORMAL_Z[side]
        outward = np.where(dx * normal_x + dz * normal_z > 0, -1.0, 1.0)
        normal_x, normal_z = normal_x * outward, normal_z * outward
    limits = ((x, dx, 0, 2, 1.0, 0.0), (z, dz, 1, 3, 0.0, 1.0))
    for position, speed, low, high, ux, uz in limits:
        moving = abs(speed) > 1e-12
        edge = np.where(speed > 0, obstacles.bounds[:, high], obstacles.bounds[:, low])
        reach = np.maximum((edge - position) / np.where(moving, speed, 1.0), 0.0)
        sooner = moving & (reach < t)
        t = np.where(sooner, reach, t)
        sign = np.where(speed > 0, -1.0, 1.0)
        normal_x, normal_z = np.where(sooner, ux * sign, normal_x), np.where(sooner, uz * sign, normal_z)
    return t, normal_x, normal_z
