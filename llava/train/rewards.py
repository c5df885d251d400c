"""Rewards of answers that should name the next action of a robot; signatures are those of trl's GRPO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llava.navigation.actions import ACTION_FORMATS, ActionFormat

SAME_KIND = 0.5
"""For the right kind of action with another number of steps."""


def action_reward(completions: Sequence[Any], answer: Sequence[str], **columns: Any) -> list[float]:
    """1 where a completion names the oracle's action, 0.5 where it names the same kind of action, else 0.

    Args:
        answer: the oracle's sentences.
    """
    form = _sentences()
    return [_compare(form, said_by(said), right) for said, right in zip(completions, answer, strict=True)]


def format_reward(completions: Sequence[Any], **columns: Any) -> list[float]:
    """1 where a completion is one of the sentences of the action format to the letter, else 0."""
    form = _sentences()
    return [float(_is_written(form, said_by(said))) for said in completions]


def said_by(completion: Any) -> str:
    """The text of a completion: a string, or the messages of a conversation."""
    if isinstance(completion, str):
        return completion.strip()
    content = completion[-1]["content"]
    return (content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)).strip()


def _sentences() -> ActionFormat:
    return ACTION_FORMATS["sentence"]()


def _compare(form: ActionFormat, said: str, right: str) -> float:
    expected, found = form.read(right), form.read(said)
    if expected is None:
        raise ValueError(f"the oracle's answer {right!r} names no action; expected a sentence like {EXAMPLE!r}")
    if found is None or found.kind is not expected.kind:
        return 0.0
    return 1.0 if found == expected else SAME_KIND


def _is_written(form: ActionFormat, said: str) -> bool:
    action = form.read(said)
    return action is not None and form.write(action) == said


EXAMPLE = "The next action is turn left 30 degree."
