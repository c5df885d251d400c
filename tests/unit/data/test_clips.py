"""Which frames follow each other, where they end in a batch, and what may be cut off."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.batch import ClipSample, Sample
from llava.data.base import DataOptions
from llava.data.clips import ClipOptions, cut_clip, make_clip
from llava.data.collate import DataCollator
from llava.navigation.prompt import Piece

IMAGE, EOT = 9, 8
TOKENS = 3


def picture(shade: int) -> torch.Tensor:
    return torch.full((1, 3, 2, 2), shade, dtype=torch.uint8)


def episode(num_frames: int, first_shade: int = 0, target: int | None = None, words: int = 2) -> Sample:
    """`words` words, then per frame 3 visual tokens, an answer token and its end; frame i at 2i, grey first + i."""
    ids, frame_ids, ends = [1] * words, [-1] * words, {}
    for t in range(num_frames):
        ids += [IMAGE] * TOKENS + [5, EOT]
        frame_ids += [t] * (TOKENS + 2)
        ends[t] = len(ids) - 1
    count = num_frames + (target is not None)
    clip = make_clip(
        list(range(count)),
        [2.0 * t for t in range(count)],
        motions=torch.tensor([[0.5, 0.0, 2.0]] * (count - 1) + [[float("nan")] * 3]),
        answer_ends=ends,
        target_frames=None if target is None else picture(target),
    )
    sample = Sample(
        input_ids=torch.tensor(ids),
        labels=torch.tensor(ids),
        frame_ids=torch.tensor(frame_ids),
        images=torch.cat([picture(first_shade + t) for t in range(num_frames)]),
        sample_id=f"e{first_shade}",
    )
    if clip is not None:
        sample["clip"] = clip
    return sample


def text(length: int = 4) -> Sample:
    ids = torch.full((length,), 1)
    return Sample(input_ids=ids, labels=ids.clone(), sample_id="text")


def still(shade: int) -> Sample:
    """One picture without a clip."""
    ids = torch.tensor([1, *[IMAGE] * TOKENS, 1])
    frame_ids = torch.tensor([-1, 0, 0, 0, 0])
    return Sample(input_ids=ids, labels=ids.clone(), frame_ids=frame_ids, images=picture(shade), sample_id="still")


def collator(**options) -> DataCollator:
    return DataCollator(**{"pad_token_id": 0, "max_length": 100, "image_token_id": IMAGE, **options})


def check_positions(batch) -> None:
    """Every position points at what it says: the last visual token of its own picture, the end of its own answer."""
    clips = batch["clips"]
    for v, row in enumerate(clips["rows"].tolist()):
        ids, frame_ids, segments = (batch[key][row] for key in ("input_ids", "frame_ids", "segment_ids"))
        name = batch["sample_ids"][int(clips["samples"][v])]
        first = int(name[1:])
        for t, frame in enumerate(clips["frames"][v].tolist()):
            end = int(clips["frame_end_positions"][v, t])
            answer = int(clips["answer_end_positions"][v, t])
            if frame == -1 or frame >= len(batch["images"]):
                assert end == -1
                continue
            shade = int(batch["images"][frame, 0, 0, 0])
            number = shade - first
            own = (ids == IMAGE) & (frame_ids == number) & (segments == segments[end])
            assert own.nonzero().flatten().tolist() == [end - 2, end - 1, end]
            if answer != -1:
                assert answer == end + 2
                assert int(ids[answer]) == EOT


def test_padded_rows_give_columns_times_and_pictures():
    batch = collator()([text(), episode(3, 10), still(90), episode(2, 20, target=77)])
    clips = batch["clips"]
    assert clips["rows"].tolist() == [1, 3]
    assert clips["samples"].tolist() == [1, 3]
    assert clips["frames"].tolist() == [[0, 1, 2], [4, 5, 6]]  # the still is picture 3, the target comes behind all 6
    assert batch["images"][:, 0, 0, 0].tolist() == [10, 11, 12, 90, 20, 21]
    assert clips["target_frames"][:, 0, 0, 0].tolist() == [77]
    assert clips["frame_end_positions"].tolist() == [[4, 9, 14], [4, 9, -1]]
    assert clips["answer_end_positions"].tolist() == [[6, 11, 16], [6, 11, -1]]
    assert clips["times"].tolist() == [[0, 2, 4], [0, 2, 4]]
    assert clips["motions"][:, :2].tolist() == [[[0.5, 0.0, 2.0]] * 2] * 2
    assert clips["motions"][:, 2].isnan().all()
    assert {key: value.dtype for key, value in clips.items()} == {
        "frames": torch.int64,
        "target_frames": torch.uint8,
        "samples": torch.int64,
        "rows": torch.int64,
        "frame_end_positions": torch.int64,
        "answer_end_positions": torch.int64,
        "times": torch.float32,
        "motions": torch.float32,
    }


def test_a_shorter_clip_is_padded_at_its_end():
    clips = collator()([episode(2, 10), episode(4, 20)])["clips"]
    assert clips["frames"].tolist() == [[0, 1, -1, -1], [2, 3, 4, 5]]
    assert clips["frame_end_positions"][0].tolist() == [4, 9, -1, -1]
    assert clips["answer_end_positions"][0].tolist() == [6, 11, -1, -1]
    assert clips["times"][0].tolist() == [0, 2, 0, 0]
    assert clips["motions"][0, 1:].isnan().all()
    assert "target_frames" not in clips


def test_left_padding_shifts_the_columns():
    batch = collator(pad_side="left")([episode(2, 10), episode(4, 20)])
    assert batch["clips"]["frame_end_positions"][0].tolist() == [14, 19, -1, -1]
    check_positions(batch)


def test_packing_counts_what_lies_before_and_follows_the_new_order():
    samples = [text(60), episode(5, 10), episode(3, 30)]  # rows of 80: the text with the second episode, then the first
    batch = collator(mode="pack", max_length=80)(samples)
    assert batch["sample_ids"] == ["text", "e30", "e10"]
    assert batch["clips"]["rows"].tolist() == [0, 1]
    assert batch["clips"]["samples"].tolist() == [1, 2]
    assert batch["clips"]["frame_end_positions"].tolist() == [[64, 69, 74, -1, -1], [4, 9, 14, 19, 24]]
    check_positions(batch)


SAMPLES = st.lists(
    st.one_of(
        st.builds(lambda n: ("text", n, None), st.integers(1, 12)),
        st.builds(lambda n, target: ("episode", n, target), st.integers(1, 5), st.sampled_from([None, 250])),
        st.just(("still", 1, None)),
    ),
    min_size=1,
    max_size=6,
)


def build(kinds) -> list[Sample]:
    made = {"text": lambda i, n, target: text(n), "still": lambda i, n, target: still(200)}
    made["episode"] = lambda i, n, target: episode(n, 10 * i, target)
    return [made[kind](i, n, target) for i, (kind, n, target) in enumerate(kinds)]


@settings(max_examples=80, deadline=None)
@given(SAMPLES, st.sampled_from(["pad", "first_fit", "one"]), st.booleans(), st.integers(6, 40))
def test_every_position_points_at_its_own_frame_and_answer_however_rows_are_filled(kinds, rows, left, max_length):
    samples = build(kinds)
    layout = {"mode": "pad"} if rows == "pad" else {"mode": "pack", "rows": rows}
    batch = collator(max_length=max_length, pad_side="left" if left else "right", **layout)(samples)
    expected = []
    for n, target in ((n, target) for kind, n, target in kinds if kind == "episode"):
        left = sum(2 + 5 * t + TOKENS <= max_length for t in range(n))  # whole pictures within the context
        expected.append(left + (left == n and target is not None))
    expected = [count for count in expected if count >= 2]
    found = (batch["clips"]["frames"] >= 0).sum(1).tolist() if "clips" in batch else []
    assert sorted(found) == sorted(expected)
    if expected:
        check_positions(batch)


@settings(max_examples=40, deadline=None)
@given(SAMPLES, st.integers(6, 40))
def test_packed_and_padded_batches_say_the_same_relative_to_the_sample(kinds, max_length):
    samples = build(kinds)
    if not any("clip" in sample for sample in samples):
        samples.append(episode(3, 60, 250))
    found = []
    for layout in ({"mode": "pad"}, {"mode": "pack", "rows": "one"}):
        batch = collator(max_length=max_length, **layout)(samples)
        if "clips" not in batch:
            found.append([])
            continue
        clips, starts = batch["clips"], []
        for row in range(len(batch["segment_ids"])):
            segments = batch["segment_ids"][row]
            starts += [(row, int((segments == s).nonzero()[0])) for s in segments.unique().tolist() if s >= 0]
        first = torch.tensor([starts[i][1] for i in clips["samples"].tolist()])[:, None]
        relative = [
            torch.where(clips[key] == -1, -1, clips[key] - first)
            for key in ("frame_end_positions", "answer_end_positions")
        ]
        found.append([*relative, clips["frames"], clips["times"], clips["motions"].nan_to_num(-7)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("max_length", "frames", "ends", "answers"),
    [
        (17, [0, 1, 2, 3], [4, 9, 14, -1], [6, 11, 16, -1]),  # nothing is cut
        (16, [0, 1, 2, 3], [4, 9, 14, -1], [6, 11, -1, -1]),  # the end of the last answer is
        (14, [0, 1, -1, -1], [4, 9, -1, -1], [6, 11, -1, -1]),  # the last picture, and with it the target behind it
        (11, [0, 1, -1, -1], [4, 9, -1, -1], [6, -1, -1, -1]),
    ],
)
def test_what_is_cut_off_leaves_its_clip(max_length, frames, ends, answers):
    batch = collator(max_length=max_length)([episode(3, 0, target=77)])
    clips = batch["clips"]
    assert clips["frames"].tolist() == [frames]
    assert clips["frame_end_positions"].tolist() == [ends]
    assert clips["answer_end_positions"].tolist() == [answers]
    assert ("target_frames" in clips) == (3 in frames)
    assert len(batch["images"]) == sum(0 <= frame < 3 for frame in frames)
    check_positions(batch)


@pytest.mark.parametrize("max_length", [1, 4, 5, 7, 9])
def test_a_clip_of_which_fewer_than_two_frames_are_left_is_none(max_length):
    batch = collator(max_length=max_length)([episode(3, 0, target=77)])
    assert "clips" not in batch
    assert len(batch.get("images", ())) == (max_length >= 5)


def test_a_target_behind_a_cut_would_be_nobodys_next_frame_and_goes():
    clip = episode(3, 0, target=77)["clip"]
    cut = cut_clip(clip, num_pictures=3, kept_pictures=2, length=12)
    assert cut is not None
    assert cut["frames"].tolist() == [0, 1, -1, -1]
    assert "target_frames" not in cut
    kept = cut_clip(clip, num_pictures=3, kept_pictures=3, length=16)
    assert kept["frames"].tolist() == [0, 1, 2, 3]
    assert "target_frames" in kept


def test_black_history_has_no_picture_and_two_real_frames_make_a_clip():
    clip = make_clip([-1, 1, 2], [0, 5, 7], answer_ends={2: 40})
    assert clip["frames"].tolist() == [-1, 1, 2]
    assert clip["answer_end_positions"].tolist() == [-1, -1, 40]
    assert clip["motions"].isnan().all()
    assert make_clip([-1, -1, 2], [0, 0, 7]) is None
    assert make_clip([], []) is None


def test_without_clips_nothing_is_asked_for_and_nothing_is_said():
    batch = DataCollator(pad_token_id=0, max_length=100)([text(), still(3)])
    assert "clips" not in batch


def test_clips_need_the_image_token_id():
    with pytest.raises(ValueError, match=r"sample e0 has a clip and image_token_id is None.*DataCollator"):
        DataCollator(pad_token_id=0, max_length=100)([text(), episode(2)])


def test_pictures_cut_into_views_have_no_clip():
    sample = episode(2)
    sample["image_sizes"], sample["image_views"] = torch.tensor([[4, 2], [2, 2]]), torch.tensor([2, 1])
    with pytest.raises(ValueError, match=r"sample e0 has a clip and pictures cut into \[2, 1\] views"):
        collator()([sample])


def test_frames_beside_pictures_that_are_cut_into_views_count_views():
    cut = still(50)
    cut["images"] = torch.cat([picture(50), picture(51)])
    cut["image_sizes"], cut["image_views"] = torch.tensor([[4, 2]]), torch.tensor([2])
    batch = collator()([cut, episode(2, 10)])
    assert batch["clips"]["frames"].tolist() == [[2, 3]]
    check_positions(batch)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("frame_ids"), "no frame_ids"),
        (lambda s: s["frame_ids"].clamp_(max=0), r"2 pictures and visual tokens of the pictures \[0\]"),
        (lambda s: s["clip"].update(frames=torch.tensor([0, 5])), r"frames \[0, 5\], expected -1 to 1"),
    ],
)
def test_a_clip_that_does_not_fit_its_sample_is_refused(spoil, message):
    sample = episode(2)
    spoil(sample)
    with pytest.raises(ValueError, match=message):
        collator()([sample])


def test_geometry_is_missing_where_a_clip_has_none():
    samples = [episode(3, 10), episode(2, 20), text()]
    assert "geometry" not in collator()(samples)["clips"]
    samples[1]["clip"]["geometry"] = torch.tensor([[[1.5]], [[2.5]]])
    geometry = collator()(samples)["clips"]["geometry"]
    assert geometry.shape == (2, 3, 1, 1)
    assert geometry[0].isnan().all()
    assert geometry[1, :2, 0, 0].tolist() == [1.5, 2.5]
    assert geometry[1, 2].isnan().all()
    samples[0]["clip"]["geometry"] = torch.zeros(3, 4, 1)
    with pytest.raises(ValueError, match=r"geometry of different shapes in one batch: \[\(1, 1\), \(4, 1\)\]"):
        collator()(samples)


def test_options_are_checked():
    assert DataOptions(clips=ClipOptions(answer_targets=True)).clips.answer_targets
    with pytest.raises((ValueError, TypeError), match="clips"):
        DataOptions(clips={"answer_targets": True})
    with pytest.raises(ValueError, match="turn_degrees is 0"):
        DataOptions(turn_degrees=0)


def test_a_picture_answers_nothing():
    with pytest.raises(ValueError, match="unsupervised"):
        Piece(frame=1, answer_to=0)
    assert set(ClipSample.__annotations__) >= {"frames", "target_frames", "times", "motions", "answer_end_positions"}
