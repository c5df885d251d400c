"""Motion: 25 cm steps that slide along walls and never enter anything."""

import numpy as np
import pytest

from llava.navigation.worlds.base import FORWARD_M
from llava.navigation.worlds.house import AGENT_RADIUS_M, generate_houses
from llava.navigation.worlds.obstacles import Obstacles, inside, move_forward
from llava.navigation.worlds.tables import COS, SIN


def test_heading_tables_are_exact_at_the_axes_and_right_to_the_last_digit_elsewhere():
    assert COS[[0, 6, 12, 18]].tolist() == [1.0, 0.0, -1.0, 0.0]
    angles = np.radians(15.0 * np.arange(24))
    np.testing.assert_allclose(COS, np.cos(angles), atol=2e-16)
    np.testing.assert_allclose(SIN, np.sin(angles), atol=2e-16)


def test_heading_zero_walks_north_and_a_left_turn_from_there_west():
    obstacles = Obstacles.of(generate_houses("one_room", [0, 0]))
    centre = obstacles.bounds[:, 2] / 2
    clear = Obstacles.of(generate_houses("one_room", [0, 0])).without(np.array([0, 0]))
    x, z, hit = move_forward(clear, centre, centre, np.array([0, 6]))
    assert not hit.any()
    np.testing.assert_allclose(z - centre, [-FORWARD_M, 0.0], atol=1e-12)
    np.testing.assert_allclose(x - centre, [0.0, -FORWARD_M], atol=1e-12)


@pytest.mark.parametrize("level", ["one_room", "multi_room"])
def test_random_walks_stay_outside_walls_and_objects(level):
    houses = generate_houses(level, np.arange(80))
    obstacles, chance = Obstacles.of(houses), np.random.default_rng(0)
    x, z, heading = houses.start_x, houses.start_z, houses.start_heading
    hits = 0
    for _ in range(200):
        heading = (heading + chance.integers(-2, 3, len(houses))) % 24
        new_x, new_z, hit = move_forward(obstacles, x, z, heading)
        assert not inside(obstacles, new_x[:, None], new_z[:, None]).any()
        walked = np.sqrt((new_x - x) ** 2 + (new_z - z) ** 2)
        assert walked.max() <= FORWARD_M + 1e-5
        np.testing.assert_allclose(walked[~hit], FORWARD_M, atol=1e-9)
        x, z, hits = new_x, new_z, hits + int(hit.sum())
    assert hits > 200


def test_a_slanted_step_into_a_wall_slides_along_it_and_says_so():
    houses = generate_houses("one_room", [3])
    obstacles = Obstacles.of(houses)
    middle = float(obstacles.bounds[0, 2]) / 2
    x, z, hit = move_forward(
        obstacles, np.array([middle]), np.array([AGENT_RADIUS_M + 1e-6]), np.array([2])
    )  # 30 deg west
    assert hit[0]
    assert z[0] == pytest.approx(AGENT_RADIUS_M, abs=1e-5)
    assert middle - x[0] == pytest.approx(FORWARD_M / 2, abs=1e-5)


def test_walking_straight_into_an_object_stops_at_its_surface():
    houses = generate_houses("one_room", [3])
    obstacles = Obstacles.of(houses)
    ox, oz, reach = houses.object_x[0, 0], houses.object_z[0, 0], houses.radius[0, 0] + AGENT_RADIUS_M
    x, z, hit = move_forward(obstacles, np.array([ox]), np.array([oz + reach + 0.1]), np.array([0]))
    assert hit[0]
    assert z[0] - oz == pytest.approx(reach, abs=1e-5)
    assert x[0] == pytest.approx(ox, abs=1e-9)
