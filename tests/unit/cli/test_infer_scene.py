"""vila-infer with split pictures: the cache on disk, the profile, the drawing, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from llava.cli.infer import main
from llava.cli.infer_scene import read_settings
from tests.unit.model.autoregressive_reconstruction.surprise_toy import make_model, make_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the split, one without, an empty scene, and two pictures of it with a ball."""
    root = tmp_path_factory.mktemp("infer_scene")
    tokenizer = make_tokenizer(root)
    make_model(tokenizer).save_pretrained(root / "plain")
    model = make_model(tokenizer)
    torch.manual_seed(0)
    model.initialize_scene_split({})
    model.save_pretrained(root / "split")
    empty = np.random.default_rng(0).integers(60, 90, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(empty).save(root / "empty.png")
    for name, colour in (("red", (250, 20, 20)), ("blue", (20, 20, 250))):
        shown = empty.copy()
        shown[40:60, 40:60] = colour
        Image.fromarray(shown).save(root / f"{name}.png")
    return root


def infer(folder: Path, *arguments: Any, model: str = "split") -> int:
    given = ["-m", folder / model, "--max-new-tokens", "3", "--text", "What moves?", *arguments]
    return main(list(map(str, given)))


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def detector(folder: Path) -> list[Any]:
    return ["--detector", "motion", "--detector-options", f"background={folder / 'empty.png'}"]


def test_a_background_of_an_earlier_run_is_found_on_disk(folder: Path, tmp_path: Path, capsys: Any):
    arguments = ["--background-cache", tmp_path / "kept", *detector(folder), "--json"]
    assert infer(folder, "--media", folder / "red.png", *arguments) == 0
    (first,) = told(capsys)["requests"]
    assert first["pictures"][0]["background"] == "miss" and first["cached_tokens"] == [0]
    assert infer(folder, "--media", folder / "blue.png", *arguments) == 0
    result = told(capsys)
    (second,) = result["requests"]
    (picture,) = second["pictures"]
    assert (picture["background"], picture["tier"], picture["objects"]) == ("exact_kv", "disk", "computed")
    assert not picture["detector_ran"] and picture["num_background"] + picture["num_objects"] == 4
    assert infer(folder, "--media", folder / "blue.png", *detector(folder), "--json") == 0
    assert told(capsys)["answer"] == result["answer"]


def test_a_background_within_the_noise_of_the_camera_is_served_by_request(folder: Path, tmp_path: Path, capsys: Any):
    noisy = np.asarray(Image.open(folder / "red.png")).astype(int)
    noisy = noisy + np.random.default_rng(1).integers(-1, 2, noisy.shape)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(tmp_path / "noisy.png")
    kept = ["--background-cache", tmp_path / "kept", *detector(folder), "--json", "--noise", 1]
    assert infer(folder, "--media", folder / "red.png", *kept) == 0
    capsys.readouterr()
    for flags, expected in ((kept, "guarded"), (kept[:-2], "miss")):
        assert infer(folder, "--media", tmp_path / "noisy.png", *flags) == 0
        assert told(capsys)["requests"][0]["pictures"][0]["background"] == expected


def test_the_profile_has_a_line_per_request_and_the_answer_stays_alone_on_standard_output(folder: Path, capsys: Any):
    arguments = ["--media", folder / "red.png", *detector(folder)]
    assert infer(folder, *arguments) == 0
    plain = capsys.readouterr().out
    assert infer(folder, *arguments, "--background-cache", "--repeat", 2, "--profile") == 0
    printed = capsys.readouterr()
    assert printed.out == plain
    lines = [line for line in printed.err.splitlines() if line.strip()]
    heads = "request detector resize lookup encoder prefill first token total tokens saved"
    assert heads.split() == next(line for line in lines if "detector" in line).split()
    assert "request 1, picture 1: background miss" in printed.err
    assert "request 2, picture 1: background exact_kv (device)" in printed.err


def test_a_model_without_the_split_tells_its_times(folder: Path, capsys: Any):
    assert infer(folder, "--media", folder / "red.png", "--profile", model="plain") == 0
    assert "first token" in capsys.readouterr().err


def test_a_detector_that_has_no_answer_costs_its_picture_and_is_told(folder: Path, capsys: Any):
    """Nobody wrote masks beside this picture."""
    assert infer(folder, "--media", folder / "red.png", "--detector", "precomputed", "--profile") == 0
    told_of = " ".join(capsys.readouterr().err.split())
    assert "0 tokens; objects computed, 4 tokens" in told_of
    assert "the detector failed and the whole picture was read as one object" in told_of


@pytest.mark.parametrize("name", ["hits.png", "hits.html"])
def test_the_drawing_shows_what_was_reused(folder: Path, name: str, tmp_path: Path, capsys: Any):
    arguments = ["--media", folder / "red.png", folder / "blue.png", *detector(folder), "--background-cache"]
    assert infer(folder, *arguments, "--repeat", 2, "--json", "--draw", tmp_path / name) == 0
    assert (tmp_path / name).stat().st_size > 1000
    if name.endswith("html"):
        assert "picture 1: background exact_kv (device)" in (tmp_path / name).read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--background-cache"], "--background-cache speaks of pictures and --media has none"),
        (["--noise", "2", "--media", "red.png"], "add --background-cache"),
        (["--noise", "-1", "--background-cache", "--media", "red.png"], "--noise is -1.0, expected"),
        (["--repeat", "0"], "--repeat is 0, expected at least 1"),
        (["--repeat", "2"], "add --profile or --json"),
        (["--detector-options", "weights=a.pt"], "add --detector"),
        (["--draw", "a.jpg", "--media", "red.png"], "expected a name that ends in .png or .html"),
        (["--detector", "motion", "--detector-options", "threshold", "--media", "red.png"], "expected KEY=VALUE"),
    ],
)
def test_errors_are_one_line(folder: Path, arguments: list[str], words: str, capsys: Any, monkeypatch: Any):
    monkeypatch.chdir(folder)
    assert infer(folder, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("vila-infer: error: ") and words in error and error.count("\n") == 1


def test_a_model_without_the_split_is_split_only_by_request(folder: Path, capsys: Any):
    arguments = ["--media", folder / "red.png", "--background-cache", "--repeat", 2, "--json"]
    assert infer(folder, *arguments, model="plain") == 1
    assert "add --scene-split to see how much worse" in capsys.readouterr().err
    assert infer(folder, *arguments, "--scene-split", model="plain") == 0
    first, second = told(capsys)["requests"]
    assert first["pictures"][0]["background"] == "miss" and second["pictures"][0]["background"] == "exact_kv"


def test_settings_of_a_detector_are_numbers_words_or_lists():
    assert read_settings(["threshold=20", "weights=a.pt", 'classes=["cup"]']) == {
        "threshold": 20,
        "weights": "a.pt",
        "classes": ["cup"],
    }
