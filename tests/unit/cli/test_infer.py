"""vila-infer on a checkpoint and clips written by the test."""

from __future__ import annotations

import json
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

import llava
from llava.cli.infer import build_parser, main
from tests.unit.model.autoregressive_reconstruction.surprise_toy import (
    JUMP,
    jumping_disc,
    learner,
    make_model,
    make_tokenizer,
)

NUM_FRAMES = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint with a predictor that copies, one without, a clip as video and as folder, and a picture."""
    root = tmp_path_factory.mktemp("infer")
    tokenizer = make_tokenizer(root)
    make_model(tokenizer).save_pretrained(root / "plain")
    learner(make_model(tokenizer), copies=True).save_pretrained(root / "model")
    frames = jumping_disc(NUM_FRAMES).permute(0, 2, 3, 1).numpy().repeat(2, axis=1).repeat(2, axis=2)
    writer = cv2.VideoWriter(str(root / "walk.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 64))
    (root / "frames").mkdir()
    for number, frame in enumerate(frames):
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
        Image.fromarray(frame).save(root / "frames" / f"frame_{number}.png")
    writer.release()
    Image.new("RGB", (40, 30), "red").save(root / "red.png")
    return root


def infer(folder, *arguments, model="plain"):
    return main(["-m", str(folder / model), "--max-new-tokens", "4", *map(str, arguments)])


def told(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


def test_the_answer_is_that_of_the_library(folder, capsys):
    assert infer(folder, "--text", "What moves?", "--media", folder / "red.png", folder / "frames") == 0
    printed = capsys.readouterr().out
    prompt = [llava.Image(folder / "red.png"), llava.Video(folder / "frames"), "What moves?"]
    model = llava.load(folder / "plain")
    assert printed == model.generate_content(prompt, max_new_tokens=4, do_sample=False) + "\n"


def test_a_video_tells_which_frames_were_shown_and_when(folder, capsys):
    assert infer(folder, "--text", "What moves?", "--media", folder / "walk.mp4", "-nf", 3, "--json") == 0
    result = told(capsys)
    (medium,) = result["media"]
    assert medium["kind"] == "video" and medium["num_frames"] == NUM_FRAMES and medium["frames_by"] == "uniform"
    assert medium["frames"] == [0, 6, 11]
    assert medium["times"] == pytest.approx([0, 0.6, 1.1], abs=0.01)
    assert medium["surprise"] is None
    assert result["conv_mode"] == "llama_3" and result["generation"]["max_new_tokens"] == 4
    assert isinstance(result["answer"], str)


def test_frames_by_surprise_show_the_jump(folder, capsys):
    arguments = ["--text", "What moves?", "--media", folder / "walk.mp4", "--num_video_frames", 3, "--json"]
    assert infer(folder, *arguments, "--frames-by", "surprise", model="model") == 0
    (medium,) = told(capsys)["media"]
    assert medium["frames"] == [0, JUMP, NUM_FRAMES - 1]
    assert medium["candidates"] == list(range(NUM_FRAMES))
    surprise = medium["candidate_surprise"]
    assert surprise[0] is None and max(surprise[1:]) == surprise[JUMP] == medium["surprise"][1]


def test_a_folder_of_frames_has_no_times_and_fewer_candidates_are_looked_at(folder, capsys):
    arguments = ["--text", "<image>What moves?", "--media", folder / "frames", "-nf", 2, "--json"]
    assert infer(folder, *arguments, "--frames-by", "surprise", "--candidates", 4, model="model") == 0
    (medium,) = told(capsys)["media"]
    assert medium["kind"] == "frame folder" and medium["times"] is None
    assert medium["candidates"] == [0, 3, 7, 11] and medium["frames"] == [0, 11]


def test_text_says_where_each_medium_stands(folder, capsys):
    red, clip = folder / "red.png", folder / "frames"
    assert infer(folder, "--text", "First <image> then <image> what moves?", "--media", red, clip, "--json") == 0
    assert [len(medium["frames"]) for medium in told(capsys)["media"]] == [1, 4]
    assert infer(folder, "--text", "Only <image> here", "--media", red, clip) == 1
    assert "the query has 1 <image>, 2 pictures were given" in capsys.readouterr().err


def test_text_alone_is_answered_and_sampling_can_be_repeated(folder, capsys):
    sampled = ["--text", "What moves?", "--temperature", "2.0", "--top-p", "0.9", "--seed", "3"]
    answers = []
    for _ in range(2):
        assert infer(folder, *sampled) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--media", "nowhere.jpg"], "--media nowhere.jpg does not exist"),
        (["--media", "https://example.org/a.jpg"], "is an address, expected a file; download it first"),
        (["-nf", "4"], "--num-video-frames speaks of clips and --media has none"),
        (["--frames-by", "surprise", "--media", "red.png"], "--frames-by surprise speaks of clips"),
        (["--candidates", "4", "--media", "frames"], "--candidates is read with --frames-by surprise"),
        (["--top-p", "0.5"], "add --temperature 0.7"),
        (["--num-beams", "0"], "--num-beams is 0, expected at least 1"),
        (["--conv-mode", "llama3"], "did you mean 'llama_3'"),
        (["--media", "broken.mp4"], "cannot be decoded"),
        (["--media", "strip"], "holds one filmstrip, expected a picture per frame"),
        (["--media", "frames", "--frames-by", "surprise"], "trained without the next-frame loss"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(folder, arguments, words, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "strip").mkdir(exist_ok=True)
    (folder / "strip" / "filmstrip.json").write_text("{}")
    assert infer(folder, "--text", "What moves?", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("vila-infer: error: ") and words in error and error.count("\n") == 1


def test_a_checkpoint_that_cannot_tell_surprise_is_refused(folder, capsys):
    leaking = learner(make_model(make_tokenizer(folder)), use_frame_causal_mask=False)
    leaking.save_pretrained(folder / "leaking")
    assert infer(folder, "--text", "x", "--media", folder / "frames", "--frames-by", "surprise", model="leaking") == 1
    assert "is an arm of an experiment" in capsys.readouterr().err


def test_fewer_candidates_than_frames_are_refused(folder, capsys):
    arguments = ["--text", "x", "--media", folder / "frames", "--frames-by", "surprise", "--candidates", 2]
    assert infer(folder, *arguments, model="model") == 1
    assert "--candidates is 2, expected at least the 4 frames that are shown" in capsys.readouterr().err


def test_a_missing_decoder_is_named_with_its_command(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    assert infer(folder, "--text", "x", "--media", folder / "walk.mp4", "--decoder", "decord") == 1
    assert "pip install decord" in capsys.readouterr().err


def test_help_fits_one_screen():
    lines = build_parser().format_help().splitlines()
    assert len(lines) <= 36 and max(map(len, lines)) <= 100
