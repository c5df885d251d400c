"""The loop of an evaluation: picture, decision, low-level actions, until every episode of a batch has ended.

Episodes of a batch run in lockstep by decision: in a round every running episode decides once and then carries out its
one to three low-level actions, so a policy always answers for all of them at once. Episodes do not touch each other; a
batch of one gives the same walks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from llava.eval.policies import Decision, EpisodeView, Policy
from llava.navigation.actions import ActionKind

MAX_STEPS = 500
"""Low-level actions after which R2R-CE and RxR-CE end an episode."""


@runtime_checkable
class Lanes(Protocol):
    """Several simulators side by side, each with one running episode."""

    def reset(self, episodes: Sequence[Any]) -> list[np.ndarray]:
        """Start one episode per lane; the first pictures, uint8 [H, W, 3]."""
        ...

    def step(self, actions: Mapping[int, int], *, render: bool) -> Mapping[int, np.ndarray]:
        """Low-level actions of some lanes; their new pictures, or nothing where `render` is False."""
        ...

    def object_mask(self, lane: int) -> np.ndarray | None:
        """Pixels of the lane's newest picture that show objects, bool [H, W]; None where the simulator tells none."""
        ...

    def position(self, lane: int) -> np.ndarray: ...

    def distance_to_goal(self, lane: int) -> float: ...

    def collided(self, lane: int) -> bool: ...

    def simulator(self, lane: int) -> Any:
        """What a policy that may cheat gets to see of this lane."""
        ...

    def close(self) -> None: ...


@dataclass(kw_only=True)
class Walk:
    """The record of one episode: everything that metrics, costs and pictures are made from."""

    episode: Any
    positions: list[np.ndarray] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)
    collided: list[bool] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    seconds: float = 0.0
    stopped: bool = False

    def record(self, lanes: Lanes, lane: int, action: int | None) -> None:
        if action is not None:
            self.actions.append(action)
        self.positions.append(np.asarray(lanes.position(lane), dtype=float))
        self.distances.append(float(lanes.distance_to_goal(lane)))
        self.collided.append(bool(lanes.collided(lane)) if action == ActionKind.FORWARD else False)


def run_batch(
    lanes: Lanes,
    policy: Policy,
    episodes: Sequence[Any],
    *,
    max_steps: int = MAX_STEPS,
    keys: Sequence[str] | None = None,
) -> list[Walk]:
    """Walk all episodes to their ends, one lane each."""
    keys = [str(episode.episode_id) for episode in episodes] if keys is None else list(keys)
    pictures = lanes.reset(episodes)
    walks = [Walk(episode=episode) for episode in episodes]
    views = [
        EpisodeView(
            key=key,
            instruction=_words(episode),
            frames=[picture],
            object_masks=None if (mask := lanes.object_mask(lane)) is None else [mask],
            simulator=lanes.simulator(lane),
        )
        for lane, (key, episode, picture) in enumerate(zip(keys, episodes, pictures, strict=True))
    ]
    for lane, walk in enumerate(walks):
        walk.record(lanes, lane, None)
    running = list(range(len(walks)))
    while running:
        queues = _decide(policy, running, views, walks)
        _carry_out(lanes, queues, views, walks, max_steps, render_all=policy.needs_every_frame)
        still = [i for i in running if not walks[i].stopped and len(walks[i].actions) < max_steps]
        for lane in set(running) - set(still):
            policy.finish(views[lane].key)
            _forget_frames(views[lane])
        running = still
    return walks


def _show(view: EpisodeView, picture: np.ndarray, mask: np.ndarray | None) -> None:
    view.frames.append(picture)
    if view.object_masks is not None:
        assert mask is not None, "a simulator tells its objects always or never"
        view.object_masks.append(mask)


def _forget_frames(view: EpisodeView) -> None:
    view.frames.clear()
    if view.object_masks is not None:
        view.object_masks.clear()


def _words(episode: Any) -> str:
    instruction = episode.instruction
    return instruction if isinstance(instruction, str) else instruction["instruction_text"]


def _decide(policy: Policy, running: list[int], views: list[EpisodeView], walks: list[Walk]) -> dict[int, list[int]]:
    """One decision of every running episode, and its low-level actions. What was left of older ones is gone."""
    begin = time.perf_counter()
    decisions = policy.act([views[lane] for lane in running])
    share = (time.perf_counter() - begin) / len(running)
    for lane, decision in zip(running, decisions, strict=True):
        walks[lane].decisions.append(decision)
        walks[lane].seconds += share
    return {lane: decision.action.low_level() for lane, decision in zip(running, decisions, strict=True)}


def _carry_out(
    lanes: Lanes,
    queues: dict[int, list[int]],
    views: list[EpisodeView],
    walks: list[Walk],
    max_steps: int,
    *,
    render_all: bool,
) -> None:
    """Empty the queues step by step; an episode that stops or runs out of steps drops the rest of its queue."""
    while queues:
        last = {lane: len(queue) == 1 for lane, queue in queues.items()}
        actions = {lane: queue.pop(0) for lane, queue in queues.items()}
        pictures: dict[int, np.ndarray] = {}
        for render in (True, False):
            group = {lane: a for lane, a in actions.items() if (render_all or last[lane]) is render}
            if group:
                pictures |= lanes.step(group, render=render)
        for lane, action in actions.items():
            walks[lane].record(lanes, lane, action)
            views[lane].actions.append(action)
            walks[lane].stopped = action == ActionKind.STOP
            if lane in pictures:
                _show(views[lane], pictures[lane], lanes.object_mask(lane))
        queues = {
            lane: queue
            for lane, queue in queues.items()
            if queue and not walks[lane].stopped and len(walks[lane].actions) < max_steps
        }


def run_episodes(
    make_lanes: Callable[[int], Lanes],
    policy: Policy,
    episodes: Sequence[Any],
    *,
    batch_size: int,
    max_steps: int = MAX_STEPS,
) -> Iterator[list[Walk]]:
    """All episodes in batches; yields the walks of each batch as soon as it has ended.

    Raises:
        ValueError: there is no episode.
    """
    if not episodes:
        raise ValueError("there are zero episodes to evaluate; check the data folder, the split and --episodes")
    for start in range(0, len(episodes), batch_size):
        batch = episodes[start : start + batch_size]
        lanes = make_lanes(len(batch))
        try:
            yield run_batch(lanes, policy, batch, max_steps=max_steps)
        finally:
            lanes.close()
