"""Actions survive writing and reading; the published loop's reading is reproduced text by text."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.navigation.actions import (
    DEFAULT_FALLBACK,
    STOP,
    Action,
    ActionKind,
    ArrowFormat,
    SentenceFormat,
    decide,
    low_level_ids,
    merge_actions,
)

PUBLISHED = [
    "I think I should stop because I have finished the instruction.",
    *(f"The next action is move forward {cm} cm." for cm in (25, 50, 75)),
    *(f"The next action is turn {side} {angle} degree." for side in ("left", "right") for angle in (15, 30, 45)),
]
LIMITED = [STOP, *(Action(kind, n) for kind in list(ActionKind)[1:] for n in (1, 2, 3))]


def test_the_ten_actions_are_written_as_the_ten_published_sentences():
    assert [SentenceFormat().write(action) for action in LIMITED] == PUBLISHED


@pytest.mark.parametrize("text_format", [SentenceFormat(), ArrowFormat()])
def test_what_is_written_is_read_back(text_format):
    assert [text_format.read(text_format.write(action)) for action in LIMITED] == LIMITED


def test_arrow_answers_are_all_in_the_vocabulary():
    assert {ArrowFormat().write(action) for action in LIMITED} == set(ArrowFormat().vocabulary())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("↑↑<|eot_id|>", Action(ActionKind.FORWARD, 2)),
        (" ← ← ", Action(ActionKind.LEFT, 2)),
        ("→↑↑", Action(ActionKind.RIGHT, 1)),
        ("↑↑↑↑↑↑", Action(ActionKind.FORWARD, 3)),
        ("stop", STOP),
        ("red", None),
        ("", None),
    ],
)
def test_arrow_reading_takes_the_first_run_and_at_most_three(text, expected):
    assert ArrowFormat().read(text) == expected


def test_too_long_an_arrow_answer_names_the_limit():
    with pytest.raises(ValueError, match=r"at most 3 steps, got 4.*merge_actions"):
        ArrowFormat().write(Action(ActionKind.LEFT, 4))


def test_nonsense_becomes_the_declared_fallback_and_is_marked():
    assert decide("I do not know.", SentenceFormat()) == decide("♞", ArrowFormat())
    assert decide("", SentenceFormat()).action == DEFAULT_FALLBACK
    assert not decide("", SentenceFormat()).understood
    assert decide("", SentenceFormat(), fallback=STOP).action == STOP
    assert decide("The next action is turn left 30 degrees.", SentenceFormat()).understood


def test_equal_neighbours_merge_from_left_to_right():
    assert merge_actions([1, 1, 1, 1, 2, 2, 1, 0]) == [
        Action(ActionKind.FORWARD, 3),
        Action(ActionKind.FORWARD, 1),
        Action(ActionKind.LEFT, 2),
        Action(ActionKind.FORWARD, 1),
        STOP,
    ]


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 4))
def test_merging_loses_no_step(low_level, max_merge):
    merged = merge_actions(low_level, max_merge)
    assert low_level_ids(merged) == low_level
    assert all(action.steps <= max_merge for action in merged)


@pytest.mark.parametrize("steps", [0, -1])
def test_an_action_without_steps_is_refused(steps):
    with pytest.raises(ValueError, match=f"{steps} steps"):
        Action(ActionKind.FORWARD, steps)


def test_golden_single_answers_are_read_alike(golden):
    cases = json.loads((golden / "A_navila/text/action_parser.json").read_text())["cases"]
    for case in cases:
        action = SentenceFormat().read(case["text"])
        expected = None if case["action"] is None else case["env_step_argument"] + case["queued_actions"]
        assert (None if action is None else action.low_level()) == expected, case["text"]


def test_golden_evaluation_loop_executes_the_same_steps(golden):
    section = json.loads((golden / "vln/golden.json").read_text())["F_navila_eval_loop"]
    for case in section["single"]:
        action = SentenceFormat().read(case["text"])
        executed = [None] if action is None else action.low_level()
        if case["error"] is None and executed[-1] != 0:
            executed.append(0)  # the recording ends every episode by a stop
        assert executed == case["low_level_actions"], case["text"]
    for case in section["sequences"]:
        actions = [SentenceFormat().read(text) for text in case["texts"]]
        if all(actions):
            done = low_level_ids(actions)
            assert done[: len(case["low_level_actions"])] == case["low_level_actions"], case["texts"]
