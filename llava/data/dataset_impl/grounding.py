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
"""Name under which a table may hold the object that the instruction means: asked half of the time."""
TOKENS_PER_QUESTION = 6
"""For length estimates only."""


def grounding_dialogue(name: str, where: Sequence[int] | None) -> tuple[str, str]:
    """Question and answer about one object, as short as they can be because thousands of them hang on one epoch.

    The answer is two digits: the column of the picture it is in (1 = left edge .. 8) and its distance in metres (9 = 9
    or more); `no` = not in view.

    >>> grounding_dialogue("red ball", [5, 2])
    (' red ball?', '52')
    """
    return f" {name}?", "no" if where is None else f"{where[0]}{min(where[1], 9)}"


@dataclass(frozen=True)
class Grounding:
    """`{episode: [per decision {object: [column, distance] | null}]}` and the mean number of questions per decision."""

    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    per_decision: float

    @classmethod
    def of(cls, dataset: Dataset, path: str | Path | None) -> Grounding | None:
        """What the options of the data set ask for; None = no questions."""
        wanted = dataset.context.options.grounding_questions
        if not wanted:
            return None
        return cls(read_json(existing(path, key="grounding_path", dataset=dataset.name)), wanted)

    def ask(self, episode: str, decision: int, chance: random.Random) -> list[tuple[str, str]]:
        """Round the wanted mean up or down at random, so that 0.25 asks at every fourth decision."""
        wanted = int(self.per_decision + chance.random())
        if not wanted:
            return []
        known = self.tables.get(episode)
        if known is None or len(known) <= decision:
            raise BrokenSampleError(
                f"episode {episode} has {0 if known is None else len(known)} grounding entries, expected at "
                f"least {decision + 1}, one per decision; write annotations and grounding in one go"
            )
        table = known[decision]
        names = [GOAL] if GOAL in table and chance.random() < 0.5 else []
        others = sorted(set(table) - {GOAL})
        names += chance.sample(others, min(wanted - len(names), len(others)))
        return [grounding_dialogue(name, table[name]) for name in names]
