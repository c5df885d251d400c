"""Frame masks, by hand: documented plain calls by index, and the same rules by time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llava.video.frame_masks import (
    FrameLevelMaskGenerator,
    create_frame_position_ids,
    moment_of,
    visualize_mask,
)

MASKS = FrameLevelMaskGenerator()


def rows(mask: torch.Tensor) -> list[str]:
    return ["".join("x" if seen else "." for seen in row) for row in mask.tolist()]


def test_a_frame_sees_itself_whole_and_what_came_before():
    mask = MASKS.create_causal_frame_mask(num_frames=3, num_patches_per_frame=2, device="cpu")
    assert mask.dtype == torch.bool
    assert rows(mask) == ["xx....", "xx....", "xxxx..", "xxxx..", "xxxxxx", "xxxxxx"]


def test_documented_size():
    mask = MASKS.create_causal_frame_mask(num_frames=8, num_patches_per_frame=256, device=torch.device("cpu"))
    assert mask.shape == (2048, 2048)
    assert int(mask.sum()) == 36 * 256 * 256  # 8 * 9 / 2 blocks


def test_a_window_cuts_what_lies_far_back():
    assert rows(MASKS.create_sliding_window_frame_mask(4, 1, 2, "cpu")) == ["x...", "xx..", ".xx.", "..xx"]
    assert rows(MASKS.create_sliding_window_frame_mask(3, 1, 1, "cpu")) == ["x..", ".x.", "..x"]
    wide = MASKS.create_sliding_window_frame_mask(4, 3, window_size=4)
    assert torch.equal(wide, MASKS.create_causal_frame_mask(4, 3))


def test_fast_frames_see_all_slow_ones_and_earlier_fast_ones():
    mask = MASKS.create_fast_slow_frame_mask(
        num_fast_frames=3, num_slow_frames=2, num_patches_per_frame=1, device="cpu"
    )
    assert rows(mask) == ["xx...", "xx...", "xxx..", "xxxx.", "xxxxx"]


def test_with_time_stamps_fast_and_slow_frames_see_nothing_newer():
    times = [0, 4, 3, 4, 5]  # slow at 0 and 4, fast at 3, 4 and 5
    mask = MASKS.create_fast_slow_frame_mask(3, 2, 1, frame_times=times)
    assert rows(mask) == ["x....", "xx...", "x.x..", "xxxx.", "xxxxx"]


def test_with_time_stamps_the_order_of_the_frames_does_not_matter():
    assert rows(MASKS.create_causal_frame_mask(3, 1, frame_times=[2.0, 0.0, 1.0])) == ["xxx", ".x.", ".xx"]
    assert rows(MASKS.create_sliding_window_frame_mask(3, 1, 2, frame_times=[20, 0, 10])) == ["x.x", ".x.", ".xx"]


def test_position_ids_name_the_frame_or_its_place_in_time():
    assert create_frame_position_ids(3, 2).tolist() == [0, 0, 1, 1, 2, 2]
    assert MASKS.create_frame_position_ids(3, 2, frame_times=[9, 1, 5]).tolist() == [2, 2, 0, 0, 1, 1]
    assert moment_of(torch.tensor([[4.0, 0.0, 4.0, 7.0]])).tolist() == [[1, 0, 1, 2]]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=7), st.integers(1, 3), st.integers(1, 8))
def test_no_token_sees_a_newer_frame_and_each_sees_its_own(times, patches, window):
    frame = torch.tensor(times, dtype=torch.float).repeat_interleave(patches)
    newer = frame[None, :] > frame[:, None]
    slow = len(times) // 2
    for mask in (
        MASKS.create_causal_frame_mask(len(times), patches, frame_times=times),
        MASKS.create_sliding_window_frame_mask(len(times), patches, window, frame_times=times),
        MASKS.create_fast_slow_frame_mask(len(times) - slow, slow, patches, frame_times=times),
    ):
        assert not (mask & newer).any()
        assert mask.diagonal().all()


@given(st.integers(1, 7), st.integers(1, 3), st.integers(1, 8))
def test_growing_time_stamps_change_nothing(num_frames, patches, window):
    times = [3.5 * frame for frame in range(num_frames)]
    for name, options in (("causal", ()), ("sliding_window", (window,))):
        make = getattr(MASKS, f"create_{name}_frame_mask")
        assert torch.equal(make(num_frames, patches, *options), make(num_frames, patches, *options, frame_times=times))


def test_a_picture_is_written_under_the_title(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mask = MASKS.create_causal_frame_mask(4, 3)
    path = MASKS.visualize_mask(mask, title="My Frame Mask")
    assert path.resolve() == (tmp_path / "my_frame_mask.png").resolve()
    assert min(Image.open(path).size) > 500


def test_a_picture_shows_blocks_borders_and_time_stamps(tmp_path):
    mask = MASKS.create_causal_frame_mask(2, 4)
    plain = visualize_mask(mask, "plain", tmp_path / "plain.png")  # borders where the rows change
    stamped = visualize_mask(mask, "plain", tmp_path / "deep" / "stamped.png", 4, frame_times=[0, 2.5])
    left, top, side = 92, 78, 560
    picture = Image.open(plain).convert("RGB")
    quarter, far = side // 4, 3 * side // 4
    seen, hidden = picture.getpixel((left + quarter, top + far)), picture.getpixel((left + far, top + quarter))
    border = picture.getpixel((left + quarter, top + side // 2))
    assert len({seen, hidden, border}) == 3
    assert picture.getpixel((left + quarter, top + quarter)) == seen == picture.getpixel((left + far, top + far))
    assert list(Image.open(stamped).getdata()) != list(picture.getdata())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MASKS.create_causal_frame_mask(0, 2), "num_frames is 0"),
        (lambda: MASKS.create_causal_frame_mask(2, 0), "num_patches_per_frame is 0"),
        (lambda: MASKS.create_sliding_window_frame_mask(2, 2, 0), "window_size is 0"),
        (lambda: MASKS.create_fast_slow_frame_mask(-1, 3, 2), "num_fast_frames is -1"),
        (lambda: MASKS.create_causal_frame_mask(3, 2, frame_times=[0, 1]), "expected 3 finite numbers"),
        (lambda: MASKS.create_causal_frame_mask(2, 2, frame_times=[0, float("nan")]), "expected 2 finite numbers"),
        (lambda: visualize_mask(torch.ones(4, 4, dtype=torch.bool), "m", "m.png", 3), "frames of 3 tokens"),
        (lambda: visualize_mask(torch.ones(4, 4, dtype=torch.bool), "m", "m.png", frame_times=[1]), "expected both"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
