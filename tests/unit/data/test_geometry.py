"""The second target: from a file per video to the tower's grid, by hand; frames without one are masked and counted."""

from __future__ import annotations

import json
import logging
import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from llava.batch import VisualSpec
from llava.data.clips import ClipOptions
from llava.data.collate import DataCollator
from llava.data.dataset_impl import ClipsDataset, StreamingDataset, VideoDataset, VLNCEDataset
from llava.data.geometry import Geometry, GeometryOptions, on_grid, place_of_frame, read_file
from llava.data.utils import BrokenSampleError
from llava.scene.geometry import one_view
from tests.unit.data.toys import episode_records

SPEC = VisualSpec(image_size=16, tokens_per_image=4)
WHOLE = GeometryOptions(side=1)
"""One token per frame."""
NAN = math.nan


def write_npz(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


def read(folder, options, places, spec=SPEC):
    return Geometry(options, spec, folder, "toy").along(places)


def values(geometry) -> list:
    """Rounded, None where unknown."""
    return [None if math.isnan(value) else round(value, 4) for value in geometry.flatten().tolist()]


# on the grid


def test_a_token_is_the_mean_of_the_logarithms_of_its_pixels(tmp_path):
    """4 x 4 pixels, 2 x 2 tokens: the geometric mean of each square of 2 x 2."""
    depth = np.ones((1, 4, 4))
    depth[0, :2, :2] = [[1, 4], [4, 16]]  # 4
    depth[0, 2:, 2:] = [[1, 1], [1, 16]]  # 2
    write_npz(tmp_path / "7.npz", depth=depth)
    tokens = read(tmp_path, GeometryOptions(side=2), [("7", 0)])
    assert values(tokens.exp()) == [4, 1, 1, 2]


def test_what_is_unknown_takes_no_part_in_a_mean(tmp_path):
    depth = np.zeros((1, 4, 4), dtype=np.uint16)  # sensors say 0 where they saw nothing
    depth[0, 0, :3] = 2000, 0, 500
    write_npz(tmp_path / "7.npz", depth=depth, unit_m=0.001)
    assert values(read(tmp_path, GeometryOptions(side=2), [("7", 0)]).exp()) == [2, 0.5, None, None]


def test_tokens_are_the_squares_of_patches_of_the_first_target(tmp_path):
    """3 x 3 patches in squares of 2: the last row and column are alone, as `make_targets` has it."""
    write_npz(tmp_path / "7.npz", depth=np.exp(np.arange(9.0).reshape(1, 3, 3)))
    spec = VisualSpec(image_size=15, tokens_per_image=4)
    assert values(read(tmp_path, GeometryOptions(side=3, pool=2), [("7", 0)], spec)) == [2.0, 3.5, 6.5, 8.0]


def test_pixels_that_belong_to_two_tokens_are_shared_by_area():
    """3 pixels on 2 patches: the middle one counts half in both."""
    values = np.array([[[[0.0], [3.0], [6.0]]]])
    assert on_grid(values, one_view(16, 1, 3), GeometryOptions(side=2))[0, :, 0].tolist() == [1, 5, 1, 5]


@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_depth_lies_where_the_tower_sees_it(tmp_path, mode):
    """A picture four times as wide as high, between bars of fill or cut to its middle."""
    write_npz(tmp_path / "7.npz", depth=np.exp(np.arange(4.0)).reshape(1, 1, 4).repeat(2, axis=1).repeat(2, axis=2))
    spec = VisualSpec(image_size=16, tokens_per_image=4, aspect_mode=mode)
    tokens = read(tmp_path, GeometryOptions(side=4), [("7", 0)], spec).view(4, 4)
    if mode == "pad":  # 4 of 16 rows: half a row of patches above and half below the middle
        assert values(tokens[0]) == values(tokens[3]) == [None] * 4
        assert values(tokens[1]) == values(tokens[2]) == [0, 1, 2, 3]
    else:
        assert values(tokens[0]) == values(tokens[3]) == [1, 1, 2, 2]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_a_mean_lies_between_what_it_is_made_of_and_a_constant_stays(height, width, side, pool, seed):
    options = GeometryOptions(side=side, pool=pool, origin="toy", width=2)
    view = one_view(4 * side, height, width)
    random = np.random.default_rng(seed).normal(size=(1, height, width, 2))
    tokens = on_grid(random, view, options)
    assert tokens.shape == (1, options.num_tokens, 2)
    assert (tokens >= random.min(axis=(1, 2)) - 1e-6).all() and (tokens <= random.max(axis=(1, 2)) + 1e-6).all()
    np.testing.assert_allclose(on_grid(np.full((1, height, width, 2), 3.5), view, options), 3.5, rtol=1e-6)


# feature files of another model


@pytest.fixture
def feature_files(tmp_path):
    """Video a as npz, b as safetensors in bfloat16: 3 frames of 2 x 2 cells; frame t holds t and 10 + t."""
    cells = np.stack([np.arange(3.0), 10 + np.arange(3.0)], axis=1).astype(np.float32)
    features = np.broadcast_to(cells[:, None, None], (3, 2, 2, 2))
    write_npz(tmp_path / "a.npz", features=features, origin="vggt")
    half = torch.from_numpy(features.copy()).bfloat16()
    save_file({"features": half}, tmp_path / "b.safetensors", {"origin": "vggt"})
    return tmp_path


def test_both_kinds_of_files_say_the_same(feature_files):
    options = GeometryOptions(origin="vggt", width=2, side=1)
    for video in "ab":
        tokens = read(feature_files, options, [(video, 2), None, (video, 0), ("absent", 0)])
        assert tokens[[0, 2], 0].tolist() == [[2, 12], [0, 10]]
        assert tokens[[1, 3]].isnan().all()


@pytest.mark.parametrize("video", ["a.npz", "b.safetensors"])
@pytest.mark.parametrize(
    ("origin", "width", "message"),
    [
        ("vggt", 2048, r"holds features \[2, 2, 2\] per frame of 'vggt', expected \[rows, columns, 2048\] of 'vggt'"),
        ("dinov3", 2, r"of 'vggt', expected .* of 'dinov3'; prepare the files anew, or set geometry_dim"),
        ("depth", 1, r"holds \['features'.*expected 'depth'"),
    ],
)
def test_files_of_another_model_or_width_are_refused_before_the_training(feature_files, video, origin, width, message):
    (feature_files / ("b.safetensors" if video == "a.npz" else "a.npz")).unlink()
    with pytest.raises(ValueError, match=message):
        Geometry(GeometryOptions(origin=origin, width=width, side=1), SPEC, feature_files, "toy")


def test_depth_in_safetensors_may_be_whole_numbers_too(tmp_path):
    millimetres = torch.tensor([[[1000, 0]], [[2000, 500]]], dtype=torch.uint16)
    save_file({"depth": millimetres}, tmp_path / "7.safetensors", {"unit_m": "0.001"})
    assert values(torch.from_numpy(read_file(tmp_path / "7.safetensors", WHOLE))) == [1, None, 2, 0.5]


def test_a_frame_beyond_the_file_is_no_frame_without_geometry(feature_files):
    for video in "ab":
        with pytest.raises(ValueError, match="holds frames 0-2, asked for 3; write it together with the frames"):
            read(feature_files, GeometryOptions(origin="vggt", width=2, side=1), [(video, 3)])


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors"])
def test_a_file_that_is_cut_off_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK half a file")  # what a killed program leaves
    with pytest.raises(ValueError, match=rf"{name} cannot be read as"):
        read_file(tmp_path / name, WHOLE)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"depth": np.ones((2, 3))}, r"holds depth \[3\] per frame as float64"),
        ({"depth": np.ones((1, 2, 2), dtype=np.uint16)}, "whole numbers with unit_m beside them"),
    ],
)
def test_depth_that_cannot_be_metres_is_refused(tmp_path, arrays, message):
    write_npz(tmp_path / "7.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_file(tmp_path / "7.npz", WHOLE)


def test_a_folder_without_files_says_how_they_are_written(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"depth_path is .*vila-world write --depth"):
        Geometry(WHOLE, SPEC, tmp_path / "nowhere", "toy")
    with pytest.raises(FileNotFoundError, match=r"features_path is .*a file per video of 'vggt'"):
        Geometry(GeometryOptions(origin="vggt", width=8, side=1), SPEC, tmp_path, "toy")


@pytest.mark.parametrize("options", [{"side": 0}, {"side": 2, "width": 3}])
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match=r"expected (at least )?1"):
        GeometryOptions(**options)


def test_frames_are_named_as_filmstrips_count_them():
    assert place_of_frame("a/7/frame_12.jpg") == ("a/7", 12)
    assert place_of_frame("a/7/last.jpg") is None


# data sets


@pytest.fixture
def depth_folder(navigation_folder):
    """Frame i of episode 7 is e^i metres away everywhere; episode 8 has no depth."""
    depth = np.exp(np.arange(6.0))[:, None, None] * np.ones((1, 4, 4))
    write_npz(navigation_folder / "depth" / "7.npz", depth=depth)
    return navigation_folder


def dataset(kind, folder, context, **paths):
    paths = {"depth_path": folder / "depth", **paths}
    return kind("s", context, data_path=folder / "annotations.json", media_dir=folder / "train", **paths)


def clips(**chosen) -> ClipOptions:
    return ClipOptions(**{"answer_targets": True, "geometry": WHOLE, **chosen})


def test_every_decision_of_an_episode_has_the_depth_of_its_own_frame(depth_folder, make_context):
    """Seen after 1, 3 and 6 frames: frames 0, 2 and 5; the last one stands in a window of its own."""
    data = dataset(StreamingDataset, depth_folder, make_context(clips=clips()))
    assert values(data[0]["clip"]["geometry"]) == [0, 2, 5]
    data = dataset(StreamingDataset, depth_folder, make_context(clips=clips(), max_decisions=2))
    clip = data[0]["clip"]
    assert clip["target_frames"][:, 0, 0, 0].tolist() == [20]
    assert values(clip["geometry"]) == [0, 2]  # of the frame on disk to which the answer leads as well


def test_a_decision_has_the_depth_of_what_it_shows_and_of_what_follows(depth_folder, make_context):
    (depth_folder / "annotations.json").write_text(json.dumps(episode_records()))
    data = dataset(VLNCEDataset, depth_folder, make_context(clips=clips(), num_video_frames=4))
    assert values(data[1]["clip"]["geometry"]) == [None, 0, 1, 2, 5]  # a black picture first
    assert data[1]["clip"]["frames"].tolist() == [-1, 1, 2, 3, 4]


def test_videos_without_depth_are_masked_counted_and_reported(depth_folder, make_context, caplog):
    data = dataset(StreamingDataset, depth_folder, make_context(clips=clips()))
    with caplog.at_level(logging.WARNING):
        samples = [data[0], data[1], data[1]]
    assert values(samples[1]["clip"]["geometry"]) == [None] * 3
    assert sum("video number 1 without depth" in record.message for record in caplog.records) == 1
    assert "1 video(s) without depth" in data.report()
    batch = DataCollator(pad_token_id=0, max_length=4096, image_token_id=data.context.image_token_id)(samples)
    assert values(batch["clips"]["geometry"][:, :, 0, 0]) == [0, 2, 5] + [None] * 6


def test_a_data_set_without_a_folder_has_no_second_target_and_says_so(depth_folder, make_context, caplog):
    with caplog.at_level(logging.WARNING):
        data = dataset(StreamingDataset, depth_folder, make_context(clips=clips()), depth_path=None)
    assert "data set 's' has no depth_path" in caplog.text
    assert values(data[0]["clip"]["geometry"]) == [None] * 3


def test_nothing_is_read_that_nobody_asked_for(depth_folder, make_context):
    for options in (None, ClipOptions()):
        data = dataset(StreamingDataset, depth_folder, make_context(clips=options), depth_path=depth_folder / "no")
        assert "geometry" not in data[0].get("clip", {})


def test_a_file_of_another_model_among_others_is_a_broken_sample(depth_folder, make_context):
    data = dataset(StreamingDataset, depth_folder, make_context(clips=clips()))
    write_npz(depth_folder / "depth" / "8.npz", depth=np.ones((6, 4)))
    assert "clip" in data[0]
    with pytest.raises(BrokenSampleError, match=r"8\.npz holds depth \[4\] per frame"):
        data[1]


def test_a_video_has_a_file_of_its_own_name(tmp_path, make_context):
    (tmp_path / "train" / "x").mkdir(parents=True)
    writer = cv2.VideoWriter(str(tmp_path / "train" / "x" / "walk.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 64))
    for i in range(5):
        writer.write(np.full((64, 64, 3), 20 * i, dtype=np.uint8))
    writer.release()
    write_npz(tmp_path / "depth" / "x" / "walk.npz", depth=np.exp(np.arange(5.0))[:, None, None] * np.ones((1, 4, 4)))
    said = {"video": "x/walk.mp4", "q": "What?", "a": "A walk."}
    (tmp_path / "annotations.json").write_text(json.dumps([said]))
    context = make_context(clips=clips(), num_video_frames=3)
    for kind in (VideoDataset, ClipsDataset):
        clip = dataset(kind, tmp_path, context)[0]["clip"]
        assert values(clip["geometry"]) == [0, 2, 4]
        assert torch.equal(clip["frames"], torch.arange(3))


def test_a_list_of_pictures_has_the_file_of_its_folder(depth_folder, make_context):
    entry = {"frames": [f"7/frame_{i}.png" for i in (1, 3, 4)], "times": [0, 1, 5]}
    (depth_folder / "annotations.json").write_text(json.dumps([entry]))
    clip = dataset(ClipsDataset, depth_folder, make_context(clips=clips()))[0]["clip"]
    assert values(clip["geometry"]) == [1, 3, 4]
