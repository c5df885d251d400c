"""One-shot entries: pictures from disk, an answer, the action read from it."""

import json

import numpy as np
import pytest
from PIL import Image

from llava.eval.run_navigation import decide_once, describe_action, main, read_history
from llava.eval.run_vila import interleave
from llava.eval.run_vila import main as chat
from llava.navigation.actions import STOP, Action, ActionKind


@pytest.fixture(scope="module")
def checkpoints(toys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in ("streaming", "navila"):
        getattr(toys, name)().save_pretrained(folder / name)
    return folder


@pytest.fixture
def frames(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(3):
        picture = np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"frame_{i}.png")
    return folder


def run(capsys, *arguments):
    assert main([*arguments, "--query", "Go to the red ball."]) == 0
    answer, action, facts = capsys.readouterr().out.splitlines()
    return answer.removeprefix("answer: "), action.removeprefix("action: "), json.loads(facts)


@pytest.mark.parametrize("name", ["streaming", "navila"])
def test_the_answer_and_its_action_are_printed(name, checkpoints, frames, capsys):
    answer, action, facts = run(capsys, "--model-path", str(checkpoints / name), "--video-file", str(frames))
    listed = ",".join(str(frames / f"frame_{i}.png") for i in range(3))
    again = run(capsys, "--model-path", str(checkpoints / name), "--image-file", listed)
    assert again == (answer, action, facts)
    assert facts["low_level"] == [["STOP", "FORWARD", "LEFT", "RIGHT"].index(facts["action"])] * facts["steps"]
    if not facts["understood"]:
        assert "fallback" in action


def test_sampling_and_beams_are_honoured_where_a_sentence_is_answered(checkpoints, frames, capsys):
    base = ("--model-path", str(checkpoints / "navila"), "--video-file", str(frames), "--max_new_tokens", "4")
    assert run(capsys, *base, "--temperature", "0.7", "--top_p", "0.9")[2]
    assert run(capsys, *base, "--num_beams", "2")[2]
    with pytest.raises(SystemExit):
        run(capsys, "--model-path", str(checkpoints / "streaming"), "--video-file", str(frames), "--temperature", "1")
    assert "answers greedily" in capsys.readouterr().err


def test_one_source_of_pictures_is_needed(checkpoints, capsys):
    with pytest.raises(SystemExit):
        main(["--model-path", str(checkpoints / "navila"), "--query", "go"])
    assert "expected exactly one" in capsys.readouterr().err


def test_a_missing_checkpoint_is_named(frames, capsys):
    with pytest.raises(SystemExit):
        main(["--model-path", "/no/such", "--video-file", str(frames), "--query", "go"])
    assert "checkpoint /no/such does not exist" in capsys.readouterr().err


def test_a_streaming_policy_decides_at_every_picture_of_the_history(brightness, frames):
    history = read_history(None, str(frames))
    sparse, dense = brightness(False), brightness(True)
    decide_once(sparse, "go", history)
    decide_once(dense, "go", history)
    assert sparse.frame_counts["walk"] == [1, 2, 3]
    assert dense.frame_counts["walk"] == [3]


def test_actions_in_words():
    assert describe_action(STOP) == "stop"
    assert describe_action(Action(ActionKind.FORWARD, 3)) == "move forward 75 cm"
    assert describe_action(Action(ActionKind.LEFT, 2)) == "turn left 30 degrees"


def test_chat_about_a_picture(checkpoints, frames, capsys):
    picture = str(frames / "frame_0.png")
    arguments = ["--model-path", str(checkpoints / "navila"), "--image-file", picture, "--max_new_tokens", "3"]
    assert chat([*arguments, "--query", "<image>\nWhat is this?"]) == 0
    first = capsys.readouterr().out
    assert chat([*arguments, "--query", "What is this?"]) == 0
    assert capsys.readouterr().out == first


def test_pictures_go_where_the_query_wants_them():
    assert interleave("a <image>\nb <image>", ["x", "y"]) == ["a ", "x", "b ", "y"]
    assert interleave("what?", ["x"]) == ["x", "what?"]
    with pytest.raises(ValueError, match="the query has 2 <image>, 1 pictures were given"):
        interleave("<image> <image>", ["x"])
