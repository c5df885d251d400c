"""Houses come from (level, seed) alone and keep the distances that make the task honest."""

import numpy as np
import pytest

from llava.navigation.worlds.expert import STAND_OFF_M, plan_tasks
from llava.navigation.worlds.house import generate_houses
from llava.navigation.worlds.obstacles import Obstacles, inside

LEVELS = ("one_room", "multi_room")


@pytest.mark.parametrize("level", LEVELS)
def test_a_house_does_not_depend_on_its_neighbours_in_the_batch(level):
    many = generate_houses(level, np.arange(30))
    few = generate_houses(level, [17, 4])
    for name in ("object_x", "start_z", "radius", "colour", "shape", "goal_object", "wall_boxes", "start_heading"):
        np.testing.assert_array_equal(getattr(many, name)[[17, 4]], getattr(few, name), err_msg=name)


@pytest.mark.parametrize("level", LEVELS)
def test_names_are_unique_and_colours_differ_in_a_house(level):
    houses = generate_houses(level, np.arange(100))
    for i in range(len(houses)):
        names = houses.object_names(i)
        assert len({name.split()[0] for name in names}) == len(names) >= 4


def test_a_large_seed_gives_another_house_than_its_low_half():
    a, b = generate_houses("one_room", [5]), generate_houses("one_room", [5 + (1 << 40)])
    assert a.start_x[0] != b.start_x[0]


def test_one_room_keeps_wrong_objects_away_from_the_goal():
    houses = generate_houses("one_room", np.arange(300))
    for i in range(len(houses)):
        x, z = houses.object_x[i, : houses.num_objects[i]], houses.object_z[i, : houses.num_objects[i]]
        goal = houses.goal_object[i]
        others = np.delete(np.sqrt((x - x[goal]) ** 2 + (z - z[goal]) ** 2), goal)
        assert others.min() >= 4.8
        assert 9 <= houses.bounds[i, 2] <= 12


def test_goal_objects_of_one_room_are_not_always_the_first():
    assert set(generate_houses("one_room", np.arange(60)).goal_object) >= {0, 1, 2, 3}


@pytest.mark.parametrize(("level", "least"), [("one_room", 4.0), ("multi_room", 5.0)])
def test_starts_are_far_from_goals_and_everything_stands_free(level, least):
    tasks = plan_tasks(generate_houses(level, np.arange(120)))
    assert tasks.distance.min() >= least
    assert np.isfinite(tasks.distance).all()
    obstacles = Obstacles.of(tasks.houses)
    for x, z in ((tasks.houses.start_x, tasks.houses.start_z), (tasks.goal_x, tasks.goal_z)):
        assert not inside(obstacles, x[:, None], z[:, None]).any()


def test_the_goal_point_is_one_stand_off_from_the_object():
    tasks = plan_tasks(generate_houses("multi_room", np.arange(40)))
    rows = np.arange(40)
    dx = tasks.goal_x - tasks.houses.object_x[rows, tasks.houses.goal_object]
    dz = tasks.goal_z - tasks.houses.object_z[rows, tasks.houses.goal_object]
    np.testing.assert_allclose(np.sqrt(dx**2 + dz**2), STAND_OFF_M, atol=1e-12)


def test_every_room_of_a_multi_room_house_has_other_walls():
    houses = generate_houses("multi_room", np.arange(20))
    for i in range(len(houses)):
        rooms = int(houses.grid[i].prod())
        assert len(set(houses.wall_texture[i, :rooms, 0])) == rooms


def test_an_unknown_level_is_answered_with_the_nearest():
    with pytest.raises(KeyError, match="did you mean 'one_room'"):
        generate_houses("one_rom", [0])


def test_no_seed_and_negative_seeds_are_refused():
    with pytest.raises(ValueError, match="0 houses"):
        generate_houses("one_room", [])
    with pytest.raises(ValueError, match="seed -3 is negative"):
        generate_houses("one_room", [1, -3])
