"""What a robot did between two pictures, from the low-level actions that it executed: one picture, then one action."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float32, Int8

from llava.navigation.actions import Action, ActionKind

UNKNOWN_ACTION = -1
FORWARD_M = 0.25
TURN_DEGREES = 15.0

ExecutedActions = Int8[np.ndarray, " n"]
"""Entry k leads from frame k to frame k + 1: an id of `ActionKind`, or UNKNOWN_ACTION."""


def parse_actions(value: Any) -> ExecutedActions:
    """From "1132" or [1, 1, 3, 2].

    Raises:
        ValueError: for anything but ids of low-level actions.
    """
    if not isinstance(value, (str, list)):
        raise ValueError(f"executed actions are {value!r}, expected digits or a list of ids")
    digits = {str(int(kind)): int(kind) for kind in ActionKind}
    listed = [digits.get(item, item) for item in value] if isinstance(value, str) else value
    for item in listed:
        if type(item) is not int or item not in digits.values():
            raise ValueError(f"an executed action is {item!r}, expected 0 (stop), 1 (forward), 2 (left) or 3 (right)")
    return np.array(listed, dtype=np.int8)


def recover_actions(decisions: Iterable[tuple[int, Action | None]]) -> ExecutedActions:
    """The actions of an episode from its annotated decisions, as far as these leave no doubt.

    An answer was executed exactly where the next decision has seen as many more frames as the answer has low-level
    actions. Nothing follows a stop. Decisions that were copied count once.

    Args:
        decisions: (number of frames seen, answer), in any order; None for an answer that names no action. Two different
            answers at the same frame count as none.
    """
    answers: dict[int, Action | None] = {}
    for num_frames, action in decisions:
        if num_frames < 1:
            raise ValueError(f"a decision has seen {num_frames} frames, expected at least 1")
        answers[num_frames] = action if answers.setdefault(num_frames, action) == action else None
    seen = sorted(answers)
    actions = np.full(max(seen[-1] - 1, 0) if seen else 0, UNKNOWN_ACTION, dtype=np.int8)
    for before, after in pairwise(seen):
        action = answers[before]
        if action is not None and action.kind is not ActionKind.STOP and action.steps == after - before:
            actions[before - 1 : after - 1] = int(action.kind)
    return actions


def motion_between(
    actions: ExecutedActions,
    start: int,
    stop: int,
    *,
    turn_degrees: float | int = TURN_DEGREES,
    forward_m: float = FORWARD_M,
) -> Float32[np.ndarray, "3"]:
    """Metres ahead, degrees to the left, and low-level steps from frame `start` to frame `stop`.

    Metres are those commanded: a step that runs into a wall counts in full. NaN where an action on the way is unknown,
    where the frames stand in another order, and where either is negative (no frame).
    """
    part = actions[start:stop]
    if not 0 <= start <= stop <= len(actions) or bool((part == UNKNOWN_ACTION).any()):
        return np.full(3, np.nan, dtype=np.float32)
    ahead, left, right = (int((part == kind).sum()) for kind in (ActionKind.FORWARD, ActionKind.LEFT, ActionKind.RIGHT))
    return np.array([ahead * forward_m, (left - right) * turn_degrees, stop - start], dtype=np.float32)


def motions_along(
    actions: ExecutedActions,
    frames: Sequence[int],
    *,
    turn_degrees: float | int = TURN_DEGREES,
    forward_m: float = FORWARD_M,
) -> Float32[np.ndarray, "t 3"]:
    """The motion from each of some frames to the next one of them; NaN for the last."""
    motions = np.full((len(frames), 3), np.nan, dtype=np.float32)
    for row, (start, stop) in enumerate(pairwise(frames)):
        motions[row] = motion_between(actions, start, stop, turn_degrees=turn_degrees, forward_m=forward_m)
    return motions
