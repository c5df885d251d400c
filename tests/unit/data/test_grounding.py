"""Questions about objects that hang on decisions."""

import random

import pytest

from llava.data.dataset_impl.grounding import Grounding, grounding_dialogue
from llava.data.utils import BrokenSampleError

TABLE = {"3": [{"goal": [5, 2], "red ball": [5, 2], "blue box": None}]}


def test_an_answer_is_column_and_distance_in_two_digits():
    assert grounding_dialogue("red ball", [5, 12]) == (" red ball?", "59")
    assert grounding_dialogue("red ball", None) == (" red ball?", "no")


def test_half_of_the_first_questions_are_about_the_goal():
    grounding = Grounding(TABLE, 1.0)
    asked = [grounding.ask("3", 0, random.Random(seed))[0][0] for seed in range(400)]
    assert 150 < asked.count(" goal?") < 250
    assert {" red ball?", " blue box?"} < set(asked)


def test_a_share_of_questions_is_rounded_at_random():
    grounding = Grounding(TABLE, 0.25)
    assert 70 < sum(len(grounding.ask("3", 0, random.Random(seed))) for seed in range(400)) < 130


def test_a_decision_without_a_table_is_named():
    with pytest.raises(BrokenSampleError, match="episode 3 has 1 grounding entries, expected at least 5"):
        Grounding(TABLE, 1.0).ask("3", 4, random.Random(0))
