"""The command that draws where a model's prediction is wrong, on walks written by the test."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

import llava
from llava.cli.world import main as vila_world
from llava.navigation.prompt import NavilaFormat, StreamingFormat
from playground.reconstruction_walks import predict_walks
from playground.show_reconstruction import CLASSES, class_of, describe, main
from tests.unit.model.autoregressive_reconstruction.surprise_toy import SIDE, learner, make_model, make_tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two unseen houses, a streaming model that copies, and a model of 4 frames that predicts outcomes of answers."""
    root = tmp_path_factory.mktemp("show")
    size = ["--width", str(SIDE), "--height", str(SIDE)]
    house = ["--split", "val_unseen", "--frames", "filmstrip", "--houses", "2", "--grounding-frames", "0"]
    assert vila_world(["write", "--level", "one_room", "--out", str(root / "data"), *size, *house]) == 0
    tokenizer = make_tokenizer(root)
    streaming = make_model(tokenizer, positions=4096, prompt=StreamingFormat().to_config())
    learner(streaming, copies=True, condition_on_action="history").save_pretrained(root / "streaming")
    navila = make_model(tokenizer, positions=4096, prompt=NavilaFormat(num_frames=4).to_config())
    learner(navila, site="answer", condition_on_action="answer").save_pretrained(root / "4frames")
    return root


def test_pictures_numbers_and_a_page_are_written(folders, tmp_path, capsys):
    arguments = [str(folders / "streaming"), "--data_root", str(folders / "data"), "--out", str(tmp_path)]
    assert main([*arguments, "--frames", "4"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "index.html")
    figures = json.loads((tmp_path / "figures.json").read_text())["by_motion"]
    pictures = sorted(tmp_path.glob("episode-*.png"))
    assert len(pictures) == 2
    assert figures["all"]["frames"] == 8 == sum(figures[name]["frames"] for name in CLASSES if name in figures)
    assert [(Image.open(path).height - 62 - 46) / (168 + 24) for path in pictures] == [4, 4]
    assert figures["all"]["skill"] == 0 and figures["all"]["mse"] > 0  # the predictor copies
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and not re.search(r'(src|href)="(?!data:|#)', page)


def test_outcomes_of_answers_are_those_of_the_records(folders):
    model = llava.load(folders / "4frames", surprise=True)
    walks = predict_walks(model, folders / "data", "val_unseen", num_episodes=2, num_frames=3)
    for walk in walks:
        assert 1 <= len(walk.frames) <= 3
        for frame in walk.frames:
            ahead, yaw, steps = frame.motion.tolist()
            assert frame.site == "answer"
            assert steps == frame.steps[1] - frame.steps[0] == abs(ahead) / 0.25 + abs(yaw) / 15
            assert frame.error.shape == (4, 4) and (frame.error != frame.copied).any()


def test_what_is_missing_is_named(folders, tmp_path, capsys):
    model, out = str(folders / "streaming"), str(tmp_path / "out")
    assert main([model, "--data_root", str(folders / "data"), "--out", out, "--split", "train"]) == 1
    assert "no annotations.json with frames in train/; write them with vila-world write" in capsys.readouterr().err
    assert main([model, "--data_root", str(folders / "data"), "--out", out, "--frames", "0"]) == 1
    assert "--frames 0, expected at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("motion", "words", "name"),
    [
        ([0.75, 0.0, 3.0], "forward 0.75 m", "forward"),
        ([0.0, 30.0, 2.0], "left 30°", "turn"),
        ([0.25, -15.0, 2.0], "forward 0.25 m\nright 15°", "both"),
        ([0.0, 0.0, 1.0], "stands still", "still"),
        ([float("nan")] * 3, "motion unknown", "unknown"),
    ],
)
def test_motions_are_told_in_words(motion, words, name):
    assert describe(np.array(motion, dtype=np.float32)) == words
    assert class_of(np.array(motion, dtype=np.float32)) == name
