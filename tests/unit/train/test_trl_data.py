"""Records and rewards of preference and RL training."""

from __future__ import annotations

import json

import pytest

from llava.navigation.prompt import NavilaFormat
from llava.train.rewards import SAME_KIND, action_reward, format_reward, said_by
from llava.train.trl_data import decisions, preference_pairs
from llava.train.trl_processor import BLACK, text_of

LEFT, FORWARD = "The next action is turn left 30 degree.", "The next action is move forward 75 cm."


def written(folder, *records):
    (folder / "records.json").write_text(json.dumps(list(records)))
    return folder / "records.json"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (LEFT, 1.0),
        ("The next action is turn left 15 degree.", SAME_KIND),
        (FORWARD, 0.0),
        ("I think I should stop because I have finished the instruction.", 0.0),
        ("hello", 0.0),
    ],
)
def test_a_completion_is_paid_for_the_action_of_the_oracle(said, expected):
    assert action_reward([said], [LEFT]) == [expected]
    assert action_reward([[{"role": "assistant", "content": said}]], [LEFT]) == [expected]


def test_a_stop_is_a_stop():
    stop = "I think I should stop because I have finished the instruction."
    assert action_reward([stop, LEFT], [stop, stop]) == [1.0, 0.0]


def test_only_a_sentence_to_the_letter_has_the_right_format():
    assert format_reward([LEFT, f" {LEFT}\n", f"Well. {LEFT}", "turn left", ""]) == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_the_text_of_a_completion_is_found_in_all_its_forms():
    assert said_by([{"role": "assistant", "content": [{"type": "text", "text": "go"}]}]) == "go"


def test_an_oracle_that_names_no_action_is_an_error():
    with pytest.raises(ValueError, match="names no action"):
        action_reward([LEFT], ["perhaps"])


def test_a_decision_shows_its_frames_as_the_navigation_prompt_does(tmp_path):
    prompt = NavilaFormat(num_frames=3)
    file = written(tmp_path, {"video_id": "0-1", "q": "go to the ball", "a": LEFT, "frames": ["0.png", "1.png"]})
    (row,) = decisions(file, tmp_path / "pictures", prompt)
    assert row["images"] == [BLACK, str(tmp_path / "pictures" / "0.png"), str(tmp_path / "pictures" / "1.png")]
    assert text_of(row["prompt"][0]["content"]) == prompt.question("go to the ball")
    assert row["answer"] == LEFT


def test_a_pair_is_a_question_and_two_answers(tmp_path):
    file = written(tmp_path, {"prompt": "<image>\nWhat?", "images": ["a.png"], "chosen": "yes", "rejected": "no"})
    (row,) = preference_pairs(file, None, NavilaFormat())
    assert row["prompt"] == [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nWhat?"}]}]
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("yes", "no")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"prompt": "<image> What?", "images": [], "chosen": "a", "rejected": "b"}, "1 <image> and 0 pictures"),
        ({"prompt": "What?", "chosen": "a"}, "rejected None, expected a text"),
        ({"chosen": "a", "rejected": "b"}, "expected 'prompt', or 'q' and 'frames'"),
    ],
)
def test_a_record_that_lacks_something_is_named(tmp_path, record, words):
    with pytest.raises(ValueError, match="record 0") as error:
        preference_pairs(written(tmp_path, record), None, NavilaFormat())
    assert words in str(error.value)
