"""The navigation prompts: the published one to the byte, the streaming one piece by piece."""

import json

import pytest

from llava.navigation.actions import STOP, Action, ActionKind
from llava.navigation.prompt import (
    NavilaFormat,
    Piece,
    Step,
    StreamingFormat,
    build_prompt_format,
    normalise_instruction,
    route_description_messages,
)

FORWARD_2, LEFT = Action(ActionKind.FORWARD, 2), Action(ActionKind.LEFT)


def test_golden_training_prompts(golden):
    for case in json.loads((golden / "vln/golden.json").read_text())["I_train_prompt"]:
        messages = NavilaFormat().training_messages(case["q"], case["gpt"])
        assert [m["value"] for m in messages] == [case["human"], case["gpt"]]


def test_golden_evaluation_prompts_keep_the_raw_instruction(golden):
    for case in json.loads((golden / "vln/golden.json").read_text())["F_navila_eval_loop"]["sequences"]:
        (message,) = NavilaFormat(instruction="raw").inference_messages(case["instruction"])
        assert message["value"] == case["prompt"]


def test_golden_data_set_prompts(golden):
    folder = golden / "E_vln_datasets"
    records = {
        name: json.loads((folder / f"NaVILA-Dataset/{path}/annotations.json").read_text())
        for name, path in {"r2r": "R2R", "rxr": "RxR", "envdrop": "EnvDrop"}.items()
    }
    seen = 0
    for sample in json.loads((folder / "samples.json").read_text())["samples"]:
        record = records.get(sample["dataset"], [{}] * 99)[sample["index"]]
        if sample["dataset"] in ("r2r", "rxr"):
            assert NavilaFormat().question(record["q"]) == sample["prompt"]
        elif sample["dataset"] == "envdrop":
            assert route_description_messages(8, sample["answer"]) == sample["conversation"]
        seen += bool(record)
    assert seen >= 16


def test_training_and_inference_show_the_same_question():
    row = NavilaFormat()
    assert row.training_messages("go . STOP", LEFT)[:1] == row.inference_messages("go . STOP")
    assert row.training_messages("go", LEFT)[1]["value"] == "The next action is turn left 15 degree."
    assert row.question("go").count("<image>") == row.num_frames


@pytest.mark.parametrize("empty_or_odd", ["", ".", " . ", "\n", "ÉTAGE. à gauche"])
def test_normalising_never_fails_and_is_done_once(empty_or_odd):
    once = normalise_instruction(empty_or_odd)
    assert normalise_instruction(once) == once


def test_streaming_hangs_every_answer_and_question_on_a_branch_of_its_own():
    steps = [
        Step(frame=0, action=FORWARD_2, questions=[("Where is the red ball?", "left")]),
        Step(frame=3, action=STOP),
    ]
    assert StreamingFormat().training_pieces("go to the red ball .", steps) == [
        Piece(text="Your task is: Go to the red ball.\n"),
        Piece(frame=0),
        Piece(text="↑↑<|eot_id|>", supervised=True, branch=1, answer_to=0),
        Piece(text="Where is the red ball?", branch=2),
        Piece(text="left<|eot_id|>", supervised=True, branch=2),
        Piece(frame=3),
        Piece(text="STOP<|eot_id|>", supervised=True, branch=3, answer_to=3),
    ]


def test_visible_answers_stay_in_the_trunk_and_reappear_at_inference():
    row = StreamingFormat(answers_visible=True)
    trained = row.training_pieces("go", [Step(frame=0, action=LEFT), Step(frame=1, action=STOP)])
    shown = row.inference_pieces("go", [0, 1], [LEFT])
    assert {piece.branch for piece in trained} == {0}
    assert [(p.text, p.frame) for p in shown] == [(p.text, p.frame) for p in trained[:-1]]


def test_invisible_answers_leave_no_trace_at_inference():
    row = StreamingFormat()
    trunk = [p for p in row.training_pieces("go", [Step(frame=f, action=LEFT) for f in (0, 1, 5)]) if p.branch == 0]
    assert row.inference_pieces("go", [0, 1, 5], [LEFT, LEFT]) == trunk


def test_inference_needs_one_action_between_two_frames():
    with pytest.raises(ValueError, match="3 frames need 2 actions between them, got 1"):
        StreamingFormat().inference_pieces("go", [0, 1, 2], [LEFT])


@pytest.mark.parametrize("row", [NavilaFormat(num_frames=4, instruction="raw"), StreamingFormat(answers_visible=True)])
def test_a_format_is_rebuilt_from_what_the_checkpoint_stores(row):
    assert build_prompt_format(json.loads(json.dumps(row.to_config()))) == row


def test_the_stored_form_of_the_published_prompt():
    assert NavilaFormat().to_config() == {"format": "navila", "instruction": "normalised", "num_frames": 8}


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"format": "navilla"}, KeyError, "did you mean 'navila'"),
        ({"format": "navila", "num_frame": 8}, ValueError, "did you mean 'num_frames'"),
        ({"format": "streaming", "instruction": "shouted"}, ValueError, "expected 'raw' or 'normalised'"),
    ],
)
def test_a_wrong_stored_form_says_what_was_meant(config, error, words):
    with pytest.raises(error, match=words):
        build_prompt_format(config)


@pytest.mark.parametrize(
    "fields", [{}, {"text": "a", "frame": 0}, {"frame": 0, "branch": 1}, {"frame": 0, "answer_to": 0}]
)
def test_an_impossible_piece_is_refused(fields):
    with pytest.raises(ValueError, match=r"piece|frame"):
        Piece(**fields)


def test_an_answer_may_say_where_the_goal_is_before_it_says_what_to_do():
    form = StreamingFormat(names_place=True)
    pieces = form.training_pieces("Go.", [Step(frame=0, action=FORWARD_2, place="52")])
    assert pieces[-1] == Piece(text="52↑↑<|eot_id|>", supervised=True, branch=1, answer_to=0)
    assert form.read_action("52↑↑") == FORWARD_2
    assert form.read_action("51STOP") == STOP
    assert build_prompt_format(form.to_config()) == form
    with pytest.raises(ValueError, match="expected 2 digits"):
        form.training_pieces("Go.", [Step(frame=0, action=FORWARD_2)])
