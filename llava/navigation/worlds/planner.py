"""Exact shortest ways around the obstacles of the collision model: a visibility graph over their corners."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from llava.navigation.worlds.obstacles import Obstacles, blocked, inside

CHUNK_TESTS = 1 << 21  # line-of-sight tests held in memory at once


@dataclass(frozen=True)
class GoalField:
    """Shortest ways to one goal per house.

    distance [N, M]: from each corner (inf = unreachable); following [N, M]: the next corner, -1 = straight to the goal.
    """

    obstacles: Obstacles
    goal_x: Float[np.ndarray, " n"]
    goal_z: Float[np.ndarray, " n"]
    distance: Float[np.ndarray, "n m"]
    following: Int[np.ndarray, "n m"]

    def query(
        self, rows: Int[np.ndarray, " q"], x: Float[np.ndarray, " q"], z: Float[np.ndarray, " q"]
    ) -> tuple[Float[np.ndarray, " q"], Int[np.ndarray, " q"]]:
        """Distance to the goal of house `rows[i]` from (x[i], z[i]) and the first corner on the way (-1 = none, go straight)."""
        goal_x, goal_z = self.goal_x[rows], self.goal_z[rows]
        distance, corner = length(x - goal_x, z - goal_z), np.full(len(rows), -1)
        around = np.flatnonzero(blocked(self.obstacles.select(rows), x, z, goal_x, goal_z))
        step = max(1, CHUNK_TESTS // max(1, self.distance.shape[1] * self.obstacles.x.shape[1]))
        for begin in range(0, len(around), step):
            part = around[begin : begin + step]
            distance[part], corner[part] = self._around(rows[part], x[part], z[part])
        return distance, corner

    def _around(self, rows: np.ndarray, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        some = self.obstacles.select(rows)
        from_x, from_z = (
            np.broadcast_to(x[:, None], some.corner_x.shape),
            np.broadcast_to(z[:, None], some.corner_z.shape),
        )
        hidden = blocked(some, from_x, from_z, some.corner_x, some.corner_z)
        total = length(from_x - some.corner_x, from_z - some.corner_z) + self.distance[rows]
        total = np.where(hidden, np.inf, total)
        best = total.argmin(axis=1)
        return total[np.arange(len(rows)), best], best

    def path(self, row: int, x: float, z: float) -> list[tuple[float, float]]:
        """Bends of the shortest way from (x, z), the goal included, the start not. Empty where there is no way."""
        distance, corner = self.query(np.array([row]), np.array([x]), np.array([z]))
        if not np.isfinite(distance[0]):
            return []
        points, at = [], int(corner[0])
        while at >= 0:
            points.append((float(self.obstacles.corner_x[row, at]), float(self.obstacles.corner_z[row, at])))
            at = int(self.following[row, at])
        return [*points, (float(self.goal_x[row]), float(self.goal_z[row]))]


def length(dx: np.ndarray, dz: np.ndarray) -> np.ndarray:
    """Euclidean length from a correctly rounded square root (np.hypot is not the same on every machine)."""
    return np.sqrt(dx * dx + dz * dz)


def goal_field(obstacles: Obstacles, goal_x: Float[np.ndarray, " n"], goal_z: Float[np.ndarray, " n"]) -> GoalField:
    """Plans towards one goal in every house."""
    m, o = obstacles.corner_x.shape[1], obstacles.x.shape[1]
    step = max(1, CHUNK_TESTS // max(1, m * m * o // 2))
    parts = [
        _relax(obstacles.select(slice(i, i + step)), goal_x[i : i + step], goal_z[i : i + step])
        for i in range(0, len(obstacles), step)
    ]
    distance, following = (np.concatenate(column) for column in zip(*parts, strict=True))
    return GoalField(obstacles, goal_x, goal_z, distance, following)


def corner_graph(obstacles: Obstacles) -> tuple[Float[np.ndarray, "n m m"], Bool[np.ndarray, "n m"]]:
    """Lengths between corners that see each other (inf otherwise), and which corners can be stood on."""
    x, z = obstacles.corner_x, obstacles.corner_z
    usable = ~inside(obstacles, x, z) & (obstacles.half[:, obstacles.corner_owner, 0] > 0)
    m = x.shape[1]
    a, b = np.triu_indices(m, 1)
    open_way = ~blocked(obstacles, x[:, a], z[:, a], x[:, b], z[:, b]) & usable[:, a] & usable[:, b]
    weights = np.full((len(obstacles), m, m), np.inf)
    weights[:, a, b] = np.where(open_way, length(x[:, a] - x[:, b], z[:, a] - z[:, b]), np.inf)
    weights[:, b, a] = weights[:, a, b]
    return weights, usable


def _relax(obstacles: Obstacles, goal_x: np.ndarray, goal_z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bellman-Ford over the corner graph."""
    weights, usable = corner_graph(obstacles)
    x, z = obstacles.corner_x, obstacles.corner_z
    to_x, to_z = np.broadcast_to(goal_x[:, None], x.shape), np.broadcast_to(goal_z[:, None], z.shape)
    direct = usable & ~blocked(obstacles, x, z, to_x, to_z)
    distance = np.where(direct, length(x - to_x, z - to_z), np.inf)
    following = np.full(x.shape, -1)
    for _ in range(x.shape[1]):
        through = weights + distance[:, None, :]
        best = through.argmin(axis=2)
        shorter = np.take_along_axis(through, best[..., None], axis=2)[..., 0]
        better = shorter < distance - 1e-12
        if not better.any():
            break
        distance = np.where(better, shorter, distance)
        following = np.where(better, best, following)
    return distance, following
