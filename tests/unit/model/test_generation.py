"""From texts, pictures and clips to an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

import llava
from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import extract_media
from llava.model.builder import build_model
from llava.model.generation import encode_prompt
from llava.utils.tokenizer import train_tokenizer
from tests.numerics.models import pictures, tiny_config, tiny_model

GREEDY = {"do_sample": False, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = train_tokenizer(["go to the red ball and stop", "turn left at the blue chair"] * 3, 300, folder)
    config = tiny_config(version="llama_3", num_video_frames=4)
    config["llm_cfg"]["vocab_size"] = len(tokenizer)
    torch.manual_seed(0)
    return build_model(config, tokenizer=tokenizer).eval()


@pytest.fixture
def picture() -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))


def test_an_answer_holds_new_tokens_only_and_stops_at_the_end_of_a_turn(model: Any):
    ids = torch.tensor([[5, 6, 7]])
    first = model.generate(ids, do_sample=False, max_new_tokens=4, eos_token_id=None)
    assert first.shape == (1, 4)
    stopped = model.generate(ids, do_sample=False, max_new_tokens=4, eos_token_id=int(first[0, 1]))
    assert stopped[0].tolist()[-1] == first[0, 1]
    assert len(stopped[0]) <= 2
    assert {model.tokenizer.decode([token]) for token in model.stop_token_ids()} == {"<|eot_id|>", "<|end_of_text|>"}


def test_sampling_arguments_reach_the_language_model(model: Any):
    ids = torch.tensor([[5, 6, 7]])
    drawn = model.generate(ids, do_sample=True, temperature=5.0, num_return_sequences=3, max_new_tokens=5)
    assert drawn.shape[0] == 3
    assert len({tuple(row.tolist()) for row in drawn}) > 1


def test_text_and_one_and_many_pictures_are_answered(model: Any, picture: PILImage.Image):
    for prompt in ("go to the ball", [picture, "turn left"], [picture, "and", picture, "stop"], picture):
        assert isinstance(model.generate_content(prompt, **GREEDY), str)


def test_pictures_stand_where_they_were_put(model: Any, picture: PILImage.Image):
    text, shown = extract_media(["left", picture, "right", picture], 4)
    assert text == "left<image>\nright<image>\n"
    assert len(shown) == 2
    ids, pixels, _ = encode_prompt(model, ["left", picture, "right", picture])
    assert int((ids == IMAGE_TOKEN_INDEX).sum()) == 2
    assert pixels is not None
    assert pixels.shape == (2, 3, 32, 32)
    assert pixels.dtype == torch.uint8


def test_a_file_is_a_picture_and_a_list_is_a_clip(model: Any, picture: PILImage.Image, tmp_path: Path):
    picture.save(tmp_path / "hall.png")
    assert model.generate_content([llava.Image(tmp_path / "hall.png"), "stop"], **GREEDY) == model.generate_content(
        [picture, "stop"], **GREEDY
    )
    text, shown = extract_media([llava.Video([picture] * 9), "stop"], 4)
    assert text == "<image>\n" * 4 + "stop"
    assert len(shown) == 4


def test_a_folder_of_frames_is_a_clip(picture: PILImage.Image, tmp_path: Path):
    for index in range(6):
        picture.save(tmp_path / f"frame_{index}.png")
    _, shown = extract_media([llava.Video(tmp_path), "stop"], 4)
    assert len(shown) == 4


def test_a_prompt_of_something_else_is_refused(model: Any):
    with pytest.raises(ValueError, match=r"holds a int, expected str, a PIL picture, llava.Image or llava.Video"):
        model.generate_content(["go", 3])
    with pytest.raises(ValueError, match=r"1 <image> of its own"):
        model.generate_content("<image>\ngo")


def test_a_model_without_tokenizer_or_template_says_so(picture: PILImage.Image):
    with pytest.raises(ValueError, match="has no tokenizer"):
        tiny_model().generate_content("go")


def test_a_missing_file_is_noticed_at_once(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no image at"):
        llava.Image(tmp_path / "nothing.jpg")


def test_generation_leaves_training_undisturbed():
    model = tiny_model().train()
    model.generate(torch.tensor([[1, -200, 5]]), pictures(1), do_sample=False, max_new_tokens=2)
    assert model.training
    ids = torch.tensor([[1, 5, 6, 7]])
    model(ids, labels=ids).loss.backward()


def test_a_dynamic_model_cuts_a_picture_alone_into_tiles(model: Any):
    wide = PILImage.new("RGB", (64, 32))
    model.config.image_aspect_ratio, model.config.max_tiles = "dynamic", 2
    try:
        ids, pixels, _ = encode_prompt(model, [wide, "stop"])
        assert pixels is not None
        assert len(pixels) == int((ids == IMAGE_TOKEN_INDEX).sum()) == 3
        _, several, _ = encode_prompt(model, [wide, wide])
        assert several is not None
        assert len(several) == 2
        assert isinstance(model.generate_content([wide, "stop"], **GREEDY), str)
    finally:
        model.config.image_aspect_ratio, model.config.max_tiles = None, None
