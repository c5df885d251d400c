"""The collision model, shared by motion and planning.

The robot is a point; everything solid is grown by the robot's radius. A landmark object is a regular octagon around its
circle (or box), walls are rectangles with square corners. Each obstacle is thus the intersection of up to four slabs
|n . (p - c)| < half with n = x, z and the two diagonals, which makes sweeps and lines of sight exact and cheap.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from llava.navigation.worlds.base import FORWARD_M
from llava.navigation.worlds.house import AGENT_RADIUS_M, HouseBatch
from llava.navigation.worlds.tables import FORWARD_X, FORWARD_Z, ROOT_HALF

SKIN_M = 1e-6  # a blocked robot stands this far off the surface
TOLERANCE_M = 1e-9  # touching is not crossing
CHUNK_TESTS = 1 << 19  # line-of-sight tests held in memory at once
TAN_22_5 = float(np.sqrt(2.0) - 1.0)
_OCTAGON_X = np.array([1.0, TAN_22_5, -TAN_22_5, -1.0, -1.0, -TAN_22_5, TAN_22_5, 1.0])
_OCTAGON_Z = np.array([TAN_22_5, 1.0, 1.0, TAN_22_5, -TAN_22_5, -1.0, -1.0, -TAN_22_5])
_RECTANGLE_X = np.array([1.0, 1.0, -1.0, -1.0])
_RECTANGLE_Z = np.array([1.0, -1.0, -1.0, 1.0])
_NORMAL_X = np.array([1.0, 0.0, ROOT_HALF, ROOT_HALF])
_NORMAL_Z = np.array([0.0, 1.0, ROOT_HALF, -ROOT_HALF])


@dataclass(frozen=True)
class Obstacles:
    """O obstacles in each of N houses, walls first, then the objects in instance order, and the walkable rectangle.

    half [N, O, 4]: half-widths along x, z and the diagonals; -1 where an obstacle is absent.
    corner_x, corner_z [N, M]: convex corners that can be stood on, the only points at which a shortest way can bend.
    out_x, out_z [N, M]: signs (+-1) of the direction away from the corner's obstacle.
    has_corner [N, M]: False for padding.
    """

    x: Float[np.ndarray, "n o"]
    z: Float[np.ndarray, "n o"]
    half: Float[np.ndarray, "n o 4"]
    bounds: Float[np.ndarray, "n 4"]
    corner_x: Float[np.ndarray, "n m"]
    corner_z: Float[np.ndarray, "n m"]
    out_x: Float[np.ndarray, "n m"]
    out_z: Float[np.ndarray, "n m"]
    has_corner: Bool[np.ndarray, "n m"]
    num_walls: int

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def of(cls, houses: HouseBatch, agent_radius: float = AGENT_RADIUS_M) -> Obstacles:
        boxes = np.nan_to_num(houses.wall_boxes)
        absent = np.isnan(houses.wall_boxes[..., 0])
        half_x = np.where(absent, -1.0, (boxes[..., 2] - boxes[..., 0]) / 2 + agent_radius)
        half_z = np.where(absent, -1.0, (boxes[..., 3] - boxes[..., 1]) / 2 + agent_radius)
        far = np.where(absent, -1.0, 1e9)
        reach = np.where(houses.has_object, houses.radius + agent_radius, -1.0)
        wall_x, wall_z = (boxes[..., 0] + boxes[..., 2]) / 2, (boxes[..., 1] + boxes[..., 3]) / 2
        bare = cls(
            x=np.concatenate([wall_x, houses.object_x], axis=1),
            z=np.concatenate([wall_z, houses.object_z], axis=1),
            half=np.concatenate(
                [np.stack([half_x, half_z, far, far], axis=-1), np.repeat(reach[..., None], 4, axis=-1)], axis=1
            ),
            bounds=houses.bounds + np.array([agent_radius, agent_radius, -agent_radius, -agent_radius]),
            **dict.fromkeys(("corner_x", "corner_z", "out_x", "out_z"), np.empty((len(houses), 0))),
            has_corner=np.empty((len(houses), 0), dtype=bool),
            num_walls=boxes.shape[1],
        )
        return bare._with_corners()

    def _with_corners(self) -> Obstacles:
        """Finds the corners that are neither inside another obstacle nor outside the house."""
        w, n = self.num_walls, len(self)
        wall_x = self.x[:, :w, None] + self.half[:, :w, :1] * _RECTANGLE_X
        wall_z = self.z[:, :w, None] + self.half[:, :w, 1:2] * _RECTANGLE_Z
        object_x = self.x[:, w:, None] + self.half[:, w:, :1] * _OCTAGON_X
        object_z = self.z[:, w:, None] + self.half[:, w:, :1] * _OCTAGON_Z
        x = np.concatenate([wall_x.reshape(n, -1), object_x.reshape(n, -1)], axis=1)
        z = np.concatenate([wall_z.reshape(n, -1), object_z.reshape(n, -1)], axis=1)
        owner = np.concatenate([np.repeat(np.arange(w), 4), np.repeat(np.arange(w, self.x.shape[1]), 8)])
        usable = ~inside(self, x, z) & (self.half[:, owner, 0] > 0)
        most = int(usable.sum(axis=1).max(initial=0))
        order = np.argsort(~usable, axis=1, kind="stable")[:, :most]
        corner_x, corner_z = np.take_along_axis(x, order, 1), np.take_along_axis(z, order, 1)
        return replace(
            self,
            corner_x=corner_x,
            corner_z=corner_z,
            out_x=np.sign(corner_x - np.take_along_axis(self.x[:, owner], order, 1)),
            out_z=np.sign(corner_z - np.take_along_axis(self.z[:, owner], order, 1)),
            has_corner=np.take_along_axis(usable, order, 1),
        )

    def select(self, rows: np.ndarray | slice) -> Obstacles:
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "num_walls"})

    def without(self, objects: Int[np.ndarray, " n"]) -> Obstacles:
        """The same with one object removed from each house (its corners stay, but nothing is there to block)."""
        half = self.half.copy()
        half[np.arange(len(self)), self.num_walls + objects] = -1.0
        return replace(self, half=half)

    def walls_only(self) -> Obstacles:
        """For lines of sight: objects are too low to hide what is behind them."""
        w = self.num_walls
        return replace(self, x=self.x[:, :w], z=self.z[:, :w], half=self.half[:, :w])


def blocked(
    obstacles: Obstacles,
    house: Int[np.ndarray, " q"],
    ax: Float[np.ndarray, " q"],
    az: Float[np.ndarray, " q"],
    bx: Float[np.ndarray, " q"],
    bz: Float[np.ndarray, " q"],
) -> Bool[np.ndarray, " q"]:
    """True where the straight way from a to b in house `house[i]` crosses an obstacle; touching is allowed."""
    crossed = np.zeros(len(house), dtype=bool)
    w, o = obstacles.num_walls, obstacles.x.shape[1]
    for part, num_slabs in ((slice(0, w), 2), (slice(w, o), 4)):
        width = len(range(*part.indices(o)))
        todo = np.flatnonzero(~crossed)
        for begin in range(0, len(todo) if width else 0, max(1, CHUNK_TESTS // max(1, width))):
            q = todo[begin : begin + CHUNK_TESTS // width]
            h = house[q]
            x, z, half = obstacles.x[h, part], obstacles.z[h, part], obstacles.half[h, part]
            enter, leave, _ = _slab_times(
                x, z, half - TOLERANCE_M, ax[q], az[q], bx[q] - ax[q], bz[q] - az[q], num_slabs
            )
            crossed[q] = ((enter < leave) & (enter < 1) & (leave > 0)).any(axis=1)
    return crossed


def _slab_times(
    x: np.ndarray,
    z: np.ndarray,
    half: np.ndarray,
    from_x: np.ndarray,
    from_z: np.ndarray,
    dx: np.ndarray,
    dz: np.ndarray,
    num_slabs: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fractions of Q moves at which each of O obstacles [Q, O] is entered and left, and the slab of the entry."""
    offset_x, offset_z = from_x[:, None] - x, from_z[:, None] - z
    enter, leave = np.full(x.shape, -np.inf), np.full(x.shape, np.inf)
    axis = np.zeros(x.shape, dtype=np.int8)
    for k in range(num_slabs):
        offset, speed = _along(k, offset_x, offset_z), _along(k, dx, dz)
        inverse = (1 / (speed + (abs(speed) < 1e-12) * 2e-12))[:, None]
        first, second = (-half[..., k] - offset) * inverse, (half[..., k] - offset) * inverse
        begin = np.minimum(first, second)
        axis[begin > enter] = k
        np.maximum(enter, begin, out=enter)
        np.minimum(leave, np.maximum(first, second), out=leave)
    np.copyto(enter, np.inf, where=half[..., 0] < 0)
    return enter, leave, axis


def _along(k: int, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    if k < 2:
        return z if k else x
    return (x + z if k == 2 else x - z) * ROOT_HALF


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
    """One step of 0.25 m in each house; what is left of a blocked step slides on. Returns x, z, collided."""
    dx, dz = FORWARD_M * FORWARD_X[heading], FORWARD_M * FORWARD_Z[heading]
    t, normal_x, normal_z = _first_hit(obstacles, x, z, dx, dz)
    collided = t < 1
    new_x, new_z = x + dx * t, z + dz * t
    rows = np.flatnonzero(collided)
    if len(rows) == 0:
        return new_x, new_z, collided
    nx, nz = normal_x[rows], normal_z[rows]
    left = 1 - t[rows]
    into = dx[rows] * nx + dz[rows] * nz
    slide_x, slide_z = (dx[rows] - into * nx) * left, (dz[rows] - into * nz) * left
    at_x, at_z = new_x[rows] + nx * SKIN_M, new_z[rows] + nz * SKIN_M
    stop, stop_nx, stop_nz = _first_hit(obstacles.select(rows), at_x, at_z, slide_x, slide_z)
    second = np.where(stop < 1, SKIN_M, 0.0)
    new_x[rows] = at_x + slide_x * stop + stop_nx * second
    new_z[rows] = at_z + slide_z * stop + stop_nz * second
    return new_x, new_z, collided


def _first_hit(
    obstacles: Obstacles, x: np.ndarray, z: np.ndarray, dx: np.ndarray, dz: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fraction of the move that is free (1 = all) and the outward normal of what stops it."""
    t, normal_x, normal_z = np.ones(len(x)), np.zeros(len(x)), np.zeros(len(x))
    if obstacles.x.shape[1]:
        enter, leave, axis = _slab_times(obstacles.x, obstacles.z, obstacles.half, x, z, dx, dz, 4)
        hit = (enter < leave) & (leave > 0) & (enter < 1) & (enter > -0.01)
        enter = np.where(hit, np.maximum(enter, 0.0), 1.0)
        nearest = enter.argmin(axis=1)[:, None]
        t = np.take_along_axis(enter, nearest, 1)[:, 0]
        side = np.take_along_axis(axis, nearest, 1)[:, 0]
        normal_x, normal_z = _NORMAL_X[side], _NORMAL_Z[side]
        outward = np.where(dx * normal_x + dz * normal_z > 0, -1.0, 1.0)
        normal_x, normal_z = normal_x * outward, normal_z * outward
    for position, speed, low, unit_x, unit_z in ((x, dx, 0, 1.0, 0.0), (z, dz, 1, 0.0, 1.0)):
        moving = abs(speed) > 1e-12
        edge = np.where(speed > 0, obstacles.bounds[:, low + 2], obstacles.bounds[:, low])
        reach = np.maximum((edge - position) / np.where(moving, speed, 1.0), 0.0)
        sooner = moving & (reach < t)
        t = np.where(sooner, reach, t)
        sign = np.where(speed > 0, -1.0, 1.0)
        normal_x, normal_z = np.where(sooner, unit_x * sign, normal_x), np.where(sooner, unit_z * sign, normal_z)
    return t, normal_x, normal_z
