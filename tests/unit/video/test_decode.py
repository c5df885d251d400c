"""Clips decode alike by every decoder, in the order asked for; broken ones are named."""

import json

import cv2
import numpy as np
import pytest

import llava
from llava.video.decode import DECODERS, list_frames, open_clip, read_frames, video_info


def mark(frame):
    """The golden pictures carry their index in 8 vertical bars of their lower half."""
    height, width = frame.shape[:2]
    bars = frame[height // 2 :, :, :].mean(axis=(0, 2))
    return sum(2**bit for bit in range(8) if bars[bit * width // 8 : (bit + 1) * width // 8].mean() > 127)


@pytest.fixture(params=sorted(DECODERS))
def decoder(request):
    if request.param == "decord":
        pytest.importorskip("decord")
    return request.param


def write_pictures(folder, names):
    folder.mkdir(exist_ok=True)
    for value, name in enumerate(names):
        cv2.imwrite(str(folder / name), np.full((4, 6, 3), value * 20, np.uint8))


def test_every_decoder_gives_the_frames_asked_for_in_order(golden, decoder):
    clip = open_clip(golden / "A_navila/videos/n40_fps10.mp4", decoder)
    assert (clip.info.num_frames, clip.info.fps, clip.info.height, clip.info.width) == (40, 10.0, 64, 64)
    assert [mark(frame) for frame in clip.frames([39, 0, 7, 7])] == [39, 0, 7, 7]
    assert clip.times([0, 1, 39]) == pytest.approx([0, 0.1, 3.9])
    assert clip.frames([]) == []


def test_bytes_decode_like_the_file(golden, decoder):
    path = golden / "A_navila/videos/n8_fps4.mp4"
    clip = open_clip(path.read_bytes(), decoder)
    assert [mark(frame) for frame in clip.frames(range(8))] == list(range(8))


def test_an_index_that_does_not_exist_is_named(golden, decoder):
    with pytest.raises(ValueError, match=r"n3_fps4.mp4 has frames 0-2, asked for 3, 7"):
        open_clip(golden / "A_navila/videos/n3_fps4.mp4", decoder).frames([0, 3, 7])


def test_a_broken_file_is_named(tmp_path, decoder):
    (tmp_path / "cut.mp4").write_bytes(b"not a video")
    with pytest.raises(ValueError, match=rf"cut.mp4 cannot be decoded by {decoder}"):
        open_clip(tmp_path / "cut.mp4", decoder)
    with pytest.raises(FileNotFoundError, match=r"gone.mp4 does not exist"):
        open_clip(tmp_path / "gone.mp4", decoder)


def test_an_unknown_decoder_suggests_the_nearest(golden):
    with pytest.raises(KeyError, match="did you mean 'decord'"):
        open_clip(golden / "A_navila/videos/n3_fps4.mp4", "decored")


def test_a_missing_decoder_carries_the_pip_command(golden, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    with pytest.raises(ImportError, match="pip install decord"):
        open_clip(golden / "A_navila/videos/n3_fps4.mp4", "decord")


def test_a_frame_folder_is_read_in_natural_order(tmp_path):
    write_pictures(tmp_path, [f"frame_{i}.png" for i in range(12)])
    assert [path.stem for path in list_frames(tmp_path)][-2:] == ["frame_10", "frame_11"]
    assert video_info(tmp_path).num_frames == 12
    assert [frame[0, 0, 0] for frame in read_frames(tmp_path, [11, 2])] == [220, 40]
    with pytest.raises(ValueError, match="has no times"):
        open_clip(tmp_path).times([0])


def test_a_gap_in_a_frame_folder_is_reported(tmp_path):
    write_pictures(tmp_path, ["0001.png", "0002.png", "0005.png"])
    with pytest.raises(ValueError, match=r"has gaps: frames 1-2, 5 exist, 3-4 are missing"):
        list_frames(tmp_path)


def test_doubles_and_empty_folders_are_reported(tmp_path):
    write_pictures(tmp_path / "doubles", ["1.png", "01.png"])
    with pytest.raises(ValueError, match="more than one picture for frames 1"):
        list_frames(tmp_path / "doubles")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no picture"):
        video_info(tmp_path / "empty")


def test_colours_are_rgb(tmp_path, golden, decoder):
    cv2.imwrite(str(tmp_path / "1.png"), np.full((4, 4, 3), (255, 0, 0), np.uint8))  # blue in OpenCV's order
    assert read_frames(tmp_path, [0])[0][0, 0].tolist() == [0, 0, 255]


def write_strip(folder, num_frames=3, height=4, width=6, **facts):
    folder.mkdir(exist_ok=True)
    strip = np.repeat(np.arange(num_frames, dtype=np.uint8) * 20, height)[:, None, None].repeat(width, 1).repeat(3, 2)
    cv2.imwrite(str(folder / "filmstrip.png"), strip)
    facts = {"num_frames": num_frames, "height": height, "width": width, **facts}
    (folder / "filmstrip.json").write_text(json.dumps(facts))


def test_a_filmstrip_is_a_clip_of_its_frames(tmp_path):
    write_strip(tmp_path / "7")
    for source in (tmp_path / "7", tmp_path / "7" / "filmstrip.png"):
        clip = open_clip(source)
        assert (clip.info.num_frames, clip.info.fps, clip.info.height, clip.info.width) == (3, 0.0, 4, 6)
        assert [int(frame[0, 0, 0]) for frame in clip.frames([2, 0, 0])] == [40, 0, 0]
        with pytest.raises(ValueError, match="has frames 0-2, asked for 3"):
            clip.frames([3])
        with pytest.raises(ValueError, match="has no times"):
            clip.times([0])
    assert [int(f.mean()) for f in frames_of(llava.Video(tmp_path / "7"))] == [0, 20, 40]


def frames_of(video):
    return read_frames(video.path, range(video_info(video.path).num_frames))


def test_single_frames_come_before_a_filmstrip_beside_them(tmp_path):
    write_strip(tmp_path / "7")
    write_pictures(tmp_path / "7", ["frame_0.png", "frame_1.png"])
    assert video_info(tmp_path / "7").num_frames == 2


def test_a_picture_that_is_no_filmstrip_is_no_video(tmp_path):
    write_pictures(tmp_path, ["kitchen.png"])
    with pytest.raises(FileNotFoundError, match=r"kitchen\.png has no kitchen\.json.*read it as one \(llava\.Image\)"):
        open_clip(tmp_path / "kitchen.png")
    write_strip(tmp_path / "7", height=5)
    (tmp_path / "7" / "filmstrip.json").write_text(json.dumps({"num_frames": 3, "height": 4, "width": 6}))
    with pytest.raises(ValueError, match="its json tells 3 frames of 6x4 = 6x12; write the episode again"):
        open_clip(tmp_path / "7")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no picture"):
        open_clip(tmp_path / "empty")
