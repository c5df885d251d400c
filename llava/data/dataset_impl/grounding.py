"""Questions about where an object is, hung on the decisions of navigation records from what the world knew."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.data.base import Dataset, existing
from llava.data.utils import BrokenSampleError, read_json

GOAL = "goal"
"""Name under which a table may hold the object that the instruction means."""
GOAL_SHARE, VISIBLE_SHARE = 0.6, 0.75
"""How often a decision's first question is about the goal, and any other about something in view.

Most objects are out of view at most times: drawn evenly, three questions of four would teach the answer `00`.
"""
TOKENS_PER_QUESTION = 6
"""For length estimates only."""


def grounding_dialogue(name: str, where: Sequence[int] | None) -> tuple[str, str]:
    """Question and answer about one object, as short as they can be because thousands of them hang on one epoch.

    The answer is two digits: the column of the picture it is in (1 = left edge .. 8) and its distance in metres (9 = 9
    or more); `00` = not in view.

    >>> grounding_dialogue("red ball", [5, 2])
    (' red ball?', '52')
    """
    return f" {name}?", place_text(where)


def place_text(where: Sequence[int] | None) -> str:
    """Two digits, see `grounding_dialogue`."""
    return "00" if where is None else f"{where[0]}{min(where[1], 9)}"


@dataclass(frozen=True)
class Grounding:
    """What the world knew, and how much of it is asked.

    Attributes:
        tables: `{episode: [per decision {object: [column, distance] | null}]}`.
        per_decision: mean number of questions.
        with_goal: False where the sequence does not say what the goal is.
    """

    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    per_decision: float
    with_goal: bool = True

    @classmethod
    def of(cls, dataset: Dataset, path: str | Path | None) -> Grounding | None:
        """What the options of the data set ask for; None = no questions."""
        options = dataset.context.options
        if not (options.grounding_questions or options.names_place):
            return None
        tables = read_json(existing(path, key="grounding_path", dataset=dataset.name))
        return cls(tables, options.grounding_questions, options.learn_decisions)

    def ask(self, episode: str, decision: int, chance: random.Random) -> list[tuple[str, str]]:
        """Round the wanted mean up or down at random, so that 0.25 asks at every fourth decision."""
        wanted = int(self.per_decision + chance.random())
        if not wanted:
            return []
        table = self._table(episode, decision)
        names = [GOAL] if self.with_goal and GOAL in table and chance.random() < GOAL_SHARE else []
        names += _draw(table, wanted - len(names), chance)
        return [grounding_dialogue(name, table[name]) for name in names]

    def goal_place(self, episode: str, decision: int) -> str:
        """Where the goal is when the decision is taken."""
        table = self._table(episode, decision)
        if GOAL not in table:
            raise BrokenSampleError(f"episode {episode}: the grounding has no '{GOAL}', which answers are to name")
        return place_text(table[GOAL])

    def _table(self, episode: str, decision: int) -> Mapping[str, Any]:
        known = self.tables.get(episode)
        if known is None or len(known) <= decision:
            raise BrokenSampleError(
                f"episode {episode} has {0 if known is None else len(known)} grounding entries, expected at "
                f"least {decision + 1}, one per decision; write annotations and grounding in one go"
            )
        return known[decision]


def _draw(table: Mapping[str, Any], count: int, chance: random.Random) -> list[str]:
    """Different objects; each from those in view with VISIBLE_SHARE, as long as there are any."""
    others = sorted(set(table) - {GOAL})
    chance.shuffle(others)
    in_view, hidden = [n for n in others if table[n] is not None], [n for n in others if table[n] is None]
    names = []
    for _ in range(min(count, len(others))):
        first, second = (in_view, hidden) if chance.random() < VISIBLE_SHARE else (hidden, in_view)
        names.append((first or second).pop())
    return names
