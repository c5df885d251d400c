"""A written data set can be read through its published layout, and its counts close."""

import gzip
import json
import re

import numpy as np
import pytest

from llava.navigation.actions import ActionKind, SentenceFormat
from llava.navigation.worlds import dataset_writer
from llava.navigation.worlds.base import CameraProfile
from llava.navigation.worlds.dataset_files import save_depth
from llava.navigation.worlds.dataset_writer import CameraRange, DatasetOptions, write_dataset
from llava.navigation.worlds.demonstrations import demonstrate
from llava.navigation.worlds.embedded import EmbeddedWorldBatch, parse_scene_id
from llava.navigation.worlds.episode_files import read_episodes
from llava.video.frame_store import FrameStore

SMALL = CameraProfile(width=24, height=16)


def load(path):
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return json.load(file)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    seen = []
    summary = write_dataset(root, "one_room", 12, camera=SMALL, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (12, 12)
    return root, summary, load(root / "annotations.json")


def test_every_annotated_frame_can_be_read_and_is_the_picture_of_that_pose(written):
    root, summary, records = written
    store = FrameStore(root / "train")
    walks = demonstrate("one_room", np.arange(12), SMALL, noise=0.15)
    assert summary.num_frames == walks.num_frames
    decisions = np.searchsorted(walks.decision_start, np.arange(len(walks.decision_frame)), side="right") - 1
    assert len(records) == len(decisions) == summary.num_records
    for record, episode, frame in zip(records, decisions, walks.decision_frame, strict=True):
        step = int(frame - walks.frame_start[episode])
        assert record["video_id"] == f"{episode}-{step}"
        assert record["frames"] == [f"{episode}/frame_{i}.jpg" for i in range(step + 1)]
    for number in (0, 7, len(records) - 1):
        picture = walks.render(walks.decision_frame[[number]], SMALL).rgb[0]
        np.testing.assert_array_equal(store.read(records[number]["frames"][-1]), picture)


@pytest.mark.parametrize("layout", ["filmstrip", "files"])
def test_depth_is_that_of_every_frame_to_half_a_millimetre(tmp_path, layout):
    camera = CameraProfile(width=12, height=8)
    write_dataset(tmp_path, "multi_room", 3, camera=camera, frames=layout, depth=True)
    walks = demonstrate("multi_room", np.arange(3), camera, noise=0.15)
    for e in range(3):
        frames = np.arange(walks.frame_start[e], walks.frame_start[e + 1])
        with np.load(tmp_path / "depth" / "train" / f"{e}.npz") as file:
            assert file["depth"].dtype == np.uint16
            metres = file["depth"] * file["unit_m"]
        np.testing.assert_allclose(metres, walks.render(frames, camera).depth, atol=0.0005 + 1e-6)


def test_depth_is_asked_for_and_does_not_make_a_written_data_set_another_one(tmp_path):
    write_dataset(tmp_path, "one_room", 2, camera=SMALL)
    assert not (tmp_path / "depth").exists()
    marker = load(tmp_path / "world_train.json")
    assert "depth" not in marker["settings"]  # as it was before there was any
    assert write_dataset(tmp_path, "one_room", 2, camera=SMALL).reused
    assert not write_dataset(tmp_path, "one_room", 2, camera=SMALL, depth=True).reused
    assert write_dataset(tmp_path, "one_room", 2, camera=SMALL, depth=True).reused
    with pytest.raises(ValueError, match="no frames are written for split 'test'; set frames"):
        write_dataset(tmp_path, "one_room", 2, split="test", depth=True)


def test_depth_beyond_what_a_file_can_say_is_unknown(tmp_path):
    save_depth(tmp_path / "0.npz", np.array([[[1.2346, 65.5351, 70.0]]], dtype=np.float32))
    with np.load(tmp_path / "0.npz") as file:
        assert file["depth"].tolist() == [[[1235, 65535, 0]]]


def test_motions_tell_what_was_done_between_any_two_frames(written):
    root, _, records = written
    motions = load(root / "train" / "motions.json.gz")
    episodes = read_episodes(root / "train.json.gz")
    batch = EmbeddedWorldBatch(episodes, SMALL)
    longest = {r["video_id"].split("-")[0]: len(r["frames"]) for r in records}
    assert {name: len(actions) + 1 for name, actions in motions.items()} == longest
    store = FrameStore(root / "train")
    for t in range(5):
        for i in (3, 9):
            np.testing.assert_array_equal(store.read(f"{i}/frame_{t}.jpg"), batch.render(np.array([i])).rgb[0])
        batch.step(np.array([motions[str(i)][t] for i in range(12)]))


def test_without_noise_expanding_each_record_once_gives_the_number_of_frames(tmp_path):
    summary = write_dataset(tmp_path, "multi_room", 4, camera=SMALL, noise=0.0, oversample=True)
    records, sentences = load(tmp_path / "annotations.json"), SentenceFormat()
    copies = {record["video_id"]: 0 for record in records}
    for record in records:
        copies[record["video_id"]] += 1
    once = {record["video_id"]: sentences.read(record["a"]) for record in records}
    assert sum(action.steps for action in once.values()) == summary.num_frames
    for name, action in once.items():
        wide = action.kind in (ActionKind.LEFT, ActionKind.RIGHT) and action.steps > 1
        assert copies[name] == (3 if action.kind is ActionKind.STOP else 2 if wide else 1)
    assert sum(summary.answers.values()) == len(records)
    assert summary.answers["I think I should stop because I have finished the instruction."] == 3 * 4


def test_answers_are_among_the_ten_published_sentences(written):
    _, summary, _ = written
    move = r"The next action is (move forward (25|50|75) cm|turn (left|right) (15|30|45) degree)\."
    pattern = rf"I think I should stop because I have finished the instruction\.|{move}"
    assert all(re.fullmatch(pattern, answer) for answer in summary.answers)


def test_episodes_of_two_splits_are_read_back_and_share_no_house(written):
    root, _, records = written
    write_dataset(root, "one_room", 5, camera=SMALL, split="val_unseen")
    train, unseen = read_episodes(root / "train.json.gz"), read_episodes(root / "val_unseen.json.gz")
    assert (len(train), len(unseen)) == (12, 5)
    assert not {e.scene_id for e in train} & {e.scene_id for e in unseen}
    assert not (root / "val_unseen").exists()
    for episode in [*train, *unseen]:
        assert episode.locations[0] == episode.start_position
        assert episode.actions[-1] == 0 and 0 not in episode.actions[:-1]
        assert len(set(episode.locations)) == len(episode.locations)
        assert episode.camera == SMALL
        assert episode.info["goal_object"] in episode.info["objects"]
    assert {r["q"] for r in records} == {e.instruction for e in train}
    assert parse_scene_id(train[3].scene_id) == ("one_room", 3)
    assert CameraProfile.from_dict(load(root / "camera.json")) == SMALL


def test_grounding_questions_have_true_answers(written):
    root, _, _ = written
    per_decision = load(root / "episode_grounding.json.gz")
    walks = demonstrate("one_room", np.arange(12), SMALL, noise=0.15)
    for name, decisions in per_decision.items():
        e = int(name)
        assert len(decisions) == walks.decision_start[e + 1] - walks.decision_start[e]
        names = walks.houses.object_names(e)
        assert set(decisions[0]) == {*names, "goal"}
        assert all(d["goal"] == d[names[walks.houses.goal_object[e]]] for d in decisions)
    absent, present = 0, 0
    for record in load(root / "grounding.json"):
        assert re.fullmatch(r"train/\d+/frame_\d+\.jpg", record["image"])
        name, frame = record["id"].split("-")
        first = walks.decision_start[int(name)]
        d = int(np.flatnonzero(walks.decision_frame - walks.frame_start[int(name)] == int(frame))[0] - first)
        turns = record["conversations"]
        assert turns[0]["value"].startswith("<image>\nWhere is the ")
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            thing = re.search(r"Where is the (.+)\?", question["value"])[1]
            where = per_decision[name][d].get(thing)
            expected = "It is not in view." if where is None else f"Column {where[0]}, {where[1]} m."
            assert answer["value"] == expected
            absent += thing not in per_decision[name][d]
            present += where is not None
    assert absent == 24 and present > 10


def test_writing_the_same_again_keeps_what_is_there_and_other_settings_do_not(written):
    root, summary, _ = written
    before = (root / "annotations.json").stat().st_mtime_ns
    again = write_dataset(root, "one_room", 12, camera=SMALL, threads=1)
    assert again.reused and again.answers == summary.answers
    assert (root / "annotations.json").stat().st_mtime_ns == before


def test_the_files_do_not_depend_on_how_much_is_held_in_memory(written, tmp_path, monkeypatch):
    root, _, _ = written
    monkeypatch.setattr(dataset_writer, "WALK_BLOCK", 5)
    monkeypatch.setattr(dataset_writer, "PICTURE_BYTES", 1)
    write_dataset(tmp_path, "one_room", 12, camera=SMALL)
    names = ("annotations.json", "grounding.json", "train.json.gz", "train_gt.json.gz", "train/motions.json.gz")
    for name in (*names, "episode_grounding.json.gz", "train/7/filmstrip.png"):
        assert (tmp_path / name).read_bytes() == (root / name).read_bytes(), name


def test_frames_as_files_are_published_names(tmp_path):
    write_dataset(tmp_path, "one_room", 2, camera=SMALL, frames="files", grounding_frames=0)
    record = load(tmp_path / "annotations.json")[-1]
    assert all((tmp_path / "train" / name).is_file() for name in record["frames"])
    assert load(tmp_path / "grounding.json") == []


def test_cameras_can_vary_by_episode_and_are_stored(tmp_path):
    write_dataset(tmp_path, "one_room", 6, camera=SMALL, camera_range=CameraRange(), noise=0.0)
    cameras = load(tmp_path / "cameras.json.gz")
    assert len({tuple(camera.values()) for camera in cameras.values()}) == 6
    store = FrameStore(tmp_path / "train")
    for episode in read_episodes(tmp_path / "train.json.gz")[:3]:
        assert episode.camera == CameraProfile.from_dict(cameras[episode.episode_id])
        first = EmbeddedWorldBatch([episode], episode.camera).render().rgb[0]
        np.testing.assert_array_equal(store.read(f"{episode.episode_id}/frame_0.jpg"), first)


def test_a_killed_run_leaves_no_half_file_under_a_final_name(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset_writer, "save_filmstrip", fail)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path, "one_room", 2, camera=SMALL, threads=1)
    assert not (tmp_path / "annotations.json").exists()
    assert not (tmp_path / "world_train.json").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_episodes": 0}, "num_episodes is 0"),
        ({"split": "val_unsen"}, "did you mean 'val_unseen'"),
        ({"frames": "filmstrips"}, "did you mean 'filmstrip'"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_options_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        DatasetOptions(**{"level": "one_room", "num_episodes": 1, **wrong})
