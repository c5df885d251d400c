"""Frames are found by name in files and in filmstrips; what is missing is named."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from llava.video.frame_store import FrameStore


def write_strip(folder, num_frames, suffix="png", height=4, width=6, told=None):
    folder.mkdir(parents=True)
    strip = np.repeat(np.arange(num_frames, dtype=np.uint8) * 10, height * width).reshape(-1, width)
    cv2.imwrite(str(folder / f"filmstrip.{suffix}"), np.stack([strip] * 3, axis=-1))
    facts = {"num_frames": told or num_frames, "height": height, "width": width}
    (folder / "filmstrip.json").write_text(json.dumps(facts))


def test_frame_i_is_row_i_of_the_strip(tmp_path):
    write_strip(tmp_path / "14", 5)
    store = FrameStore(tmp_path)
    assert [store.read(f"14/frame_{i}.jpg")[0, 0, 0] for i in range(5)] == [0, 10, 20, 30, 40]
    assert store.read("14/frame_3.jpg").shape == (4, 6, 3)
    assert store.num_frames("14") == 5


def test_single_files_are_read_and_win_over_a_strip(tmp_path):
    write_strip(tmp_path / "14", 2, suffix="jpg")
    cv2.imwrite(str(tmp_path / "14/frame_1.jpg"), np.full((4, 6, 3), 200, np.uint8))
    store = FrameStore(tmp_path)
    assert abs(int(store.read("14/frame_1.jpg")[0, 0, 0]) - 200) <= 2
    assert store.read("14/frame_0.jpg")[0, 0, 0] <= 2


def test_golden_frame_folders_are_read(golden):
    store = FrameStore(golden / "E_vln_datasets/NaVILA-Dataset/R2R/train")
    assert store.num_frames("1") == 30
    assert store.read("1/frame_29.jpg").shape == (64, 64, 3)
    with pytest.raises(FileNotFoundError, match=r"frame_30.jpg does not exist; frames 0-29 exist there"):
        store.read("1/frame_30.jpg")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("14/frame_7.jpg", r"14/frame_7.jpg does not exist; filmstrip.png beside it holds frames 0-4"),
        ("99/frame_0.jpg", r"99/frame_0.jpg does not exist, nor does its folder"),
        ("15/frame_0.jpg", "no frame and no filmstrip exists there"),
    ],
)
def test_a_missing_frame_says_what_exists(tmp_path, name, words):
    write_strip(tmp_path / "14", 5)
    (tmp_path / "15").mkdir()
    with pytest.raises(FileNotFoundError, match=words):
        FrameStore(tmp_path).read(name)


def test_broken_strips_are_named(tmp_path):
    write_strip(tmp_path / "1", 5, told=6)
    with pytest.raises(ValueError, match=r"6x20 pixels, its json tells 6 frames of 6x4 = 6x24"):
        FrameStore(tmp_path).read("1/frame_0.jpg")
    (tmp_path / "1/filmstrip.png").write_bytes(b"\x89PNG cut")
    with pytest.raises(ValueError, match=r"filmstrip.png \(8 bytes\) cannot be decoded"):
        FrameStore(tmp_path).read("1/frame_0.jpg")
    (tmp_path / "1/filmstrip.json").write_text('{"num_frames": 3}')
    with pytest.raises(ValueError, match="must hold num_frames, height and width"):
        FrameStore(tmp_path).num_frames("1")
    (tmp_path / "1/filmstrip.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no filmstrip.json beside it"):
        FrameStore(tmp_path).read("1/frame_0.jpg")


def test_the_least_recently_used_strip_is_dropped_first(tmp_path):
    for episode in "abc":
        write_strip(tmp_path / episode, 4)
    store = FrameStore(tmp_path, cache_bytes=2 * 4 * 4 * 6 * 3)
    for episode in "abac":
        store.read(f"{episode}/frame_0.jpg")
    assert [path.parent.name for path in store._strips] == ["a", "c"]
    tight = FrameStore(tmp_path, cache_bytes=0)
    assert tight.read("a/frame_3.jpg")[0, 0, 0] == 30


def test_a_store_is_shared_by_threads_and_sent_to_workers_without_its_cache(tmp_path):
    for episode in range(4):
        write_strip(tmp_path / str(episode), 6)
    store = FrameStore(tmp_path, cache_bytes=1000)
    names = [f"{i % 4}/frame_{i % 6}.jpg" for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        values = [int(frame[0, 0, 0]) for frame in pool.map(store.read, names)]
    assert values == [i % 6 * 10 for i in range(200)]
    sent = pickle.loads(pickle.dumps(store))
    assert sent.read("1/frame_2.jpg")[0, 0, 0] == 20
    assert len(pickle.dumps(store)) < 500


def test_frames_of_a_strip_cannot_be_overwritten(tmp_path):
    write_strip(tmp_path / "1", 2)
    with pytest.raises(ValueError, match="read-only"):
        FrameStore(tmp_path).read("1/frame_0.jpg")[:] = 0
