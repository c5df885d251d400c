"""Whole episodes joined from single decisions."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llava.constants import IGNORE_INDEX
from llava.data.collate import DataCollator
from llava.data.dataset_impl.episodes import Decision, Window, cut_windows, join_episodes
from llava.data.dataset_impl.streaming import StreamingDataset
from llava.data.utils import BrokenSampleError
from tests.unit.data.toys import FORWARD, LEFT, SIZE, STOP, episode_records, grey, record


def dataset(folder, context, **paths):
    return StreamingDataset("s", context, data_path=folder / "annotations.json", media_dir=folder / "train", **paths)


def test_an_episode_is_joined_sorted_and_freed_of_copies(navigation_folder, make_context):
    data = dataset(navigation_folder, make_context())
    assert [(w.episode, [d.num_frames for d in w.decisions]) for w in data.records] == [
        ("7", [1, 3, 6]),
        ("8", [1, 3, 6]),
    ]
    assert [d.frame for d in data.records[0].decisions] == ["7/frame_0.png", "7/frame_2.png", "7/frame_5.png"]


def test_a_sample_is_the_instruction_then_picture_and_answer_in_turn(navigation_folder, make_context, tokenizer):
    sample = dataset(navigation_folder, make_context())[0]
    text = tokenizer.decode(sample["input_ids"])
    picture = "<image>" * 4
    assert text == (
        f"<|begin_of_text|>Your task is: Go to the red ball.\n{picture}←←<|eot_id|>"
        f"{picture}↑↑↑<|eot_id|>{picture}STOP<|eot_id|>"
    )
    trained = sample["input_ids"][sample["labels"] != IGNORE_INDEX]
    assert tokenizer.decode(trained) == "←←<|eot_id|>↑↑↑<|eot_id|>STOP<|eot_id|>"
    assert sample["images"][:, 0, 0, 0].tolist() == [0, 20, 50]
    assert sample["images"].dtype == torch.uint8
    assert sample["sample_id"] == "s/7+0"


def test_answers_hang_on_branches_and_positions_pass_them_by(navigation_folder, make_context):
    hidden = dataset(navigation_folder, make_context())[0]
    seen = dataset(navigation_folder, make_context(answers_visible=True))[0]
    assert set(hidden["branch_ids"].tolist()) == {0, 1, 2, 3}
    assert set(seen["branch_ids"].tolist()) == {0}
    trunk = hidden["position_ids"][hidden["branch_ids"] == 0]
    assert trunk.tolist() == list(range(len(trunk)))
    assert seen["position_ids"].tolist() == list(range(len(seen["input_ids"])))


@pytest.mark.parametrize(("limit", "sizes"), [(None, [3, 3]), (3, [3, 3]), (2, [1, 2, 1, 2]), (1, [1] * 6)])
def test_long_episodes_become_windows_that_keep_the_instruction(navigation_folder, make_context, limit, sizes):
    data = dataset(navigation_folder, make_context(max_decisions=limit))
    assert [len(w.decisions) for w in data.records] == sizes
    assert {w.instruction for w in data.records} == {"Go to the red ball.", "Wait next to the blue box."}
    assert all(len(data[i]["images"]) == n for i, n in enumerate(sizes))


@given(st.integers(1, 60), st.integers(1, 20))
def test_windows_hold_every_decision_once_and_in_order(total, limit):
    decisions = tuple(Decision(n, f"f{n}", FORWARD) for n in range(total))
    windows = cut_windows(Window("e", "go", 0, decisions), limit)
    assert [d for w in windows for d in w.decisions] == list(decisions)
    assert all(decisions[w.first] == w.decisions[0] for w in windows)
    sizes = [len(w.decisions) for w in windows]
    assert max(sizes) <= limit
    assert max(sizes) - min(sizes) <= 1


@given(st.permutations(episode_records("7") * 2 + episode_records("8")))
def test_the_join_does_not_depend_on_order_or_copies(records):
    episodes = {e.episode: e for e in join_episodes(records)}
    for name in ("7", "8"):
        assert [(d.num_frames, d.answer) for d in episodes[name].decisions] == [(1, LEFT), (3, FORWARD), (6, STOP)]
        assert not episodes[name].problem


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (record("7", 3, 3, LEFT), "two records 7-3 contradict"),
        ({**record("7", 9, 9, LEFT), "frames": []}, "record 7-9: 'frames' is missing or empty"),
        ({"video_id": "7-9", "q": "Go to the red ball.", "frames": ["x"]}, "record 7-9: 'a' is None"),
    ],
)
def test_a_contradiction_or_a_gap_in_the_records_breaks_its_episode_only(
    navigation_folder, make_context, spoilt, message
):
    (navigation_folder / "annotations.json").write_text(
        json.dumps([*episode_records("7"), spoilt, *episode_records("8")])
    )
    data = dataset(navigation_folder, make_context())
    with pytest.raises(BrokenSampleError, match=message):
        data[0]
    assert len(data[1]["images"]) == 3


def test_an_answer_that_names_no_action_is_a_broken_sample(navigation_folder, make_context):
    (navigation_folder / "annotations.json").write_text(json.dumps([record("7", 1, 1, "I am lost.")]))
    with pytest.raises(BrokenSampleError, match=r"'I am lost\.' names no action"):
        dataset(navigation_folder, make_context())[0]


def test_plural_degrees_of_the_human_set_mean_the_same(navigation_folder, make_context, tokenizer):
    answer = "The next action is turn right 45 degrees."
    (navigation_folder / "annotations.json").write_text(json.dumps([record("7", 1, 1, answer)]))
    sample = dataset(navigation_folder, make_context())[0]
    assert tokenizer.decode(sample["input_ids"][sample["labels"] != IGNORE_INDEX]) == "→→→<|eot_id|>"


def test_frames_may_lie_in_one_filmstrip_per_episode(tmp_path, make_context):
    (tmp_path / "train" / "7").mkdir(parents=True)
    strip = np.concatenate([grey(10 * i) for i in range(6)])
    Image.fromarray(strip).save(tmp_path / "train/7/filmstrip.png")
    facts = {"num_frames": 6, "height": SIZE, "width": SIZE}
    (tmp_path / "train/7/filmstrip.json").write_text(json.dumps(facts))
    (tmp_path / "annotations.json").write_text(json.dumps(episode_records("7")))
    assert dataset(tmp_path, make_context())[0]["images"][:, 0, 0, 0].tolist() == [0, 20, 50]
    (tmp_path / "annotations.json").write_text(json.dumps([record("7", 7, 7, STOP)]))
    with pytest.raises(BrokenSampleError, match=r"frame_6\.png does not exist.*holds frames 0-5"):
        dataset(tmp_path, make_context())[0]


def test_pictures_are_kept_up_to_the_memory_allowed(navigation_folder, make_context, monkeypatch):
    data = dataset(navigation_folder, make_context(keep_pictures_mb=1))
    data.pictures.room = 3 * 3 * SIZE * SIZE  # one of the two episodes
    first = [data[i]["images"] for i in range(2)]
    reads = []
    read = data.pictures.store.read
    monkeypatch.setattr(data.pictures.store, "read", lambda name: reads.append(name) or read(name))
    assert all(torch.equal(data[i]["images"], first[i]) for i in range(2))
    assert {name[0] for name in reads} == {"8"}


def test_a_packed_batch_of_episodes_holds_every_token_and_picture(navigation_folder, make_context):
    data = dataset(navigation_folder, make_context(max_decisions=2))
    samples = [data[i] for i in range(4)]
    batch = DataCollator(pad_token_id=0, max_length=30, mode="pack")(samples)
    real = batch["attention_mask"]
    assert real.sum() == sum(len(s["input_ids"]) for s in samples)
    assert len(batch["images"]) == sum(len(s["images"]) for s in samples)
    for row, segment in {(r, int(s)) for r in range(len(real)) for s in batch["segment_ids"][r] if s >= 0}:
        inside = batch["segment_ids"][row] == segment
        ids = batch["input_ids"][row][inside]
        match = next(s for s in samples if s["input_ids"].tolist() == ids.tolist())
        for key in ("position_ids", "branch_ids", "frame_ids"):
            assert batch[key][row][inside].tolist() == match[key].tolist()


def test_length_estimates_are_near_the_truth(navigation_folder, make_context):
    data = dataset(navigation_folder, make_context())
    true = [len(data[i]["input_ids"]) for i in range(len(data))]
    assert all(abs(a - b) <= 0.2 * b for a, b in zip(data.lengths, true, strict=True))
    assert data.modality == ["video", "video"]
