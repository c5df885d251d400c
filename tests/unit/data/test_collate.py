"""Collation: nothing lost, nothing trained across a border, no half pictures."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.batch import Sample
from llava.constants import IGNORE_INDEX
from llava.data.collate import DataCollator, first_fit

IMAGE = 9


def text_sample(length: int, start: int = 100, name: str = "s") -> Sample:
    ids = torch.arange(start, start + length)
    return Sample(input_ids=ids, labels=ids.clone(), sample_id=name)


def picture_sample(num_pictures: int, tokens_per_image: int = 3, tail: int = 2) -> Sample:
    ids = torch.tensor(([1] + [IMAGE] * tokens_per_image) * num_pictures + [2] * tail)
    images = torch.stack([torch.full((3, 2, 2), i, dtype=torch.uint8) for i in range(num_pictures)])
    return Sample(input_ids=ids, labels=ids.clone(), images=images, sample_id="p")


def test_masks_come_from_lengths_even_when_the_pad_id_is_a_real_token():
    batch = DataCollator(pad_token_id=101, max_length=16)([text_sample(4), text_sample(2)])
    assert batch["attention_mask"].tolist() == [[True] * 4, [True, True, False, False]]
    assert batch["input_ids"].tolist() == [[100, 101, 102, 103], [100, 101, 101, 101]]
    assert batch["labels"][1].tolist() == [IGNORE_INDEX, 101, IGNORE_INDEX, IGNORE_INDEX]
    assert batch["segment_ids"].tolist() == [[0, 0, 0, 0], [0, 0, -1, -1]]
    assert "images" not in batch


def test_left_padding_puts_the_tokens_at_the_end():
    batch = DataCollator(pad_token_id=0, max_length=16, pad_side="left")([text_sample(3), text_sample(1)])
    assert batch["attention_mask"].tolist() == [[True] * 3, [False, False, True]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]


def test_packing_restarts_positions_and_never_trains_across_samples():
    batch = DataCollator(pad_token_id=0, max_length=8, mode="pack")([text_sample(3), text_sample(6), text_sample(4)])
    assert batch["segment_ids"].tolist() == [[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, -1]]
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert batch["labels"][0].tolist() == [IGNORE_INDEX, 101, 102, IGNORE_INDEX, 101, 102, 103]


def test_one_row_packing_lays_all_samples_end_to_end():
    batch = DataCollator(pad_token_id=0, max_length=8, mode="pack", rows="one", pad_to_multiple_of=8)(
        [text_sample(8), text_sample(5)]
    )
    assert batch["input_ids"].shape == (1, 16)
    assert batch["attention_mask"].sum() == 13


def test_pictures_follow_their_samples_when_packing_changes_the_order():
    samples = [text_sample(7, name="a"), picture_sample(2, tail=1), picture_sample(1, tail=1)]
    samples[2]["images"] = samples[2]["images"] + 7
    batch = DataCollator(pad_token_id=0, max_length=12, mode="pack")([*samples[:2], samples[2]])
    assert batch["sample_ids"] == ["a", "p", "p"]  # row 0: a and the second picture sample, row 1: the first
    assert batch["images"][:, 0, 0, 0].tolist() == [7, 0, 1]


def test_given_branches_frames_and_positions_are_kept():
    sample = text_sample(4)
    sample["position_ids"] = torch.tensor([0, 1, 2, 2])
    sample["branch_ids"] = torch.tensor([0, 0, 1, 0])
    sample["frame_ids"] = torch.tensor([-1, 0, 0, 1])
    batch = DataCollator(pad_token_id=0, max_length=16, mode="pack", rows="one")([text_sample(2), sample])
    assert batch["position_ids"][0].tolist() == [0, 1, 0, 1, 2, 2]
    assert batch["branch_ids"][0].tolist() == [0, 0, 0, 0, 1, 0]
    assert batch["frame_ids"][0].tolist() == [-1, -1, -1, 0, 0, 1]


@pytest.mark.parametrize(
    ("max_length", "tokens", "pictures"), [(12, 10, 2), (9, 9, 2), (8, 8, 2), (7, 5, 1), (4, 4, 1), (3, 1, 0)]
)
def test_truncation_keeps_whole_pictures_only_and_counts(max_length, tokens, pictures, caplog):
    collate = DataCollator(pad_token_id=0, max_length=max_length, image_token_id=IMAGE)
    batch = collate([picture_sample(2)])
    assert batch["input_ids"].shape[1] == tokens
    assert len(batch.get("images", [])) == pictures
    assert (batch["input_ids"] == IMAGE).sum() == 3 * pictures
    assert collate.statistics.dropped_pictures == 2 - pictures
    assert ("10 tokens cut" in caplog.text) == (tokens < 10)


def test_an_overlong_sample_can_be_refused_with_its_name():
    with pytest.raises(ValueError, match=r"sample p has 10 tokens, the context holds 5; raise --model_max_length"):
        DataCollator(pad_token_id=0, max_length=5, overlong="raise")([picture_sample(2)])


def test_cutting_pictures_without_the_image_token_id_is_an_error():
    with pytest.raises(ValueError, match="image_token_id"):
        DataCollator(pad_token_id=0, max_length=5)([picture_sample(2)])


def test_pictures_of_different_sizes_are_refused():
    other = picture_sample(1)
    other["images"] = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="different sizes"):
        DataCollator(pad_token_id=0, max_length=50)([picture_sample(1), other])


def test_wrong_choices_are_named():
    with pytest.raises((ValueError, TypeError), match="packed"):
        DataCollator(pad_token_id=0, max_length=4, mode="packed")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 samples"):
        DataCollator(pad_token_id=0, max_length=4)([])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=20),
    st.sampled_from(["pad", "pack"]),
    st.sampled_from(["first_fit", "one"]),
    st.booleans(),
)
def test_no_token_is_lost_or_duplicated(lengths, mode, rows, left):
    samples = [text_sample(n, start=1000 * (i + 1), name=str(i)) for i, n in enumerate(lengths)]
    collate = DataCollator(pad_token_id=0, max_length=12, mode=mode, rows=rows, pad_side="left" if left else "right")
    batch = collate(samples)
    real = batch["attention_mask"]
    assert sorted(batch["input_ids"][real].tolist()) == sorted(t for s in samples for t in s["input_ids"].tolist())
    assert (batch["segment_ids"][~real] == -1).all()
    assert (batch["labels"][~real] == IGNORE_INDEX).all()
    trained = batch["labels"] != IGNORE_INDEX
    assert trained.sum() == sum(n - 1 for n in lengths)
    assert (batch["labels"][trained] == batch["input_ids"][trained]).all()
    assert collate.statistics.tokens == sum(lengths)
    assert collate.statistics.slots == real.numel()


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 30))
def test_first_fit_places_every_sample_once_and_overfills_no_row(lengths, capacity):
    rows = first_fit(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(len(row) == 1 or sum(lengths[i] for i in row) <= capacity for row in rows)
