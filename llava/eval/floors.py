"""Policies without understanding: what a number must beat before it means anything."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llava.eval.policies import Decision, EpisodeView
from llava.navigation.actions import STOP, Action, ActionKind, merge_actions

RANDOM_SHARES = {ActionKind.STOP: 0.02, ActionKind.FORWARD: 0.68, ActionKind.LEFT: 0.15, ActionKind.RIGHT: 0.15}
"""How often VLN-CE's random agent does what: the shares of the expert's actions in R2R-CE."""


class RandomPolicy:
    """Draws every low-level action; the draws of an episode depend on its key and the seed only."""

    name = "random"
    needs_every_frame = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._generators: dict[str, np.random.Generator] = {}

    def act(self, views: Sequence[EpisodeView]) -> list[Decision]:
        return [Decision(action=self._draw(view.key)) for view in views]

    def _draw(self, key: str) -> Action:
        if key not in self._generators:
            self._generators[key] = np.random.default_rng([self.seed, zlib.crc32(key.encode())])
        kinds = list(RANDOM_SHARES)
        return Action(kinds[int(self._generators[key].choice(len(kinds), p=list(RANDOM_SHARES.values())))])

    def finish(self, key: str) -> None:
        self._generators.pop(key, None)

    def describe(self) -> dict[str, Any]:
        return {"seed": self.seed, "shares": {kind.name.lower(): share for kind, share in RANDOM_SHARES.items()}}


class ForwardPolicy:
    """Walks straight ahead for `metres`, then stops."""

    name = "forward"
    needs_every_frame = False

    def __init__(self, metres: float = 6.0, forward_m: float = 0.25) -> None:
        self.metres, self.steps = metres, round(metres / forward_m)

    def act(self, views: Sequence[EpisodeView]) -> list[Decision]:
        left = [self.steps - len(view.actions) for view in views]
        return [Decision(action=Action(ActionKind.FORWARD, steps) if steps > 0 else STOP) for steps in left]

    def finish(self, key: str) -> None:
        """It remembers nothing."""

    def describe(self) -> dict[str, Any]:
        return {"metres": self.metres}


class ReplayPolicy:
    """Does what a plan says: the oracle's way to the goal, or its way to an object chosen at random.

    Args:
        plans: low-level actions by episode key; a plan that does not end in STOP is stopped at its end.
    """

    needs_every_frame = False

    def __init__(self, name: str, plans: Mapping[str, Sequence[int]]) -> None:
        self.name, self.plans = name, plans

    def act(self, views: Sequence[EpisodeView]) -> list[Decision]:
        return [Decision(action=self._next(view)) for view in views]

    def _next(self, view: EpisodeView) -> Action:
        if view.key not in self.plans:
            raise ValueError(
                f"policy '{self.name}' has no plan for episode {view.key}; plans exist for {len(self.plans)}"
            )
        rest = list(self.plans[view.key])[len(view.actions) :]
        return merge_actions(rest)[0] if rest else STOP

    def finish(self, key: str) -> None:
        """It remembers nothing."""

    def describe(self) -> dict[str, Any]:
        return {"plan": "known actions, no pictures"}
