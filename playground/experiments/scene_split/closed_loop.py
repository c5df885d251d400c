"""A model acts on what it sees, and sees what came of it: a robot before a fixed camera, and a walk with its own.

python -m playground.experiments.scene_split.closed_loop robot --full DIR --split DIR --out FILE.json \
    --ways full split exact guarded --episodes 100

Masks are the renderer's true instances. The walk is the task `navigation-embedded` with the prompt of eight frames.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from llava.eval.lanes import EmbeddedLanes
from llava.eval.navigation_loop import run_episodes
from llava.eval.policies import Decision, EpisodeView
from llava.eval.results import episode_record, write_json
from llava.navigation.actions import DEFAULT_FALLBACK, decide
from llava.navigation.prompt import NavilaFormat, build_prompt_format
from llava.navigation.worlds import CameraProfile, make_episodes
from llava.navigation.worlds.base import Episode
from llava.navigation.worlds.dataset_writer import SPLIT_SEEDS
from playground.experiments.scene_split.answers import Answerer, Prompt, Reply
from playground.experiments.scene_split.drawing import SIDE
from playground.experiments.scene_split.evaluate import use_of
from playground.experiments.scene_split.robot import ARRIVED_M, INSTRUCTION, MOVES, Rooms, move_of
from playground.experiments.scene_split.ways import WAYS, make_answerer

BATCH = 32
LONGEST_ANSWER = 24

# ---- the robot before a fixed camera ----


def drive(answerer: Answerer, rooms: Rooms, *, max_moves: int) -> tuple[dict[str, dict[str, float]], list[Reply]]:
    """All rooms at once until every robot said "stop" or ran out of moves. An answer that is no move holds it.

    Returns:
        Measures by room, and all replies.
    """
    count = len(rooms)
    draws = rooms
    stopped, steps, replies = np.zeros(count, dtype=bool), np.zeros(count, dtype=int), []
    understood, agreed = np.zeros(count), np.zeros(count)
    for _ in range(max_moves):
        running = np.flatnonzero(~stopped)
        if not len(running):
            break
        now = draws.select(running)
        found = answerer.answer(_views(now, running))
        replies += found
        moves = ["stop"] * count
        for row, reply, expert in zip(running, found, now.expert(), strict=True):
            move = move_of(reply.text)
            understood[row] += move in MOVES
            agreed[row] += move == expert
            stopped[row] = move == "stop"
            moves[row] = move if move in MOVES else "stop"
        steps[running] += 1
        draws = draws.moved(moves)
    away = draws.distance()
    rows = {
        str(room): {
            "success": float(stopped[room] and away[room] < ARRIVED_M), "distance_to_goal": float(away[room]),
            "moves": float(steps[room]), "agreement": float(agreed[room] / max(1, steps[room])),
            "understood": float(understood[room] / max(1, steps[room])),
        }
        for room in range(count)
    }  # fmt: skip
    return rows, replies


def _views(now: Rooms, running: np.ndarray) -> list[Prompt]:
    frames = now.render(SIDE)
    return [
        Prompt(
            text=f"<image>\n{INSTRUCTION}", pictures=[frames.rgb[row]],
            masks=[frames.instance_ids[row] > 0], camera=str(room), drawn=int(room),
        )
        for row, room in enumerate(running)
    ]  # fmt: skip


def drive_all(answerer: Answerer, count: int, max_moves: int) -> tuple[dict[str, dict[str, float]], list[Reply]]:
    rows: dict[str, dict[str, float]] = {}
    replies: list[Reply] = []
    every = Rooms.of("unseen", count)
    for begin in range(0, count, BATCH):
        chosen = np.arange(begin, min(begin + BATCH, count))
        found, said = drive(answerer, every.select(chosen), max_moves=max_moves)
        rows |= {str(begin + int(room)): row for room, row in found.items()}
        replies += said
    return rows, replies


# ---- the walk with a camera of its own ----


@dataclass(frozen=True)
class MaskedLane:
    """What the policy of the split gets to see of a lane: where objects were in every frame so far."""

    lanes: MaskedLanes
    lane: int

    @property
    def masks(self) -> list[Bool[np.ndarray, "h w"]]:
        return self.lanes.masks[self.lane]


class MaskedLanes(EmbeddedLanes):
    """The embedded world, with the true object masks of all frames."""

    def reset(self, episodes: Sequence[Episode]) -> list[np.ndarray]:
        pictures = super().reset(episodes)
        self.masks = [[ids > 0] for ids in self.batch.render().instance_ids]
        return pictures

    def step(self, actions: Mapping[int, int], *, render: bool) -> dict[int, np.ndarray]:
        pictures = super().step(actions, render=render)
        if render:
            rows = np.fromiter(actions, dtype=np.int64)
            for lane, ids in zip(rows.tolist(), self.batch.render(rows).instance_ids, strict=True):
                self.masks[lane].append(ids > 0)
        return pictures

    def simulator(self, lane: int) -> Any:
        return MaskedLane(self, lane)


class WalkingPolicy:
    """The published prompt, answered by an `Answerer`."""

    name = "scene_split"
    needs_every_frame = True

    def __init__(self, answerer: Answerer, prompt: NavilaFormat) -> None:
        self.answerer, self.prompt = answerer, prompt
        self.replies: list[Reply] = []

    def act(self, views: Sequence[EpisodeView]) -> list[Decision]:
        found = self.answerer.answer([self._prompt(view) for view in views])
        self.replies += found
        readings = [decide(reply.text, self.prompt.action_format, DEFAULT_FALLBACK) for reply in found]
        return [
            Decision(action=reading.action, understood=reading.understood, text=reply.text, tokens=reply.computed)
            for reading, reply in zip(readings, found, strict=True)
        ]

    def _prompt(self, view: EpisodeView) -> Prompt:
        """Missing history is black, without objects."""
        shown = self.prompt.frame_indices(len(view.frames))
        black = np.zeros_like(view.frames[0])
        return Prompt(
            text=self.prompt.question(view.instruction),
            pictures=[view.frames[i] if i >= 0 else black for i in shown],
            masks=[view.simulator.masks[i] if i >= 0 else black[..., 0] > 0 for i in shown],
            camera=view.key,
            drawn=len(view.frames),
        )

    def finish(self, key: str) -> None:
        """Nothing is kept between decisions but the cache."""

    def describe(self) -> dict[str, Any]:
        return {"prompt": self.prompt.to_config(), "decoding": "greedy"}


def walk_all(answerer: Answerer, count: int, max_moves: int) -> tuple[dict[str, dict[str, float]], list[Reply]]:
    """Success and the other measures of navigation, by house."""
    prompt = build_prompt_format(answerer.model.config.navigation_prompt)
    if not isinstance(prompt, NavilaFormat):
        raise ValueError(f"the model was trained for the prompt {prompt.name!r}, expected 'navila' (sft_8frames.sh)")
    policy, camera = WalkingPolicy(answerer, prompt), CameraProfile(width=SIDE, height=SIDE)
    seeds = SPLIT_SEEDS["val_unseen"] + np.arange(count)
    episodes = make_episodes("one_room", seeds, camera)
    rows = {}
    for walks in run_episodes(lambda _: MaskedLanes(camera), policy, episodes, batch_size=BATCH, max_steps=max_moves):
        for walk in walks:
            found = episode_record(walk)
            rows[str(walk.episode.episode_id)] = {k: float(v) for k, v in found.items() if isinstance(v, int | float)}
    return rows, policy.replies


TASKS = {"robot": drive_all, "walk": walk_all}


def main(arguments: Sequence[str] | None = None) -> int:
    import llava

    options = build_parser().parse_args(arguments)
    ways = [WAYS[name] for name in options.ways]
    models = {name: llava.load(getattr(options, name)) for name in dict.fromkeys(way.training for way in ways)}
    rows = []
    for way in ways:
        answerer = make_answerer(models[way.training], way, noise=options.noise)
        answerer.max_new_tokens = LONGEST_ANSWER
        episodes, replies = TASKS[options.task](answerer, options.episodes, options.max_moves)
        noise = options.noise if way.cache == "guarded" else None
        rows.append({"way": way.name, "noise": noise, "episodes": episodes, **use_of(replies)})
        share = sum(row["success"] for row in episodes.values()) / len(episodes)
        print(f"{way.name}: {100 * share:.1f} % arrive, {100 * rows[-1]['reused_share']:.0f} % reused", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, {"rows": rows})
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("task", choices=TASKS)
    add("--full", type=Path, help="model of the ways that need one without a split")
    add("--split", type=Path, help="model that was trained with the split")
    add("--ways", nargs="+", required=True, metavar="WAY", help=", ".join(WAYS))
    add("--noise", type=float, default=0.0, help="grey levels that a guarded cache allows")
    add("--episodes", type=int, default=100, help="unseen rooms")
    add("--max-moves", type=int, default=30, help="after which an episode is over")
    add("--out", type=Path, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
