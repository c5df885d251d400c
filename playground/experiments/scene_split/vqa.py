"""Questions about pictures of a camera that stands still: how many, what colour, what time, where, and the furniture.

An arrangement stays for two pictures on average: then colours and the time change and every object keeps its place.
Answers are drawn evenly and apart from the words of the question, so that a model without eyes scores `blind_floor`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from playground.experiments.scene_split.drawing import (
    COLOURS,
    HOURS,
    JITTER,
    RADIUS,
    SHAPES,
    SIDE,
    SPOT,
    Scene,
    Thing,
)

KINDS = ("count", "colour", "time", "place", "furniture")
PLACES = ("left", "right", "above")
MOST_COUNTED = 3
SPLITS = {"train": 0, "arrangements": 1, "scenes": 2}
"""Name -> its stream of arrangements. `arrangements`: scenes of the training, arranged anew; `scenes`: other scenes."""
UNSEEN_SCENES = 1 << 30
"""First seed of scenes that are never trained on."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """kind: one of `KINDS`."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One picture before a camera, as a record; the first of `things` is the one asked about by colour and place."""

    scene: Scene
    hour: int
    things: tuple[Thing, ...]
    counted: str
    place: str

    def questions(self) -> tuple[Question, ...]:
        alone, number = self.things[0], sum(thing.shape == self.counted for thing in self.things)
        return (
            Question(kind="count", text=f"How many {self.counted}s are there?", answer=str(number)),
            Question(kind="colour", text=f"What colour is the {alone.shape}?", answer=alone.colour),
            Question(kind="time", text="What time is it?", answer=f"{self.hour or HOURS} o'clock"),
            Question(kind="place", text=f"Where is the {alone.shape}, seen from the {self.scene.piece}?",
                     answer=self.place),
            Question(kind="furniture", text=f"What colour is the {self.scene.piece}?", answer=self.scene.piece_paint),
        )  # fmt: skip


def shots(scene: Scene, count: int, *, split: str, seed: int = 0) -> Iterator[Shot]:
    """The pictures of one camera in the order of time."""
    draw = np.random.default_rng([seed, SPLITS[split], scene.seed])
    hours, places, counts = (in_turns(values, draw) for values in (range(HOURS), PLACES, range(MOST_COUNTED + 1)))
    before: Shot | None = None
    for hour in islice(hours, count):
        if before is not None and draw.random() < 0.5:
            before = _repainted(before, hour, draw)
        else:
            before = _arranged(scene, hour, next(places), next(counts), draw)
        yield before


def in_turns(values: Iterable[Any], draw: np.random.Generator) -> Iterator[Any]:
    """All values in a random order, then again in another: random, and evenly spread over a short sequence too."""
    listed = list(values)
    while True:
        yield from (listed[i] for i in draw.permutation(len(listed)))


def _colour(draw: np.random.Generator) -> str:
    return str(draw.choice(list(COLOURS)))


def _repainted(shot: Shot, hour: int, draw: np.random.Generator) -> Shot:
    things = tuple(replace(thing, colour=_colour(draw)) for thing in shot.things)
    return replace(shot, hour=hour, things=things)


def _arranged(scene: Scene, hour: int, place: str, count: int, draw: np.random.Generator) -> Shot:
    """One object alone of its kind, and `count` of another kind, on spots of their own."""
    alone, counted, _ = draw.permutation(list(SHAPES))
    candidates = spots_at(scene, place)
    chosen = candidates[int(draw.integers(len(candidates)))]
    free = [spot for spot in free_spots(scene) if spot != chosen]
    others = [free[i] for i in draw.permutation(len(free))[:count]]
    kinds = [str(alone), *([str(counted)] * len(others))]
    things = tuple(_put(kind, spot, draw) for kind, spot in zip(kinds, [chosen, *others], strict=True))
    return Shot(scene=scene, hour=hour, things=things, counted=str(counted), place=place)


def _put(kind: str, spot: tuple[int, int], draw: np.random.Generator) -> Thing:
    row, column = spot
    x, y = (SPOT * place + SPOT // 2 + int(draw.integers(-JITTER, JITTER + 1)) for place in (column, row))
    edge = RADIUS + 1
    return Thing(shape=kind, colour=_colour(draw), x=min(max(x, edge), SIDE - edge - 1), y=min(y, SIDE - edge - 1))


def free_spots(scene: Scene) -> list[tuple[int, int]]:
    """(row, column) below the wall's own row and beside the furniture."""
    return [(row, column) for row in (1, 2, 3) for column in range(4) if row == 1 or column != scene.piece_column]


def spots_at(scene: Scene, place: str) -> list[tuple[int, int]]:
    """Where an object stands left of, right of or above the furniture."""
    column = scene.piece_column
    if place == "above":
        return [(1, column)]
    return [spot for spot in free_spots(scene) if spot[0] > 1 and (spot[1] < column) == (place == "left")]


def scenes_of(split: str, count: int, seed: int = 0) -> list[Scene]:
    first = seed * (1 << 20) + (UNSEEN_SCENES if split == "scenes" else 0)
    return [Scene.of(first + number) for number in range(count)]


def blind_floor(train: Sequence[Mapping[str, Any]], test: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Share of right answers of the best guess from the words alone: the commonest answer that the training has.

    Args:
        train, test: `{"kind", "text", "answer"}` each.

    Returns:
        By kind of question, and `all`.
    """
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for question in train:
        seen[question["text"]][question["answer"]] += 1
    rights: dict[str, list[bool]] = defaultdict(list)
    for question in test:
        guess = seen[question["text"]].most_common(1)
        rights[question["kind"]].append(bool(guess) and guess[0][0] == question["answer"])
    floor = {kind: sum(found) / len(found) for kind, found in rights.items()}
    everything = [right for found in rights.values() for right in found]
    return floor | {"all": sum(everything) / len(everything)}
