"""The embedded world's expert as a policy: it knows the house, so it is no floor but the ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llava.eval.policies import Decision, EpisodeView
from llava.navigation.actions import Action, ActionKind
from llava.navigation.worlds.embedded import EmbeddedWorldBatch
from llava.navigation.worlds.expert import Expert, State, plan_tasks


class ExpertPolicy:
    """Walks the shortest way to the goal, or (with a seed) to an object drawn uniformly from those of the house.

    It works in `EmbeddedLanes` only.
    """

    needs_every_frame = False

    def __init__(self, name: str, *, seed: int | None = None) -> None:
        self.name, self.seed = name, seed
        self._batch: EmbeddedWorldBatch | None = None
        self._expert: Expert | None = None
        self._seen = np.zeros(0, dtype=bool)

    def act(self, views: Sequence[EpisodeView]) -> list[Decision]:
        batch: EmbeddedWorldBatch = views[0].simulator.batch
        expert = self._expert_of(batch)
        rows = np.array([view.simulator.lane for view in views])
        state = State(batch.x[rows].copy(), batch.z[rows].copy(), batch.headings[rows].copy(), self._seen[rows].copy())
        kinds, steps = expert.decide(rows, state)
        self._seen[rows] = state.seen
        return [
            Decision(action=Action(ActionKind(int(kind)), int(count))) for kind, count in zip(kinds, steps, strict=True)
        ]

    def _expert_of(self, batch: EmbeddedWorldBatch) -> Expert:
        if self._expert is None or self._batch is not batch:
            houses = batch.houses
            if self.seed is not None:
                goals = [
                    np.random.default_rng([self.seed, int(seed)]).integers(int(count))
                    for seed, count in zip(houses.seeds, houses.num_objects, strict=True)
                ]
                houses = replace(houses, goal_object=np.array(goals))
            self._batch, self._seen = batch, np.zeros(len(batch), dtype=bool)
            self._expert = Expert(plan_tasks(houses), batch.camera, scan=houses.level == "one_room")
        return self._expert

    def finish(self, key: str) -> None:
        """What it has seen is dropped with the batch."""

    def describe(self) -> dict[str, Any]:
        return {"goal": "the episode's" if self.seed is None else f"any object of the house, seed {self.seed}"}
