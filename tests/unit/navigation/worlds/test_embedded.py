"""The simulator: N episodes in lockstep, one by the protocol, one as a gymnasium environment."""

import math
from dataclasses import replace

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from llava.navigation.worlds.base import (
    CameraProfile,
    NavigationWorld,
    heading_from_rotation,
    heading_index_from_rotation,
    rotation_from_heading,
)
from llava.navigation.worlds.embedded import EmbeddedWorld, EmbeddedWorldBatch, parse_scene_id
from llava.navigation.worlds.environment import EmbeddedEnv
from llava.navigation.worlds.episodes import make_episodes

CAMERA = CameraProfile(width=24, height=16)


@pytest.fixture(scope="module", params=["one_room", "multi_room"])
def episodes(request):
    return make_episodes(request.param, range(6), CAMERA)


def test_replaying_the_ground_truth_ends_where_it_says(episodes):
    batch = EmbeddedWorldBatch(episodes, CAMERA)
    np.testing.assert_allclose(batch.geodesics(), [e.geodesic_distance for e in episodes], atol=1e-9)
    for t in range(max(len(e.actions) for e in episodes)):
        active = np.array([t < len(e.actions) for e in episodes])
        batch.step(np.array([e.actions[t] if t < len(e.actions) else 1 for e in episodes]), active)
    np.testing.assert_array_equal(batch.positions, [e.locations[-1] for e in episodes])
    assert (batch.geodesics() < 1).all()


def test_one_world_and_a_batch_see_and_measure_the_same(episodes):
    world, batch = EmbeddedWorld(CAMERA), EmbeddedWorldBatch(episodes, CAMERA)
    assert isinstance(world, NavigationWorld)
    view = world.reset(episodes[2])
    np.testing.assert_array_equal(view.rgb, batch.render().rgb[2])
    for action in (1, 2, 1, 1, 3, 3, 1):
        view = world.step(action)
        batch.step(np.full(6, action))
    np.testing.assert_array_equal(view.depth, batch.render(np.array([2])).depth[0])
    assert world.position() == tuple(batch.positions[2])
    assert world.heading() == pytest.approx(math.radians(15 * batch.headings[2]))
    assert world.geodesic(world.position(), episodes[2].goals) == batch.geodesics()[2]
    assert world.collided == batch.collided[2]


def test_inactive_robots_stay_as_they_are(episodes):
    batch = EmbeddedWorldBatch(episodes, CAMERA)
    before, headings = batch.positions, batch.headings
    batch.step(np.array([1, 2, 3, 1, 2, 3]), np.zeros(6, dtype=bool))
    np.testing.assert_array_equal(batch.positions, before)
    np.testing.assert_array_equal(batch.headings, headings)


def test_turning_all_around_comes_back_to_the_same_bits(episodes):
    batch = EmbeddedWorldBatch(episodes, CAMERA)
    before = batch.render().rgb
    for _ in range(24):
        batch.step(np.full(6, 2))
    np.testing.assert_array_equal(batch.render().rgb, before)


def test_the_nearest_of_several_goals_counts(episodes):
    far, near = episodes[0].goals[0], episodes[0].start_position
    batch = EmbeddedWorldBatch([replace(episodes[0], goals=(far, near))], CAMERA)
    assert batch.geodesics()[0] == 0


def test_gymnasium_accepts_the_environment(episodes):
    check_env(EmbeddedEnv(episodes, CAMERA, render_mode="rgb_array"), skip_render_check=True)


def test_the_environment_rewards_progress_and_the_right_stop(episodes):
    env = EmbeddedEnv(episodes, CAMERA)
    _, info = env.reset(options={"episode": episodes[1]})
    assert info["instruction"] == episodes[1].instruction
    total, ended = 0.0, False
    for action in episodes[1].actions:
        _, reward, ended, cut, info = env.step(action)
        total += reward
    assert ended and not cut and info["success"] == 1.0
    assert total == pytest.approx(episodes[1].geodesic_distance - info["distance_to_goal"] + 10)


def test_zero_episodes_mixed_levels_and_foreign_scenes_are_refused(episodes):
    with pytest.raises(ValueError, match="0 episodes"):
        EmbeddedWorldBatch([], CAMERA)
    with pytest.raises(ValueError, match="0 episodes"):
        EmbeddedEnv([])
    other = replace(episodes[0], scene_id="embedded/one_room/1"), replace(episodes[0], scene_id="embedded/multi_room/1")
    with pytest.raises(ValueError, match="one level"):
        EmbeddedWorldBatch(other, CAMERA)
    with pytest.raises(ValueError, match="Habitat"):
        parse_scene_id("mp3d/8WUmhLawc2A/8WUmhLawc2A.glb")
    with pytest.raises(ValueError, match="reset"):
        EmbeddedWorld(CAMERA).step(1)


def test_an_action_that_is_none_of_the_four_is_refused(episodes):
    with pytest.raises(ValueError, match="expected 6 integers"):
        EmbeddedWorldBatch(episodes, CAMERA).step(np.array([0, 1, 2, 3, 4, 0]))


def test_episodes_without_a_goal_have_no_distance(episodes):
    with pytest.raises(ValueError, match="no goal"):
        EmbeddedWorldBatch([replace(episodes[0], goals=())], CAMERA).geodesics()


@pytest.mark.parametrize("index", range(24))
def test_headings_survive_their_quaternion(index):
    rotation = rotation_from_heading(index)
    assert heading_index_from_rotation(rotation) == index
    assert heading_from_rotation(rotation) == pytest.approx(math.radians(15 * index), abs=1e-9)
    assert heading_index_from_rotation([-value for value in rotation]) == index  # the same rotation
