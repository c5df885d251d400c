"""What a robot may do next, and how that is written down and read back: one action, several text formats."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby
from typing import ClassVar, Protocol, runtime_checkable

from llava.utils.registry import Registry


class ActionKind(IntEnum):
    """Ids of the low-level actions, the ones that VLN-CE simulators step."""

    STOP = 0
    FORWARD = 1
    LEFT = 2
    RIGHT = 3


@dataclass(frozen=True)
class Action:
    """One decision: a low-level action done `steps` times (25 cm or 15 degrees each by default)."""

    kind: ActionKind
    steps: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", ActionKind(self.kind))
        if self.steps < 1:
            raise ValueError(f"an action has {self.steps} steps, expected at least 1")
        if self.kind is ActionKind.STOP and self.steps != 1:
            raise ValueError(f"STOP has {self.steps} steps, expected 1: nothing follows a stop")

    def low_level(self) -> list[int]:
        """Ids for a simulator: 0 stop, 1 forward, 2 left, 3 right."""
        return [int(self.kind)] * self.steps


STOP = Action(ActionKind.STOP)
DEFAULT_FALLBACK = Action(ActionKind.FORWARD)
"""Done when an answer names no action; a turn or a stop would end more episodes than a single short step."""


def merge_actions(low_level: Iterable[int], max_merge: int = 3) -> list[Action]:
    """Join equal neighbours from left to right, at most `max_merge` of them; stops stay single.

    >>> [(a.kind.name, a.steps) for a in merge_actions([1, 1, 1, 1, 2, 0])]
    [('FORWARD', 3), ('FORWARD', 1), ('LEFT', 1), ('STOP', 1)]
    """
    if max_merge < 1:
        raise ValueError(f"max_merge is {max_merge}, expected at least 1")
    merged: list[Action] = []
    for kind, run in groupby(ActionKind(a) for a in low_level):
        left, limit = len(list(run)), 1 if kind is ActionKind.STOP else max_merge
        while left:
            merged.append(Action(kind, min(left, limit)))
            left -= merged[-1].steps
    return merged


@runtime_checkable
class ActionFormat(Protocol):
    """How an action is written as an answer, and an answer read as an action."""

    def write(self, action: Action) -> str: ...

    def read(self, text: str) -> Action | None:
        """None when the text names no action; the caller counts that and does its declared fallback."""
        ...


ACTION_FORMATS: Registry[type[ActionFormat]] = Registry("action format")


@ACTION_FORMATS.register("sentence")
@dataclass(frozen=True, kw_only=True)
class SentenceFormat:
    """The ten sentences of the NaVILA data sets, read by the rules of its evaluation loop.

    The word "stop" wins anywhere; then the first of forward, left, right that follows "is". A missing number is one
    step; a number that is no multiple of the step is rounded to the nearest of one to three steps; larger multiples are
    kept. Numbers are only read in lower case, as the published loop does.
    """

    forward_cm: int = 25
    turn_degrees: int = 15

    _PATTERNS: ClassVar[dict[ActionKind, tuple[re.Pattern[str], re.Pattern[str] | None]]] = {
        ActionKind.STOP: (re.compile(r"\bstop\b", re.IGNORECASE), None),
        ActionKind.FORWARD: (re.compile(r"\bis move forward\b", re.IGNORECASE), re.compile(r"move forward (\d+) cm")),
        ActionKind.LEFT: (re.compile(r"\bis turn left\b", re.IGNORECASE), re.compile(r"turn left (\d+) degree")),
        ActionKind.RIGHT: (re.compile(r"\bis turn right\b", re.IGNORECASE), re.compile(r"turn right (\d+) degree")),
    }

    def write(self, action: Action) -> str:
        if action.kind is ActionKind.STOP:
            return "I think I should stop because I have finished the instruction."
        if action.kind is ActionKind.FORWARD:
            return f"The next action is move forward {action.steps * self.forward_cm} cm."
        return f"The next action is turn {action.kind.name.lower()} {action.steps * self.turn_degrees} degree."

    def read(self, text: str) -> Action | None:
        for kind, (name, amount) in self._PATTERNS.items():
            if name.search(text):
                return Action(kind, self._steps(text, kind, amount))
        return None

    def _steps(self, text: str, kind: ActionKind, amount: re.Pattern[str] | None) -> int:
        found = amount.search(text) if amount else None
        if found is None:
            return 1
        unit = self.forward_cm if kind is ActionKind.FORWARD else self.turn_degrees
        value = int(found[1])
        if value % unit:
            value = min((unit, 2 * unit, 3 * unit), key=lambda step: abs(step - value))
        return max(value // unit, 1)


@ACTION_FORMATS.register("arrows")
@dataclass(frozen=True, kw_only=True)
class ArrowFormat:
    """Answers of one token: up to `max_steps` equal arrows, or STOP.

    Longer runs are cut when read and refused when written.
    """

    max_steps: int = 3

    _ARROWS: ClassVar[dict[ActionKind, str]] = {
        ActionKind.FORWARD: "↑",
        ActionKind.LEFT: "←",
        ActionKind.RIGHT: "→",
    }
    _ANSWER: ClassVar[re.Pattern[str]] = re.compile(
        r"(?P<stop>(?<![^\W\d])stop\b)|(?P<arrow>[↑←→])\s*(?:(?P=arrow)\s*)*", re.IGNORECASE
    )

    def vocabulary(self) -> list[str]:
        """Every answer that can be written; a tokenizer should know each as one token."""
        return ["STOP", *(arrow * n for arrow in self._ARROWS.values() for n in range(1, self.max_steps + 1))]

    def write(self, action: Action) -> str:
        if action.kind is ActionKind.STOP:
            return "STOP"
        if action.steps > self.max_steps:
            raise ValueError(
                f"an arrow answer has at most {self.max_steps} steps, got {action.steps}; "
                f"merge the low-level actions with merge_actions(..., max_merge={self.max_steps})"
            )
        return self._ARROWS[action.kind] * action.steps

    def read(self, text: str) -> Action | None:
        found = self._ANSWER.search(text)
        if found is None:
            return None
        if found["stop"]:
            return STOP
        kind = next(kind for kind, arrow in self._ARROWS.items() if arrow == found["arrow"])
        return Action(kind, min(found[0].count(found["arrow"]), self.max_steps))


@dataclass(frozen=True)
class Reading:
    """What an answer was taken for. understood is False where the declared fallback was done instead."""

    action: Action
    understood: bool


def decide(text: str, action_format: ActionFormat, fallback: Action = DEFAULT_FALLBACK) -> Reading:
    """The action an answer names, or the declared fallback marked as such so that it can be counted."""
    action = action_format.read(text)
    return Reading(fallback if action is None else action, understood=action is not None)


def low_level_ids(actions: Sequence[Action]) -> list[int]:
    """All steps of several decisions in order, as simulator ids."""
    return [step for action in actions for step in action.low_level()]
