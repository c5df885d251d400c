"""What each record layout tells about time: frames, times, executed motions, and where answers end."""

import json
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from llava.constants import IGNORE_INDEX
from llava.data.clips import ClipOptions
from llava.data.collate import DataCollator
from llava.data.dataset_impl import (
    ClipsDataset,
    EnvDropDataset,
    LLaVADataset,
    ScanQADataset,
    StreamingDataset,
    VideoDataset,
    VLNCEDataset,
)
from llava.data.datasets_mixture import load_registry
from llava.data.utils import BrokenSampleError
from llava.navigation.worlds.base import CameraProfile
from llava.navigation.worlds.dataset_writer import write_dataset
from llava.navigation.worlds.demonstrations import demonstrate
from tests.unit.data.toys import FORWARD, LEFT, STOP, episode_records, grey, record

SEEN = ClipOptions()
WITH_TARGETS = ClipOptions(answer_targets=True)


def dataset(kind, folder, context, **paths):
    return kind("s", context, data_path=folder / "annotations.json", media_dir=folder / "train", **paths)


def write(folder, *records):
    (folder / "annotations.json").write_text(json.dumps(records))


def rows(motions) -> list:
    """Motions as lists, None where unknown."""
    return [None if any(np.isnan(row)) else row for row in motions.tolist()]


# whole episodes


def test_an_episode_is_one_clip_of_its_decisions(navigation_folder, make_context, tokenizer):
    sample = dataset(StreamingDataset, navigation_folder, make_context(clips=SEEN))[0]
    clip = sample["clip"]
    assert clip["frames"].tolist() == [0, 1, 2]
    assert clip["times"].tolist() == [0, 2, 5]
    assert rows(clip["motions"]) == [[0, 30, 2], [0.75, 0, 3], None]
    assert "target_frames" not in clip
    assert [said_until(sample, tokenizer, end) for end in clip["answer_end_positions"]] == ["←←", "↑↑↑", "STOP"]


def said_until(sample, tokenizer, end) -> str:
    """The answer that ends at a position, which must hold the end of turn."""
    ids, text = sample["input_ids"][: int(end) + 1], ""
    assert tokenizer.decode(ids[-1:]) == "<|eot_id|>"
    for token in reversed(ids[:-1].tolist()):
        piece = tokenizer.decode([token])
        if piece in ("<image>", "<|eot_id|>"):
            return text
        text = piece + text
    return text


@pytest.mark.parametrize("options", [{"answers_visible": True}, {"grounding_questions": 2.0}, {"names_place": True}])
def test_answers_are_found_whatever_stands_beside_them(navigation_folder, make_context, tokenizer, options):
    table = {"red ball": [5, 2], "blue box": None, "goal": [1, 4]}
    (navigation_folder / "g.json").write_text(json.dumps({name: [table] * 3 for name in "78"}))
    context = make_context(clips=SEEN, **options)
    sample = dataset(StreamingDataset, navigation_folder, context, grounding_path=navigation_folder / "g.json")[0]
    ends = sample["clip"]["answer_end_positions"]
    place = "14" if "names_place" in options else ""
    assert [said_until(sample, tokenizer, end) for end in ends] == [place + arrows for arrows in ("←←", "↑↑↑", "STOP")]
    last_slot = [(sample["input_ids"] == context.image_token_id) & (sample["frame_ids"] == t) for t in range(3)]
    assert all(int(end) > int(slots.nonzero()[-1]) for end, slots in zip(ends, last_slot, strict=True))
    assert all(int(end) < int(slots.nonzero()[0]) for end, slots in zip(ends, last_slot[1:], strict=False))


def test_questions_alone_have_no_answers_and_no_outcomes(navigation_folder, make_context):
    (navigation_folder / "g.json").write_text(json.dumps({name: [{"red ball": [5, 2]}] * 3 for name in "78"}))
    context = make_context(clips=WITH_TARGETS, learn_decisions=False, grounding_questions=1.0, max_decisions=2)
    data = dataset(StreamingDataset, navigation_folder, context, grounding_path=navigation_folder / "g.json")
    assert [("clip" in data[i], len(data[i]["images"])) for i in range(2)] == [(False, 1), (True, 2)]
    assert data[1]["clip"]["answer_end_positions"].tolist() == [-1, -1]
    assert "target_frames" not in data[1]["clip"]


def test_the_outcome_of_a_windows_last_answer_is_read_where_it_is_asked_for(navigation_folder, make_context):
    data = dataset(StreamingDataset, navigation_folder, make_context(clips=WITH_TARGETS, max_decisions=2))
    first, last = data[0]["clip"], data[1]["clip"]
    assert first["frames"].tolist() == [0, 1]
    assert data[0]["images"][:, 0, 0, 0].tolist() == [0]
    assert first["target_frames"][:, 0, 0, 0].tolist() == [20]
    assert first["times"].tolist() == [0, 2]
    assert rows(first["motions"]) == [[0, 30, 2], None]
    assert (first["answer_end_positions"] >= 0).tolist() == [True, False]
    assert last["frames"].tolist() == [0, 1]
    assert "target_frames" not in last  # nothing follows the stop
    plain = dataset(StreamingDataset, navigation_folder, make_context(clips=SEEN, max_decisions=2))
    assert "clip" not in plain[0]  # one frame has no next one


def test_cutting_episodes_into_windows_changes_no_prediction(navigation_folder, make_context):
    def predictions(limit):
        data = dataset(StreamingDataset, navigation_folder, make_context(clips=WITH_TARGETS, max_decisions=limit))
        found = []
        for index in range(len(data)):
            episode = data.records[index].episode
            clip = data[index].get("clip")
            for t, (time, until) in enumerate(pairwise(clip["times"].tolist() if clip else [])):
                if clip["answer_end_positions"][t] >= 0:
                    found.append((episode, time, until, tuple(clip["motions"][t].tolist())))
        return found

    assert predictions(1) == predictions(2) == predictions(None)
    assert len(predictions(None)) == 4


# single decisions


def test_a_decision_is_a_clip_of_the_chosen_frames(navigation_folder, make_context, tokenizer):
    write(navigation_folder, *episode_records())
    data = dataset(VLNCEDataset, navigation_folder, make_context(clips=SEEN, num_video_frames=4))
    clip = data[1]["clip"]  # after 3 frames: one black picture first
    assert clip["frames"].tolist() == [-1, 1, 2, 3]
    assert clip["times"][1:].tolist() == [0, 1, 2]
    assert rows(clip["motions"]) == [None, [0, 15, 1], [0, 15, 1], None]
    assert clip["answer_end_positions"][:3].tolist() == [-1, -1, -1]
    ids, end = data[1]["input_ids"], int(clip["answer_end_positions"][3])
    assert tokenizer.decode(ids[: end + 1]).endswith(FORWARD + "<|end_of_text|>")
    clip = data[2]["clip"]  # after 6 frames: 0, 1, 3 and 5 are shown
    assert clip["times"].tolist() == [0, 1, 3, 5]
    assert rows(clip["motions"]) == [[0, 15, 1], [0.25, 15, 2], [0.5, 0, 2], None]
    assert "clip" not in data[0]  # one frame only


def test_the_outcome_of_a_decision_stands_behind_the_chosen_frames(navigation_folder, make_context):
    write(navigation_folder, *episode_records())
    data = dataset(VLNCEDataset, navigation_folder, make_context(clips=WITH_TARGETS, num_video_frames=4))
    clip = data[1]["clip"]
    assert clip["frames"].tolist() == [-1, 1, 2, 3, 4]
    assert clip["target_frames"][:, 0, 0, 0].tolist() == [50]
    assert clip["times"][3:].tolist() == [2, 5]
    assert rows(clip["motions"])[3:] == [[0.75, 0, 3], None]
    assert (clip["answer_end_positions"] >= 0).tolist() == [False, False, False, True, False]
    first = data[0]["clip"]  # one frame seen, one to come
    assert first["frames"].tolist() == [-1, -1, -1, 3, 4]
    assert first["target_frames"][:, 0, 0, 0].tolist() == [20]
    assert "target_frames" not in data[2]["clip"]  # the stop


@pytest.mark.parametrize(
    "records",
    [
        [record("7", 2, 2, FORWARD)],  # the last record of its episode
        [record("7", 2, 2, STOP), record("7", 3, 3, FORWARD)],  # a stop that the robot did not do
        [record("7", 2, 2, FORWARD), record("7", 4, 4, STOP)],  # 2 frames more, 3 actions answered
        [record("7", 2, 2, FORWARD), record("7", 5, 5, STOP), record("7", 2, 2, LEFT)],  # the records contradict
        [record("7", 2, 2, "I am lost."), record("7", 3, 3, STOP)],
    ],
)
def test_an_outcome_that_is_not_certain_is_not_read(navigation_folder, make_context, records):
    write(navigation_folder, *records)
    clip = dataset(VLNCEDataset, navigation_folder, make_context(clips=WITH_TARGETS))[0]["clip"]
    assert "target_frames" not in clip
    assert clip["frames"].tolist() == [-1] * 6 + [6, 7]
    assert rows(clip["motions"])[-2:] == [None, None]


def test_questions_beside_the_answer_do_not_move_its_end(navigation_folder, make_context, tokenizer):
    (navigation_folder / "g.json").write_text(json.dumps({name: [{"red ball": [5, 2]}] * 3 for name in "78"}))
    context = make_context(clips=SEEN, grounding_questions=2.0)
    sample = dataset(VLNCEDataset, navigation_folder, context, grounding_path=navigation_folder / "g.json")[0]
    plain = dataset(VLNCEDataset, navigation_folder, make_context(clips=SEEN))[0]
    assert len(sample["input_ids"]) > len(plain["input_ids"])
    assert torch.equal(sample["clip"]["answer_end_positions"], plain["clip"]["answer_end_positions"])
    assert int(plain["clip"]["answer_end_positions"][-1]) == len(plain["input_ids"]) - 1


# executed motions


def test_a_file_of_executed_actions_wins_over_answers_that_were_not_executed(navigation_folder, make_context):
    write(navigation_folder, *episode_records())  # left 30, forward 75, stop; the robot turned right and then left
    (navigation_folder / "actions.json").write_text(json.dumps({"7": "33222"}))
    told = {"actions_path": navigation_folder / "actions.json"}
    clip = dataset(StreamingDataset, navigation_folder, make_context(clips=SEEN), **told)[0]["clip"]
    assert rows(clip["motions"]) == [[0, -30, 2], [0, 45, 3], None]
    data = dataset(VLNCEDataset, navigation_folder, make_context(clips=WITH_TARGETS, num_video_frames=2), **told)
    assert rows(data[1]["clip"]["motions"]) == [[0, -30, 2], [0, 45, 3], None]


def test_a_file_tells_motions_where_records_do_not_tile(navigation_folder, make_context):
    write(navigation_folder, record("7", 1, 1, FORWARD), record("7", 2, 2, FORWARD), record("7", 6, 6, STOP))
    data = dataset(StreamingDataset, navigation_folder, make_context(clips=SEEN))
    assert rows(data[0]["clip"]["motions"]) == [None, None, None]
    (navigation_folder / "actions.json").write_text(json.dumps({"7": [3, 1, 1, 2, 1]}))
    told = {"actions_path": navigation_folder / "actions.json"}
    data = dataset(StreamingDataset, navigation_folder, make_context(clips=SEEN), **told)
    assert rows(data[0]["clip"]["motions"]) == [[0, -15, 1], [0.75, 15, 4], None]


def test_the_turn_angle_is_that_of_the_data_set(navigation_folder, make_context):
    write(navigation_folder, record("7", 1, 1, LEFT), record("7", 2, 2, FORWARD), record("7", 5, 5, STOP))
    coarse = dataset(StreamingDataset, navigation_folder, make_context(clips=SEEN, turn_degrees=30))[0]
    assert rows(coarse["clip"]["motions"]) == [[0, 30, 1], [0.75, 0, 3], None]
    fine = dataset(StreamingDataset, navigation_folder, make_context(clips=SEEN))[0]
    assert rows(fine["clip"]["motions"]) == [None, [0.75, 0, 3], None]


def test_pictures_taken_by_the_clock_tell_no_motions(navigation_folder, make_context):
    write(navigation_folder, *episode_records())
    context = make_context(clips=WITH_TARGETS, frame_per_action=False)
    assert rows(dataset(StreamingDataset, navigation_folder, context)[0]["clip"]["motions"]) == [None] * 3
    assert "target_frames" not in dataset(VLNCEDataset, navigation_folder, context)[1]["clip"]


@pytest.mark.parametrize("kind", [StreamingDataset, VLNCEDataset])
def test_a_named_file_must_be_there_when_clips_are_on_and_only_then(navigation_folder, make_context, kind):
    absent = {"actions_path": navigation_folder / "train" / "motions.json.gz"}
    assert "clip" not in dataset(kind, navigation_folder, make_context(), **absent)[0]
    with pytest.raises(FileNotFoundError, match=r"actions_path is .*motions\.json\.gz.*write the data again"):
        dataset(kind, navigation_folder, make_context(clips=SEEN), **absent)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, expected an object"),
        ({"7": "1142"}, "episode 7: an executed action is '4'"),
        ({"7": None}, "episode 7: executed actions are None"),
    ],
)
def test_a_broken_file_of_actions_is_named(navigation_folder, make_context, content, message):
    (navigation_folder / "actions.json").write_text(json.dumps(content))
    told = {"actions_path": navigation_folder / "actions.json"}
    with pytest.raises(ValueError, match=rf"actions\.json.*{message}"):
        dataset(StreamingDataset, navigation_folder, make_context(clips=SEEN), **told)


@pytest.mark.parametrize("content", [{"8": "22111"}, {"7": "2211", "8": "22111"}])
def test_an_episode_with_too_few_actions_is_broken(navigation_folder, make_context, content):
    (navigation_folder / "actions.json").write_text(json.dumps(content))
    told = {"actions_path": navigation_folder / "actions.json"}
    data = dataset(StreamingDataset, navigation_folder, make_context(clips=SEEN), **told)
    with pytest.raises(BrokenSampleError, match=r"episode 7 has \d executed actions, expected at least 5"):
        data[0]
    assert rows(data[1]["clip"]["motions"])[0] == [0, 30, 2]


def test_the_embedded_world_tells_what_was_executed_and_not_what_was_answered(tmp_path, make_context):
    camera = CameraProfile(width=16, height=16)
    write_dataset(tmp_path, "one_room", 3, camera=camera, noise=0.5)
    entry = load_registry("default", data_root=tmp_path).entries["embedded_streaming"]
    paths = {key: path for key, path in entry.paths.items() if key != "grounding_path"}
    data = StreamingDataset("w", make_context(clips=SEEN), **paths)
    walks = demonstrate("one_room", np.arange(3), camera, noise=0.5)
    assert (walks.label_kind != walks.executed_kind).any()
    for index, window in enumerate(data.records):
        e = int(window.episode)
        at = slice(walks.decision_start[e], walks.decision_start[e + 1] - 1)
        expected = [
            [0.25 * steps * (kind == 1), 15.0 * steps * ((kind == 2) - (kind == 3)), steps]
            for kind, steps in zip(
                walks.executed_kind[at].astype(int).tolist(), walks.executed_steps[at].tolist(), strict=True
            )
        ]
        assert rows(data[index]["clip"]["motions"])[:-1] == expected


# videos


@pytest.fixture
def video_folder(tmp_path):
    """A video of 12 frames at 10 per second, and a folder of 3 pictures."""
    writer = cv2.VideoWriter(str(tmp_path / "long.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 64))
    for i in range(12):
        writer.write(np.full((64, 64, 3), 20 * i, dtype=np.uint8))
    writer.release()
    (tmp_path / "short").mkdir()
    for i in range(3):
        Image.fromarray(grey(40 * i + 40)).save(tmp_path / "short" / f"frame_{i}.png")
    return tmp_path


def videos(kind, folder, context, *records):
    (folder / "a.json").write_text(json.dumps(records))
    return kind("v", context, data_path=folder / "a.json", media_dir=folder)


SAID = {"conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A wall."}]}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [(VideoDataset, SAID), (LLaVADataset, SAID), (ScanQADataset, {"q": "What is it?", "a": "A wall."})],
)
def test_a_video_has_seconds_and_a_folder_of_pictures_has_indices(video_folder, make_context, kind, fields):
    context = make_context(clips=SEEN, num_video_frames=4)
    data = videos(kind, video_folder, context, {"video": "long.mp4", **fields}, {"video": "short", **fields})
    long, short = data[0]["clip"], data[1]["clip"]
    assert long["frames"].tolist() == [0, 1, 2, 3]
    assert long["times"].tolist() == pytest.approx([0, 0.3, 0.7, 1.1])
    assert short["times"].tolist() == [0, 1, 2]
    for clip in (long, short):
        assert clip["motions"].isnan().all()
        assert (clip["answer_end_positions"] == -1).all()


def test_black_frames_before_a_walk_are_padding(video_folder, make_context):
    context = make_context(clips=SEEN, num_video_frames=5)
    clip = videos(EnvDropDataset, video_folder, context, {"video": "short", "instruction": "Go."})[0]["clip"]
    assert clip["frames"].tolist() == [-1, -1, 2, 3, 4]
    assert clip["times"][2:].tolist() == [0, 1, 2]


def test_times_that_stand_still_are_replaced_by_the_frame_rate(video_folder, make_context, monkeypatch):
    monkeypatch.setattr("llava.video.decode.OpenCvClip.times", lambda self, indices: [0.0] * len(indices))
    monkeypatch.setattr("llava.video.decode.DecordClip.times", lambda self, indices: [0.0] * len(indices))
    context = make_context(clips=SEEN, num_video_frames=4)
    clip = videos(VideoDataset, video_folder, context, {"video": "long.mp4", **SAID})[0]["clip"]
    assert clip["times"].tolist() == pytest.approx([0, 0.3, 0.7, 1.1])


def test_text_and_still_pictures_have_no_clip(video_folder, make_context):
    image = {"image": "short/frame_0.png", **SAID}
    images = {"images": ["short/frame_0.png", "short/frame_1.png"], **SAID}
    data = videos(LLaVADataset, video_folder, make_context(clips=SEEN), SAID, image, images)
    assert not any("clip" in data[i] for i in range(3))


# videos without text


def test_a_clip_without_text_is_pictures_and_nothing_to_say(video_folder, make_context, tokenizer):
    pictures = [f"short/frame_{i}.png" for i in range(3)]
    records = {"frames": pictures}, {"frames": pictures, "times": [0, 0.5, 4]}, {"video": "long.mp4"}
    data = videos(ClipsDataset, video_folder, make_context(clips=SEEN, num_video_frames=4), *records)
    samples = [data[i] for i in range(3)]
    assert tokenizer.decode(samples[0]["input_ids"]) == "<|begin_of_text|>" + "<image>" * 12
    assert all((sample["labels"] == IGNORE_INDEX).all() for sample in samples)
    assert [len(sample["input_ids"]) for sample in samples] == data.lengths
    assert samples[0]["images"][:, 0, 0, 0].tolist() == [40, 80, 120]
    assert [sample["clip"]["times"].tolist() for sample in samples[:2]] == [[0, 1, 2], [0, 0.5, 4]]
    assert samples[2]["clip"]["times"].tolist() == pytest.approx([0, 0.3, 0.7, 1.1])
    collate = DataCollator(pad_token_id=0, max_length=99, image_token_id=data.context.image_token_id)
    assert collate(samples)["clips"]["frame_end_positions"][0].tolist() == [4, 8, 12, -1]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"frames": ["short/frame_0.png"]}, r"1 frame\(s\), expected at least 2"),
        ({"frames": "short"}, "'frames' is 'short'"),
        ({"frames": ["short/frame_0.png"] * 2, "times": [0, 1, 2]}, "'times' is .*expected 2 rising numbers"),
        ({"frames": ["short/frame_0.png"] * 2, "times": [1, 1]}, "expected 2 rising numbers"),
        ({"frames": ["short/frame_0.png"] * 2, "times": "ab"}, "expected 2 rising numbers"),
        ({"video": "long.mp4", "times": [0, 1]}, "expected 12 rising numbers"),
        ({"q": "What?"}, "no 'video'"),
    ],
)
def test_broken_clips_are_named(video_folder, make_context, entry, message):
    with pytest.raises(BrokenSampleError, match=message):
        videos(ClipsDataset, video_folder, make_context(clips=SEEN), entry)[0]


def test_clips_without_text_are_refused_where_nothing_learns_from_them(video_folder, make_context):
    with pytest.raises(ValueError, match=r"type 'clips'.*option clips is None"):
        videos(ClipsDataset, video_folder, make_context(), {"video": "long.mp4"})


# off, and all together


def test_without_the_option_samples_and_reads_are_as_they_were(navigation_folder, video_folder, make_context):
    def shown(item) -> int:
        return len(item["frames"]) if isinstance(item, dict) else len(item.decisions)

    for kind, options in [(StreamingDataset, {}), (VLNCEDataset, {}), (StreamingDataset, {"max_decisions": 1})]:
        without, with_clips = (
            dataset(kind, navigation_folder, make_context(clips=clips, **options)) for clips in (None, WITH_TARGETS)
        )
        reads = []
        read = without.pictures.store.read
        without.pictures.store.read = lambda name, read=read, reads=reads: reads.append(name) or read(name)
        for index in range(len(without)):
            reads.clear()
            plain, other = without[index], with_clips[index]
            assert len(reads) == shown(without.records[index])
            assert list(plain) == [key for key in other if key != "clip"]
            for key, value in plain.items():
                assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
    fields = {"video": "long.mp4", **SAID}
    plain, other = (videos(VideoDataset, video_folder, make_context(clips=clips), fields)[0] for clips in (None, SEEN))
    assert list(plain) == [key for key in other if key != "clip"]
    assert torch.equal(plain["images"], other["images"])


@pytest.mark.parametrize(
    "layout", [{"mode": "pad"}, {"mode": "pad", "pad_side": "left"}, {"mode": "pack", "rows": "one"}]
)
def test_a_mixture_with_and_without_video_ends_every_answer_at_its_end_of_turn(
    navigation_folder, make_context, tokenizer, layout
):
    context = make_context(clips=WITH_TARGETS, num_video_frames=4, max_decisions=2)
    whole = dataset(StreamingDataset, navigation_folder, context)
    single = dataset(VLNCEDataset, navigation_folder, context)
    (navigation_folder / "text.json").write_text(json.dumps([SAID]))
    text = LLaVADataset("t", context, data_path=navigation_folder / "text.json")
    samples = [text[0], *(whole[i] for i in range(len(whole))), text[0], *(single[i] for i in range(len(single)))]
    collate = DataCollator(pad_token_id=0, max_length=4096, image_token_id=context.image_token_id, **layout)
    batch = collate(samples)
    clips = batch["clips"]
    assert [batch["sample_ids"][i] for i in clips["samples"].tolist()] == [
        sample["sample_id"] for sample in samples if "clip" in sample
    ]
    everything = torch.cat([batch["images"], clips["target_frames"]])
    for v, sample in enumerate(sample for sample in samples if "clip" in sample):
        row = batch["input_ids"][clips["rows"][v]]
        own = torch.cat([sample["images"], sample["clip"].get("target_frames", sample["images"][:0])])
        for t, frame in enumerate(sample["clip"]["frames"].tolist()):
            assert frame == -1 or torch.equal(own[frame], everything[clips["frames"][v, t]])
            if (end := int(clips["frame_end_positions"][v, t])) >= 0:
                assert int(row[end]) == context.image_token_id
                assert end + 1 == len(row) or int(row[end + 1]) != context.image_token_id
            if (end := int(clips["answer_end_positions"][v, t])) >= 0:
                position = int(sample["clip"]["answer_end_positions"][t])
                assert row[end - 3 : end + 1].tolist() == sample["input_ids"][position - 3 : position + 1].tolist()
                assert tokenizer.decode(row[end : end + 1]) in ("<|eot_id|>", "<|end_of_text|>")
