"""Geodesic distances are exact for the collision model."""

import heapq
import math
from itertools import pairwise

import numpy as np
import pytest

from llava.navigation.worlds.expert import plan_tasks
from llava.navigation.worlds.house import generate_houses
from llava.navigation.worlds.obstacles import Obstacles, inside
from llava.navigation.worlds.planner import goal_field

CELL = 0.1
MOVES = [(a, b) for a in range(-3, 4) for b in range(-3, 4) if math.gcd(a, b) == 1]


def grid_dijkstra(obstacles, x, z, goal_x, goal_z):
    """Shortest way over a grid of 10 cm with 32 directions, every edge checked at 1 cm: a close upper bound."""
    x0, z0, x1, z1 = obstacles.bounds[0]
    nx, nz = int((x1 - x0) / CELL) + 1, int((z1 - z0) / CELL) + 1

    def free(points):
        points = np.asarray(points, dtype=float)
        return ~inside(obstacles, points[None, :, 0], points[None, :, 1])[0]

    grid = np.array([(x0 + i * CELL, z0 + j * CELL) for i in range(nx) for j in range(nz)])
    open_cell = free(grid).reshape(nx, nz)
    fine = np.linspace(0, 1, 12)[1:-1]

    def edges(i, j):
        targets = [(i + a, j + b) for a, b in MOVES if 0 <= i + a < nx and 0 <= j + b < nz and open_cell[i + a, j + b]]
        if not targets:
            return []
        ends = np.array([(x0 + a * CELL, z0 + b * CELL) for a, b in targets])
        begin = np.array([x0 + i * CELL, z0 + j * CELL])
        points = begin + (ends - begin)[:, None] * fine[None, :, None]
        good = free(points.reshape(-1, 2)).reshape(len(targets), -1).all(1)
        return [(t, math.dist(begin, e)) for t, e, ok in zip(targets, ends, good, strict=True) if ok]

    start = (round((x - x0) / CELL), round((z - z0) / CELL))
    goal = (round((goal_x - x0) / CELL), round((goal_z - z0) / CELL))
    queue, best = [(0.0, start)], {start: 0.0}
    while queue:
        distance, cell = heapq.heappop(queue)
        if cell == goal:
            return distance
        if distance > best[cell]:
            continue
        for target, cost in edges(*cell):
            if distance + cost < best.get(target, math.inf):
                best[target] = distance + cost
                heapq.heappush(queue, (distance + cost, target))
    return math.inf


@pytest.mark.parametrize(("level", "seed"), [("one_room", 1), ("one_room", 11), ("multi_room", 2), ("multi_room", 5)])
def test_distance_agrees_with_a_brute_force_grid(level, seed):
    tasks = plan_tasks(generate_houses(level, [seed]))
    obstacles = tasks.obstacles
    exact, _ = goal_field(obstacles, tasks.goal_x, tasks.goal_z).query(
        np.array([0]), tasks.houses.start_x, tasks.houses.start_z
    )
    grid = grid_dijkstra(obstacles, tasks.houses.start_x[0], tasks.houses.start_z[0], tasks.goal_x[0], tasks.goal_z[0])
    assert exact[0] - 0.15 <= grid <= exact[0] * 1.03 + 0.15  # both ends are rounded to the grid


@pytest.mark.parametrize("level", ["one_room", "multi_room"])
def test_distance_to_the_goal_point_is_the_way_to_the_object_less_the_stand_off(level):
    tasks = plan_tasks(generate_houses(level, np.arange(60)))
    field = goal_field(tasks.obstacles, tasks.goal_x, tasks.goal_z)
    distance, _ = field.query(np.arange(60), tasks.houses.start_x, tasks.houses.start_z)
    np.testing.assert_allclose(distance, tasks.distance, atol=1e-9)


def test_routes_have_the_length_that_the_distance_tells():
    tasks = plan_tasks(generate_houses("multi_room", np.arange(60)))
    for i, route in enumerate(tasks.routes):
        points = [(tasks.houses.start_x[i], tasks.houses.start_z[i]), *route]
        assert sum(math.dist(a, b) for a, b in pairwise(points)) == pytest.approx(tasks.distance[i])


def test_distance_changes_by_no_more_than_the_step():
    tasks = plan_tasks(generate_houses("multi_room", [0]))
    field, chance = goal_field(tasks.obstacles, tasks.goal_x, tasks.goal_z), np.random.default_rng(0)
    rows = np.zeros(400, dtype=int)
    x = chance.uniform(0.2, tasks.obstacles.bounds[0, 2], 400)
    z = chance.uniform(0.2, tasks.obstacles.bounds[0, 3], 400)
    dx, dz = chance.uniform(-0.05, 0.05, (2, 400))
    free = ~inside(tasks.obstacles, np.r_[x, x + dx][None], np.r_[z, z + dz][None])[0].reshape(2, 400).any(0)
    a, _ = field.query(rows, x, z)
    b, _ = field.query(rows, x + dx, z + dz)
    assert free.sum() > 200
    assert (abs(a - b)[free] <= np.sqrt(dx**2 + dz**2)[free] + 1e-9).all()


def test_a_point_inside_a_wall_is_unreachable():
    obstacles = Obstacles.of(generate_houses("multi_room", [0]))
    wall_x, wall_z = obstacles.x[0, 0], obstacles.z[0, 0]
    field = goal_field(obstacles, np.array([wall_x]), np.array([wall_z]))
    distance, corner = field.query(np.array([0]), np.array([1.0]), np.array([1.0]))
    assert math.isinf(distance[0])
    assert corner[0] == -1
