"""Exact shortest ways around the obstacles of the collision model: a visibility graph over their corners."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from llava.navigation.worlds.obstacles import Obstacles, blocked

CHUNK_WEIGHTS = 1 << 20  # entries of corner graphs held in memory at once


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
        """Distance to the goal of house `rows[i]` from (x[i], z[i]); first corner on the way (-1 = go straight)."""
        goal_x, goal_z = self.goal_x[rows], self.goal_z[rows]
        distance, corner = length(x - goal_x, z - goal_z), np.full(len(rows), -1)
        around = np.flatnonzero(blocked(self.obstacles, rows, x, z, goal_x, goal_z))
        if len(around):
            distance[around], corner[around] = self._around(rows[around], x[around], z[around])
        return distance, corner

    def _around(self, rows: np.ndarray, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        corner_x, corner_z = self.obstacles.corner_x[rows], self.obstacles.corner_z[rows]
        if corner_x.shape[1] == 0:
            return np.full(len(rows), np.inf), np.full(len(rows), -1)
        total = length(x[:, None] - corner_x, z[:, None] - corner_z) + self.distance[rows]
        q, m = np.nonzero(np.isfinite(total))
        hidden = blocked(self.obstacles, rows[q], x[q], z[q], corner_x[q, m], corner_z[q, m])
        total[q[hidden], m[hidden]] = np.inf
        best = total.argmin(axis=1)
        shortest = total[np.arange(len(rows)), best]
        return shortest, np.where(np.isfinite(shortest), best, -1)

    def bends(
        self, rows: Int[np.ndarray, " q"], x: Float[np.ndarray, " q"], z: Float[np.ndarray, " q"]
    ) -> tuple[Float[np.ndarray, " q"], list[list[tuple[float, float]]]]:
        """Distances, and the corners at which the shortest ways turn, in walking order."""
        distance, first = self.query(rows, x, z)
        ways: list[list[tuple[float, float]]] = []
        for row, corner in zip(rows.tolist(), first.tolist(), strict=True):
            way = []
            while corner >= 0:
                way.append((float(self.obstacles.corner_x[row, corner]), float(self.obstacles.corner_z[row, corner])))
                corner = int(self.following[row, corner])
            ways.append(way)
        return distance, ways


def length(dx: np.ndarray, dz: np.ndarray) -> np.ndarray:
    """Euclidean length from a correctly rounded square root (np.hypot is not the same on every machine)."""
    return np.sqrt(dx * dx + dz * dz)


def goal_field(obstacles: Obstacles, goal_x: Float[np.ndarray, " n"], goal_z: Float[np.ndarray, " n"]) -> GoalField:
    """Plans towards one goal in every house."""
    step = max(1, CHUNK_WEIGHTS // max(1, obstacles.corner_x.shape[1] ** 2))
    parts = [
        _relax(obstacles.select(slice(i, i + step)), goal_x[i : i + step], goal_z[i : i + step])
        for i in range(0, len(obstacles), step)
    ]
    distance, following = (np.concatenate(column) for column in zip(*parts, strict=True))
    return GoalField(obstacles, goal_x, goal_z, distance, following)


def corner_graph(obstacles: Obstacles) -> Float[np.ndarray, "n m m"]:
    """Lengths between corners that see each other, inf otherwise."""
    x, z, m = obstacles.corner_x, obstacles.corner_z, obstacles.corner_x.shape[1]
    pair = obstacles.has_corner[:, :, None] & obstacles.has_corner[:, None, :] & np.triu(np.ones((m, m), dtype=bool), 1)
    house, a, b = np.nonzero(pair)
    hidden = blocked(obstacles, house, x[house, a], z[house, a], x[house, b], z[house, b])
    house, a, b = house[~hidden], a[~hidden], b[~hidden]
    weights = np.full((len(obstacles), m, m), np.inf)
    weights[house, a, b] = length(x[house, a] - x[house, b], z[house, a] - z[house, b])
    weights[house, b, a] = weights[house, a, b]
    return weights


def _relax(obstacles: Obstacles, goal_x: np.ndarray, goal_z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bellman-Ford over the corner graph."""
    weights = corner_graph(obstacles)
    x, z = obstacles.corner_x, obstacles.corner_z
    distance, following = np.full(x.shape, np.inf), np.full(x.shape, -1)
    house, m = np.nonzero(obstacles.has_corner)
    hidden = blocked(obstacles, house, x[house, m], z[house, m], goal_x[house], goal_z[house])
    house, m = house[~hidden], m[~hidden]
    distance[house, m] = length(x[house, m] - goal_x[house], z[house, m] - goal_z[house])
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
