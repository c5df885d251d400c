"""Questions about objects that hang on decisions."""

import random

import pytest

from llava.data.dataset_impl.grounding import Grounding, grounding_dialogue
from llava.data.utils import BrokenSampleError

TABLE = {"3": [{"goal": [5, 2], "red ball": [5, 2], "blue box": None}]}


def test_an_answer_is_column_and_distance_in_two_digits():
    assert grounding_dialogue("red ball", [5, 12]) == (" red ball?", "59")
    assert grounding_dialogue("red ball", None) == (" red ball?", "00")


def _asked(grounding):
    return [grounding.ask("3", 0, random.Random(seed))[0][0] for seed in range(400)]


def test_most_first_questions_are_about_the_goal_and_most_others_about_what_is_in_view():
    asked = _asked(Grounding(TABLE, 1.0))
    assert 200 < asked.count(" goal?") < 280
    assert asked.count(" red ball?") > 2 * asked.count(" blue box?") > 0


def test_without_a_task_nobody_asks_for_its_goal():
    assert set(_asked(Grounding(TABLE, 1.0, with_goal=False))) == {" red ball?", " blue box?"}


def test_no_more_questions_than_objects():
    assert len(Grounding(TABLE, 9.0, with_goal=False).ask("3", 0, random.Random(0))) == 2


def test_a_share_of_questions_is_rounded_at_random():
    grounding = Grounding(TABLE, 0.25)
    assert 70 < sum(len(grounding.ask("3", 0, random.Random(seed))) for seed in range(400)) < 130


def test_a_decision_without_a_table_is_named():
    with pytest.raises(BrokenSampleError, match="episode 3 has 1 grounding entries, expected at least 5"):
        Grounding(TABLE, 1.0).ask("3", 4, random.Random(0))


def test_the_place_of_the_goal_is_two_digits():
    assert Grounding(TABLE, 0.0).goal_place("3", 0) == "52"
    with pytest.raises(BrokenSampleError, match="no 'goal'"):
        Grounding({"3": [{"red ball": [5, 2]}]}, 0.0).goal_place("3", 0)
