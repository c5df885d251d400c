"""The same house drawn by MiniWorld has the same geometry; skipped where MiniWorld or OpenGL is missing."""

import numpy as np
import pytest

from llava.navigation.worlds.base import CameraProfile, NavigationWorld
from llava.navigation.worlds.embedded import EmbeddedWorld
from llava.navigation.worlds.episodes import make_episodes
from llava.navigation.worlds.miniworld import MiniWorldWorld, solid_triangles
from llava.navigation.worlds.tables import BALL, CONE, CYLINDER

CAMERA = CameraProfile(width=80, height=64)


@pytest.fixture(scope="module")
def world():
    try:
        made = MiniWorldWorld(CAMERA)
    except ImportError as error:
        pytest.skip(str(error).splitlines()[-1])
    yield made
    made.close()


@pytest.mark.parametrize("level", ["one_room", "multi_room"])
def test_two_renderers_agree_on_the_depth_of_every_view(world, level):
    episode = make_episodes(level, [4], CAMERA)[0]
    own = EmbeddedWorld(CAMERA)
    assert isinstance(world, NavigationWorld)
    views = [(world.reset(episode), own.reset(episode))]
    for action in episode.actions[:25]:
        views.append((world.step(action), own.step(action)))
    assert world.position() == own.position()
    for theirs, ours in views[::4]:
        difference = abs(theirs.depth - ours.depth) / ours.depth
        assert np.median(difference) < 0.03  # a depth buffer of few bits
        assert (difference > 0.05).mean() < 0.06  # silhouettes


def test_objects_have_their_colours_in_both(world):
    episode = make_episodes("one_room", [4], CAMERA)[0]
    own, pairs = EmbeddedWorld(CAMERA), []
    pairs.append((world.reset(episode), own.reset(episode)))
    for action in episode.actions:
        pairs.append((world.step(action), own.step(action)))
    theirs, ours = pairs[-1]
    inside = ours.instance_ids > 0
    assert inside.mean() > 0.02
    assert abs(theirs.rgb[inside].astype(int) - ours.rgb[inside]).mean() < 60


@pytest.mark.parametrize("shape", [BALL, CONE, CYLINDER])
def test_solids_fill_their_radius_and_height(shape):
    points, normals = solid_triangles(shape, 0.4, 0.8)
    assert points[..., 1].min() == pytest.approx(0, abs=1e-9)
    assert points[..., 1].max() == pytest.approx(0.8)
    assert np.hypot(points[..., 0], points[..., 2]).max() == pytest.approx(0.4)
    np.testing.assert_allclose((normals**2).sum(-1), 1, atol=1e-9)
