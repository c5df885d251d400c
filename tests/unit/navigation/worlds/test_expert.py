"""The expert arrives, its decisions can be predicted from what it saw, and the floors are low."""

import numpy as np
import pytest

from llava.navigation.worlds.base import FORWARD, RIGHT, STOP, CameraProfile
from llava.navigation.worlds.demonstrations import demonstrate
from llava.navigation.worlds.house import generate_houses
from llava.navigation.worlds.obstacles import Obstacles, move_forward
from llava.navigation.worlds.planner import goal_field


def distance_at_end(walks):
    last = walks.frame_start[1:] - 1
    field = goal_field(walks.tasks.obstacles, walks.tasks.goal_x, walks.tasks.goal_z)
    return field.query(np.arange(len(walks)), walks.x[last], walks.z[last])[0]


@pytest.mark.parametrize(("level", "count"), [("one_room", 400), ("multi_room", 100)])
@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_at_least_99_percent_of_the_episodes_stop_within_1_m(level, count, noise):
    walks = demonstrate(level, np.arange(count), noise=noise)
    assert (walks.stopped & (distance_at_end(walks) < 1)).mean() >= 0.99


@pytest.mark.parametrize("level", ["one_room", "multi_room"])
def test_clean_walks_are_hardly_longer_than_the_shortest_way(level):
    walks = demonstrate(level, np.arange(60))
    walked = np.bincount(walks.episode_of_frame[walks.action == FORWARD], minlength=60) * 0.25
    assert (walked.sum() / walks.tasks.distance.sum()) < 1.06


def test_demonstrations_do_not_depend_on_the_batch():
    many, one = demonstrate("one_room", np.arange(20), noise=0.2), demonstrate("one_room", np.array([13]), noise=0.2)
    part = slice(many.frame_start[13], many.frame_start[14])
    for name in ("x", "z", "heading", "action"):
        np.testing.assert_array_equal(getattr(many, name)[part], getattr(one, name))


def test_decisions_without_noise_are_executed_as_labelled_and_join_to_the_walk():
    walks = demonstrate("multi_room", np.arange(20))
    np.testing.assert_array_equal(walks.label_kind, walks.executed_kind)
    np.testing.assert_array_equal(np.repeat(walks.executed_kind, walks.executed_steps), walks.action)
    np.testing.assert_array_equal(np.cumsum(np.r_[0, walks.executed_steps[:-1]]), walks.decision_frame)


def test_noise_replaces_about_its_share_of_the_decisions_and_never_stops_an_episode():
    walks = demonstrate("one_room", np.arange(300), noise=0.3)
    changed = (walks.label_kind != walks.executed_kind) | (walks.label_steps != walks.executed_steps)
    assert changed.mean() == pytest.approx(0.3 * 8 / 9, abs=0.03)  # one of nine random moves equals the label
    stops = walks.executed_kind == STOP
    np.testing.assert_array_equal(walks.label_kind[stops], STOP)


def test_until_the_target_was_in_view_it_turns_right_by_45_degrees():
    walks = demonstrate("one_room", np.arange(200))
    first = walks.decision_start[:-1]
    rows = np.arange(200)
    houses = walks.houses
    to_x = houses.object_x[rows, houses.goal_object] - houses.start_x
    to_z = houses.object_z[rows, houses.goal_object] - houses.start_z
    from llava.navigation.worlds.tables import FORWARD_X, FORWARD_Z

    cosine = (to_x * FORWARD_X[houses.start_heading] + to_z * FORWARD_Z[houses.start_heading]) / np.hypot(to_x, to_z)
    unseen = cosine < np.cos(np.radians(46))
    assert unseen.mean() > 0.5
    assert (walks.label_kind[first][unseen] == RIGHT).all()
    assert (walks.label_steps[first][unseen] == 3).all()


def test_the_walk_does_not_depend_on_the_picture_size():
    small, large = (demonstrate("one_room", np.arange(5), CameraProfile(width=s, height=s)) for s in (32, 224))
    np.testing.assert_array_equal(small.action, large.action)


def test_a_noise_share_of_one_is_refused():
    with pytest.raises(ValueError, match="noise is 1"):
        demonstrate("one_room", np.arange(2), noise=1.0)


def stop_distances(houses, targets):
    """Distance to the goal where an expert that walks to `targets` instead stops."""
    from dataclasses import replace

    from llava.navigation.worlds.demonstrations import walk
    from llava.navigation.worlds.expert import plan_tasks

    tasks = plan_tasks(houses)
    walks = walk(plan_tasks(replace(houses, goal_object=targets)), CameraProfile())
    last = walks.frame_start[1:] - 1
    field = goal_field(tasks.obstacles, tasks.goal_x, tasks.goal_z)
    return field.query(np.arange(len(houses)), walks.x[last], walks.z[last])[0]


def test_walking_to_any_object_or_straight_ahead_scores_low():
    houses = generate_houses("one_room", np.arange(400))
    targets = np.random.default_rng(0).integers(houses.num_objects)
    any_object = stop_distances(houses, targets)
    assert (any_object < 1).mean() < 0.25
    assert (any_object < 3).mean() < 0.25
    x, z, obstacles = houses.start_x, houses.start_z, Obstacles.of(houses)
    for _ in range(24):
        x, z, _ = move_forward(obstacles, x, z, houses.start_heading)
    from llava.navigation.worlds.expert import plan_tasks

    tasks = plan_tasks(houses)
    ahead, _ = goal_field(obstacles, tasks.goal_x, tasks.goal_z).query(np.arange(400), x, z)
    assert (ahead < 1).mean() < 0.04
    assert (ahead < 3).mean() < 0.2
