"""Single decisions, EnvDrop, ScanQA and clips: text, pictures, and what happens to broken records."""

import json
import logging

import cv2
import numpy as np
import pytest
from PIL import Image

from llava.constants import IGNORE_INDEX
from llava.data.dataset_impl import EnvDropDataset, ScanQADataset, VideoDataset, VLNCEDataset
from llava.data.utils import BrokenSampleError
from tests.unit.data.toys import FORWARD, SIZE, STOP, grey, record


def vlnce(folder, context):
    return VLNCEDataset("r2r", context, data_path=folder / "annotations.json", media_dir=folder / "train")


def shades(sample) -> list[int]:
    return sample["images"].float().mean((1, 2, 3)).round().int().tolist()


def test_history_is_sampled_and_short_ones_begin_with_black_pictures(navigation_folder, make_context):
    (navigation_folder / "annotations.json").write_text(json.dumps([record("7", n, n, FORWARD) for n in (2, 6)]))
    data = vlnce(navigation_folder, make_context(num_video_frames=4))
    assert shades(data[0]) == [0, 0, 0, 10]
    assert shades(data[1]) == [0, 10, 30, 50]


def test_only_the_answer_and_its_end_are_trained(navigation_folder, make_context, tokenizer):
    data = vlnce(navigation_folder, make_context())
    sample = data[0]
    assert tokenizer.decode(sample["input_ids"][sample["labels"] != IGNORE_INDEX]) == STOP + "<|end_of_text|>"
    assert (sample["input_ids"] == data.context.image_token_id).sum() == 8 * 4
    assert sample["frame_ids"].tolist() == sorted(sample["frame_ids"].tolist())
    assert sample["frame_ids"][[0, -1]].tolist() == [-1, 7]
    assert sample["sample_id"] == "r2r/0"


def test_an_instruction_is_normalised_or_left_raw(navigation_folder, make_context, tokenizer):
    (navigation_folder / "annotations.json").write_text(json.dumps([record("7", 1, 1, STOP, task="GO to the\nball .")]))
    for style, expected in (("raw", "GO to the\nball ."), ("normalised", "Go to the ball.")):
        data = vlnce(navigation_folder, make_context(instruction=style))
        assert f'task is: "{expected}"' in tokenizer.decode(data[0]["input_ids"])
        assert data.prompt_format.to_config()["instruction"] == style


def test_length_estimates_are_near_the_truth(navigation_folder, make_context):
    data = vlnce(navigation_folder, make_context())
    true = [len(data[i]["input_ids"]) for i in range(len(data))]
    assert all(abs(a - b) <= 0.1 * b for a, b in zip(data.lengths, true, strict=True))
    assert data.modality_lengths == data.lengths


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": []}, "'frames' is missing or empty"),
        ({"frames": ["7/frame_0.png", "7/frame_9.png"]}, "frame_9"),
        ({"a": None}, "'a' is None"),
        ({"q": 3}, "'q' is 3"),
    ],
)
def test_a_broken_record_is_named_and_never_becomes_black_frames(navigation_folder, make_context, change, message):
    (navigation_folder / "annotations.json").write_text(json.dumps([{**record("7", 1, 1, STOP), **change}]))
    with pytest.raises(BrokenSampleError, match=rf"r2r\[0\] \(7-1\): .*{message}"):
        vlnce(navigation_folder, make_context())[0]


def test_broken_samples_are_skipped_counted_and_reported(navigation_folder, make_context, caplog):
    records = [{**record("7", 1, 1, STOP), "frames": []}, record("7", 6, 6, FORWARD)]
    (navigation_folder / "annotations.json").write_text(json.dumps(records))
    data = vlnce(navigation_folder, make_context(on_error="skip"))
    with caplog.at_level(logging.WARNING):
        first, again = data[0], data[0]
    assert first["sample_id"] == again["sample_id"] == "r2r/1"
    assert list(data.broken) == [0]
    assert caplog.text.count("broken sample number 1 of 'r2r'") == 1
    assert "1 broken so far" in data.report()


def test_too_many_broken_samples_in_a_row_stop_the_run_and_are_listed(navigation_folder, make_context):
    records = [{**record("7", n, n, STOP), "frames": []} for n in range(6)]
    (navigation_folder / "annotations.json").write_text(json.dumps(records))
    data = vlnce(navigation_folder, make_context(on_error="skip", max_retries=2))
    with pytest.raises(BrokenSampleError, match=r"3 samples in a row.*\n.*\(7-4\).*\n.*\(7-5\).*\n.*\(7-0\)"):
        data[4]


def test_a_fault_of_the_program_is_not_taken_for_a_broken_sample(navigation_folder, make_context, monkeypatch):
    data = vlnce(navigation_folder, make_context(on_error="skip"))
    monkeypatch.setattr(data, "build", lambda index: [][1])
    with pytest.raises(IndexError):
        data[0]


def test_a_missing_folder_names_key_path_and_next_step(navigation_folder, make_context):
    with pytest.raises(
        FileNotFoundError, match=r"'r2r': media_dir is .*trian.*nearest folder that does is .*set data_root"
    ):
        VLNCEDataset(
            "r2r",
            make_context(),
            data_path=navigation_folder / "annotations.json",
            media_dir=navigation_folder / "trian",
        )


def test_the_camera_is_read_beside_the_pictures(navigation_folder, make_context):
    assert vlnce(navigation_folder, make_context()).camera_profile is None
    (navigation_folder / "camera.json").write_text('{"height_m": 0.8, "hfov_deg": 79.0}')
    assert vlnce(navigation_folder, make_context()).camera_profile.height_m == 0.8


@pytest.fixture
def clip_folder(tmp_path):
    """A clip of 12 frames as mp4, and one of 3 as a folder."""
    writer = cv2.VideoWriter(str(tmp_path / "long.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 64))
    for i in range(12):
        writer.write(np.full((64, 64, 3), 20 * i, dtype=np.uint8))
    writer.release()
    (tmp_path / "short").mkdir()
    for i in range(3):
        Image.fromarray(grey(40 * i + 40)).save(tmp_path / "short" / f"frame_{i}.png")
    return tmp_path


def clips(kind, folder, context, records):
    (folder / "a.json").write_text(json.dumps(records))
    return kind("clips", context, data_path=folder / "a.json", media_dir=folder)


def test_a_clip_gives_evenly_spread_frames_and_a_short_one_all_it_has(clip_folder, make_context, tokenizer):
    turns = [{"from": "human", "value": "What is it?\n<video>"}, {"from": "gpt", "value": 7}]
    records = [{"video": "long.mp4", "conversations": turns}, {"video": "short", "conversations": turns}]
    data = clips(VideoDataset, clip_folder, make_context(num_video_frames=4), records)
    assert np.allclose(shades(data[0]), [0, 60, 140, 220], atol=6)
    assert shades(data[1]) == [40, 80, 120]
    assert data[0]["images"].shape == (4, 3, SIZE, SIZE)
    text = tokenizer.decode(data[1]["input_ids"])
    assert ("<image>" * 4 + "\n") * 3 + "What is it?<|eot_id|>" in text
    assert tokenizer.decode(data[1]["input_ids"][data[1]["labels"] != IGNORE_INDEX]) == "7<|end_of_text|>"


def test_captions_are_asked_for_in_detail(clip_folder, make_context, tokenizer):
    captions = [{"idx": "0", "content": "A wall."}, {"idx": "-1", "content": "A walk."}]
    data = clips(VideoDataset, clip_folder, make_context(), [{"video_id": "long", "captions": captions}])
    assert "Elaborate on the visual and narrative elements of the video in detail." in tokenizer.decode(
        data[0]["input_ids"]
    )


def test_envdrop_describes_the_walk_and_fills_up_with_black(clip_folder, make_context, tokenizer):
    data = clips(
        EnvDropDataset, clip_folder, make_context(num_video_frames=4), [{"video": "short", "instruction": "Go."}]
    )
    assert shades(data[0]) == [0, 40, 80, 120]
    assert tokenizer.decode(data[0]["input_ids"][data[0]["labels"] != IGNORE_INDEX]) == "Go.<|end_of_text|>"


def test_scanqa_draws_one_of_several_answers_by_the_seed(clip_folder, make_context, tokenizer):
    records = [{"video_id": "long", "q": "Which colour?", "a": list("abcdefgh")}] * 8

    def answers(seed):
        data = clips(ScanQADataset, clip_folder, make_context(seed=seed, num_video_frames=1), records)
        return [tokenizer.decode(s["input_ids"][s["labels"] != IGNORE_INDEX])[0] for s in (data[i] for i in range(8))]

    assert answers(0) == answers(0)
    assert len(set(answers(0))) > 2
    assert answers(0) != answers(1)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"q": "What?", "a": "It."}, "no 'video', 'video_path' or 'video_id'"),
        ({"video": "absent.mp4", "q": "What?", "a": "It."}, r"absent\.mp4 does not exist"),
        ({"video": "long.mp4", "q": "What?"}, "no 'conversations', 'captions' or 'q' and 'a'"),
        ({"video": "long.mp4", "conversations": []}, "'conversations' is"),
        ({"video": "long.mp4", "captions": [{"idx": "3", "content": "x"}]}, "has idx '3'"),
        ({"video": "gap", "q": "What?", "a": "It."}, r"gap has gaps: frames 0, 2 exist, 1 are missing"),
        ({"video": "broken.mp4", "q": "What?", "a": "It."}, r"broken\.mp4"),
    ],
)
def test_broken_clip_records_are_named(clip_folder, make_context, entry, message):
    (clip_folder / "broken.mp4").write_bytes(b"not a video")
    (clip_folder / "gap").mkdir()
    for i in (0, 2):
        Image.fromarray(grey(i)).save(clip_folder / "gap" / f"frame_{i}.png")
    with pytest.raises(BrokenSampleError, match=message):
        clips(VideoDataset, clip_folder, make_context(), [entry])[0]
