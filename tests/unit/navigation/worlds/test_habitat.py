"""The Habitat adapter against a fake that speaks habitat's interface and walks the embedded world."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from llava.navigation.worlds.base import CameraProfile, NavigationWorld, rotation_from_heading
from llava.navigation.worlds.embedded import EmbeddedWorld
from llava.navigation.worlds.episodes import make_episodes
from llava.navigation.worlds.habitat import HabitatWorld

CAMERA = CameraProfile(width=16, height=16)


class FakeSim:
    def __init__(self, world, quaternion):
        self.world, self.quaternion, self.previous_step_collided = world, quaternion, False

    def get_agent_state(self):
        x, y, z, w = rotation_from_heading(int(self.world.batch.headings[0]))
        rotation = SimpleNamespace(x=x, y=y, z=z, w=w) if self.quaternion else [x, y, z, w]
        return SimpleNamespace(position=np.array(self.world.position(), dtype=np.float32), rotation=rotation)

    def geodesic_distance(self, position, goals, episode=None):
        assert isinstance(goals[0], list)
        return self.world.geodesic(position, goals)


class FakeHabitat:
    """`habitat.Env` as of 0.1.7: reset takes the next episode of the iterator, step takes {"action": id}."""

    def __init__(self, episodes, quaternion=True):
        self.episodes = [SimpleNamespace(episode_id=int(e.episode_id), own=e) for e in episodes]
        self.episode_iterator, self.current_episode = iter(self.episodes), None
        self.world = EmbeddedWorld(CAMERA)
        self.sim, self.closed = FakeSim(self.world, quaternion), False

    def reset(self):
        self.current_episode = next(self.episode_iterator)
        return self._observe(self.world.reset(self.current_episode.own))

    def step(self, action):
        view = self.world.step(action["action"])
        if action["action"] == 1:  # like the simulator, turns leave the flag as it was
            self.sim.previous_step_collided = self.world.collided
        return self._observe(view)

    def _observe(self, view):
        return {"rgb": np.dstack([view.rgb, view.rgb[..., :1]]), "depth": np.clip(view.depth / 10, 0, 1)[..., None]}

    def close(self):
        self.closed = True


@pytest.fixture(scope="module")
def episodes():
    return make_episodes("one_room", range(4), CAMERA)


@pytest.mark.parametrize("quaternion", [True, False])
def test_the_adapter_walks_any_wanted_episode_and_answers_like_the_world_below(episodes, quaternion):
    env = FakeHabitat(episodes, quaternion)
    world = HabitatWorld(env)
    assert isinstance(world, NavigationWorld)
    for episode in (episodes[2], episodes[0], episodes[2]):
        view = world.reset(episode)
        assert view.rgb.shape == (16, 16, 3) and view.rgb.dtype == np.uint8
        assert world.position() == pytest.approx(episode.start_position, abs=1e-6)
        assert world.geodesic(episode.start_position, episode.goals) == pytest.approx(episode.geodesic_distance)
        for action in episode.actions:
            view = world.step(action)
        assert world.geodesic(world.position(), episode.goals) < 1
        assert world.heading() == pytest.approx(env.world.heading(), abs=1e-6)
        np.testing.assert_allclose(view.depth, np.minimum(env.world._observe().depth, 10), atol=1e-5)
    world.close()
    assert env.closed


def test_a_turn_after_a_collision_does_not_count_as_one(episodes):
    world = HabitatWorld(FakeHabitat(episodes))
    world.reset(episodes[0])
    for _ in range(60):
        world.step(1)
    assert world.collided
    world.step(2)
    assert not world.collided


def test_an_unknown_episode_and_a_wrong_action_are_named(episodes):
    world = HabitatWorld(FakeHabitat(episodes[:2]))
    with pytest.raises(ValueError, match="no episode '3' among its 2"):
        world.reset(episodes[3])
    with pytest.raises(ValueError, match="action is 7"):
        world.step(7)


def test_an_unreachable_goal_is_infinitely_far(episodes):
    env = FakeHabitat(episodes)
    env.sim.geodesic_distance = lambda *_: math.inf
    assert math.isinf(HabitatWorld(env).geodesic((0, 0, 0), [(1, 0, 1)]))


def test_without_habitat_the_error_tells_how_to_install_it():
    with pytest.raises(ValueError, match="config_path"):
        HabitatWorld()
    try:
        import habitat  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="conda install -c aihabitat"):
            HabitatWorld(config_path="task.yaml")
