"""Pictures reach the model as published, within one grey level on the fast path; placeholders and stops are exact."""

import io
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

from llava import media
from llava.batch import VisualSpec
from llava.constants import IGNORE_INDEX
from llava.mm_utils import (
    KeywordsStoppingCriteria,
    expand_image_tokens,
    extract_media,
    extract_video_frames,
    get_model_name_from_path,
    load_image,
    multiply_placeholders,
    opencv_extract_frames,
    process_images,
    resize_bicubic,
    to_uint8_tensor,
    tokenizer_image_token,
    visual_tokens_per_image,
    vlnce_frame_sampling,
)
from llava.utils.cutting import cut_into_tiles

GOLDEN_MODES = [
    ("A_navila", "checkpoint/vision_tower", "pixel_values_resize", "resize"),
    ("A_navila", "checkpoint/vision_tower", "pixel_values_pad", "pad"),
    ("A_navila", "checkpoint/vision_tower", "pixel_values_none", None),
    ("C_llava15", "clip-tiny-patch14-56", "pixel_values_pad", "pad"),
    ("C_llava15", "clip-tiny-patch14-56", "pixel_values_default_centercrop", None),
]


def mark(picture):
    """The golden pictures carry their index in 8 vertical bars of their lower half; -1 is black."""
    pixels = np.asarray(picture)
    if not pixels.any():
        return -1
    height, width = pixels.shape[:2]
    bars = pixels[height // 2 :].mean(axis=(0, 2))
    return sum(2**bit for bit in range(8) if bars[bit * width // 8 : (bit + 1) * width // 8].mean() > 127)


@pytest.fixture(scope="module")
def llama_3(golden):
    return AutoTokenizer.from_pretrained(golden / "A_navila/checkpoint/llm")


def golden_pixels(golden, source, folder, key):
    processor = AutoImageProcessor.from_pretrained(golden / source / folder)
    expected = torch.from_numpy(np.load(golden / source / "arrays/preprocess.npz")[key])
    paths = [golden / source / "images" / f"img{i}.png" for i in range(len(expected))]
    return processor, [load_image(path) for path in paths], expected


@pytest.mark.parametrize(("source", "folder", "key", "mode"), GOLDEN_MODES)
def test_golden_pixels_through_the_processor(golden, source, folder, key, mode):
    """Tolerance 1e-6 with "resize" (measured 6e-8), one grey level where the processor itself resizes (measured 1)."""
    processor, pictures, expected = golden_pixels(golden, source, folder, key)
    pixels = process_images(pictures, processor, SimpleNamespace(image_aspect_ratio=mode))
    grey = 1 / 255 / min(processor.image_std)
    assert (pixels - expected).abs().max() <= (1e-6 if mode == "resize" else 1.01 * grey)


@pytest.mark.parametrize(("source", "folder", "key", "mode"), GOLDEN_MODES)
def test_golden_pixels_on_the_fast_path_are_within_one_grey_level(golden, source, folder, key, mode):
    processor, pictures, expected = golden_pixels(golden, source, folder, key)
    crops = mode is None and source == "C_llava15"
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    spec = VisualSpec(
        image_size=expected.shape[-1],
        tokens_per_image=1,
        image_mean=tuple(processor.image_mean),
        image_std=tuple(processor.image_std),
        aspect_mode="crop" if crops else mode or "resize",
    )
    ours = torch.stack([to_uint8_tensor(picture, spec) for picture in pictures])
    theirs = (expected * std[:, None, None] + mean[:, None, None]) * 255
    assert ours.dtype == torch.uint8
    assert (ours - theirs).abs().max() <= 1.01


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(8, 150), st.integers(8, 150), st.integers(8, 96))
def test_fast_resize_of_noise_is_within_one_grey_level_of_pil_two_where_enlarged(seed, height, width, size):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = np.asarray(resize_bicubic(Image.fromarray(pixels), size, size)).astype(int)
    ours = to_uint8_tensor(pixels, VisualSpec(image_size=size, tokens_per_image=1)).permute(1, 2, 0).numpy()
    difference = np.abs(ours - expected)
    assert difference.max() <= (1 if size <= min(height, width) else 2)
    assert (difference > 1).mean() < 1e-2


def test_every_kind_of_picture_gives_the_same_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    spec = VisualSpec(image_size=8, tokens_per_image=1, aspect_mode="pad")
    read_only = pixels.copy()
    read_only.setflags(write=False)
    kinds = [pixels, read_only, Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1)]
    first, *others = [to_uint8_tensor(kind, spec) for kind in kinds]
    assert all(torch.equal(first, other) for other in others)


def test_float_pixels_are_refused_on_the_uint8_path():
    with pytest.raises(ValueError, match=r"torch.float32 of shape"):
        to_uint8_tensor(torch.zeros(3, 4, 4), VisualSpec(image_size=8, tokens_per_image=1))


def test_processing_reads_the_config_only(golden):
    processor = AutoImageProcessor.from_pretrained(golden / "A_navila/checkpoint/vision_tower")
    config = SimpleNamespace(image_aspect_ratio="pad")
    process_images([Image.new("RGB", (4, 6))], processor, config)
    assert vars(config) == {"image_aspect_ratio": "pad"}
    with pytest.raises(ValueError, match="no image to process"):
        process_images([], processor, config)


def test_broken_and_missing_pictures_are_named(tmp_path):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(whole, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole.getvalue()[:400])
    (tmp_path / "text.png").write_text("no picture")
    for name in ("cut.jpg", "text.png"):
        with pytest.raises(ValueError, match=f"{name} cannot be decoded"):
            load_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"gone.png does not exist"):
        load_image(tmp_path / "gone.png")
    assert load_image(whole.getvalue()).size == load_image(io.BytesIO(whole.getvalue())).size == (40, 40)
    assert load_image(Image.new("RGBA", (2, 2))).mode == "RGB"


@pytest.mark.parametrize("name", ["l3", "sp"])
def test_golden_tokenisation_with_placeholders(golden, llama_3, name):
    """The one exception, a chunk that begins with a space for the sentencepiece tokenizer, is in DIFFERENCES.md."""
    sentencepiece = AutoTokenizer.from_pretrained(golden / "A_navila/tokenizer_sp_llama", legacy=False)
    cases = json.loads((golden / "A_navila/text/tokenizer_image_token.json").read_text())["cases"][name]
    for case in cases:
        if (name, case["prompt"]) == ("sp", " <image> \n"):
            continue
        tokenizer = llama_3 if name == "l3" else sentencepiece
        assert tokenizer_image_token(case["prompt"], tokenizer) == case["ids"], case["prompt"]


def test_tokenisation_returns_tensors_when_asked(llama_3):
    ids = tokenizer_image_token("a<image>", llama_3, image_token_index=7, return_tensors="pt")
    assert ids.dtype == torch.int64 and ids[-1] == 7
    with pytest.raises(ValueError, match="'np', expected 'pt'"):
        tokenizer_image_token("a", llama_3, return_tensors="np")


def test_placeholders_expand_to_their_counts_and_are_never_trained():
    ids, labels = expand_image_tokens(torch.tensor([1, -200, 2, 9]), torch.tensor([1, 5, 2, 9]), [3, 2], 9)
    assert ids.tolist() == [1, 9, 9, 9, 2, 9, 9]
    assert labels.tolist() == [1, *[IGNORE_INDEX] * 3, 2, *[IGNORE_INDEX] * 2]


def test_a_wrong_number_of_pictures_is_counted_out():
    with pytest.raises(ValueError, match="2 placeholders, 1 pictures are given"):
        expand_image_tokens(torch.tensor([9, 9]), torch.tensor([9, 9]), [3], 9)


@pytest.mark.parametrize(("geometry", "expected"), [((384, 14, 2), 196), ((384, 14, 1), 729), ((448, 14, 3), 121)])
def test_visual_tokens_of_published_models(geometry, expected):
    assert visual_tokens_per_image(*geometry) == expected


def test_golden_frames_of_real_videos(golden):
    """Where the original returns black frames of a random number, ours returns the frames that exist."""
    recorded = json.loads((golden / "A_navila/text/frame_sampling.json").read_text())["real_mp4"]
    options = {(8, 0): "frames=8,max_fps=0", (8, 2): "frames=8,max_fps=2", (6, 0): "frames=6,max_fps=0"}
    for name in ("n1_fps10.mp4", "n3_fps10.mp4", "n16_fps10.mp4", "n17_fps4.mp4", "n23_fps10.mp4"):
        for (frames, max_fps), key in options.items():
            expected = recorded[name][f"opencv_extract_frames({key})"]
            pictures, count = opencv_extract_frames(golden / "A_navila/videos" / name, frames, max_fps)
            assert count == len(pictures)
            if expected["n_loaded"]:
                assert [mark(picture) for picture in pictures] == expected["idx"], (name, key)
            else:
                assert 1 <= count <= 2 and mark(pictures[0]) in (0, -1)


def test_video_bytes_and_overridden_figures(golden):
    video = io.BytesIO((golden / "A_navila/videos/n40_fps10.mp4").read_bytes())
    pictures, count = opencv_extract_frames(video, 4, frame_count=20)
    assert count == 4 and [mark(picture) for picture in pictures] == [0, 6, 12, 19]


def test_navigation_frames_begin_with_black_ones_and_leave_the_list_alone(golden):
    frames = [golden / f"A_navila/images/frame{i}.png" for i in range(3)]
    pictures = vlnce_frame_sampling(frames, 5)
    assert [picture.size for picture in pictures] == [(448, 448)] * 2 + [load_image(frames[0]).size] * 3
    assert len(frames) == 3
    assert [picture.getextrema() for picture in vlnce_frame_sampling([], 2)] == [((0, 0),) * 3] * 2


def test_golden_media_of_a_prompt(golden):
    image = media.Image(str(golden / "A_navila/images/img0.png"))
    video = media.Video(str(golden / "A_navila/videos/n12_fps10.mp4"))
    prompts = {
        "text": "hello",
        "image_then_text": [image, "What is it?"],
        "text_then_image": ["What is it?", image],
        "video_then_text": [video, "Describe."],
        "image_video": ["a", image, "b", video, "c"],
    }
    for case in json.loads((golden / "A_navila/text/extract_media.json").read_text()):
        text, pictures = extract_media(prompts[case["case"]], 8, mm_use_im_start_end=case["mm_use_im_start_end"])
        assert (text, len(pictures)) == (case["text"], case["n_images"])
        if case["video_marks"]:
            assert [mark(picture) for picture in pictures] == case["video_marks"]
    assert [mark(picture) for picture in extract_video_frames(video.path, 2)] == [0, 11]


def test_media_of_another_kind_and_stray_placeholders_are_refused():
    with pytest.raises(ValueError, match="a prompt holds a int"):
        extract_media(["what", 3])
    with pytest.raises(ValueError, match="1 <image> of its own"):
        extract_media("what is <image>?")
    clip = media.Video([Image.new("RGB", (2, 2))] * 3)
    assert len(extract_media(clip, 2)[1]) == 2


def test_every_row_of_a_batch_stops_by_itself(llama_3):
    prompt = torch.tensor([llama_3("stop now").input_ids] * 2)
    criteria = KeywordsStoppingCriteria(["<|eot_id|>", "stop"], llama_3, prompt)
    end = llama_3.convert_tokens_to_ids("<|eot_id|>")
    word = llama_3("a", add_special_tokens=False).input_ids
    grown = torch.cat([prompt, torch.tensor([word, [end]])], dim=1)
    assert criteria(prompt).tolist() == [False, False]
    assert criteria(grown).tolist() == [False, True]


def test_a_keyword_cut_into_other_tokens_still_stops(llama_3):
    criteria = KeywordsStoppingCriteria(["###"], llama_3, None)
    hashes = llama_3("a#", add_special_tokens=False).input_ids + llama_3("##b", add_special_tokens=False).input_ids
    assert criteria(torch.tensor([hashes])).tolist() == [True]
    assert criteria(torch.tensor([hashes[:2]])).tolist() == [False]


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/navila", "navila"), ("runs/navila/checkpoint-20/", "navila_checkpoint-20"), ("x/model", "x_model"), ("", "")],
)
def test_model_names(path, name):
    assert get_model_name_from_path(path) == name


def test_tiles_come_row_by_row_and_the_whole_picture_last():
    spec = VisualSpec(image_size=4, tokens_per_image=1, aspect_mode="dynamic", max_tiles=4)
    quarters = torch.arange(4).reshape(2, 2).repeat_interleave(4, 0).repeat_interleave(4, 1) * 60
    tiles = cut_into_tiles(quarters.to(torch.uint8).expand(3, 8, 8), spec)
    assert tiles.shape == (5, 3, 4, 4)
    assert [int(tile.float().median()) for tile in tiles[:4]] == [0, 60, 120, 180]
    assert torch.equal(tiles[4], to_uint8_tensor(quarters.to(torch.uint8).expand(3, 8, 8), spec))
    alone = cut_into_tiles(torch.zeros(3, 9, 9, dtype=torch.uint8), replace(spec, max_tiles=1))
    assert alone.shape == (1, 3, 4, 4)


def test_placeholders_of_tiles_keep_their_line_break():
    assert multiply_placeholders("Look: <image>", 2) == "Look: <image>\n<image>\n"
