"""Toy episodes of the embedded world and policies that need no model."""

import numpy as np
import pytest

from llava.eval.lanes import EmbeddedLanes, WorldLanes
from llava.eval.policies import Decision
from llava.navigation.actions import STOP, Action, ActionKind
from llava.navigation.worlds.base import CameraProfile
from llava.navigation.worlds.embedded import EmbeddedWorld
from llava.navigation.worlds.episodes import make_episodes

CAMERA = CameraProfile(width=16, height=16)


@pytest.fixture(scope="session")
def episodes():
    return make_episodes("one_room", np.arange(7_000, 7_006), CAMERA)


@pytest.fixture
def batched():
    return lambda count: EmbeddedLanes(CAMERA)


@pytest.fixture
def one_by_one():
    return lambda count: WorldLanes(lambda: EmbeddedWorld(CAMERA), count)


class BrightnessPolicy:
    """Decides by what it sees: brightness of the newest picture, and how many pictures it has seen so far."""

    name = "brightness"

    def __init__(self, needs_every_frame: bool = True) -> None:
        self.needs_every_frame = needs_every_frame
        self.finished: list[str] = []
        self.frame_counts: dict[str, list[int]] = {}

    def act(self, views):
        return [self._one(view) for view in views]

    def _one(self, view):
        self.frame_counts.setdefault(view.key, []).append(len(view.frames))
        value = int(view.frames[-1].sum()) + len(view.actions)
        if len(view.actions) > 12 and value % 7 == 0:
            return Decision(action=STOP, tokens=5)
        kind = ActionKind(1 + value % 3)
        return Decision(action=Action(kind, 1 + value % 3), understood=value % 5 != 0, text=str(value), tokens=5)

    def finish(self, key):
        self.finished.append(key)

    def describe(self):
        return {"decoding": "none"}


@pytest.fixture
def brightness():
    return BrightnessPolicy
