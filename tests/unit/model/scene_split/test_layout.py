"""Slots, positions and blocks of split pictures: what stands before the objects never depends on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llava.constants import IGNORE_INDEX
from llava.model.scene_split import LayoutRule, SceneLayout, Separators, layout_clip, layout_picture, layout_row
from llava.model.scene_split.config import POSITIONS
from tests.unit.model.scene_split.toy import make_tokenizer

IMAGE = 99
SEPARATORS = Separators(background_start=90, background_end=91, objects_start=92, objects_end=93)


def rule_of(positions: str = "in_place", num_places: int = 4, separators: Any = SEPARATORS) -> LayoutRule:
    return LayoutRule(num_places=num_places, image_token_id=IMAGE, separators=separators, positions=positions)


def places(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


def row_of(rule: LayoutRule, pictures: list[SceneLayout], ids: list[int]) -> Any:
    return layout_row(rule, torch.tensor(ids), torch.tensor(ids), pictures)


# ---- one picture, by hand ----


def test_a_picture_is_background_then_objects_between_their_separators():
    layout = layout_picture(rule_of(), places(0, 2, 3), places(1))
    assert layout.token_ids.tolist() == [90, IMAGE, IMAGE, IMAGE, 91, 92, IMAGE, 93]
    assert [(block.kind, block.start, block.stop) for block in layout.blocks] == [
        ("background", 0, 5),
        ("objects", 5, 8),
    ]


@pytest.mark.parametrize(
    ("positions", "separators", "expected", "num_positions"),
    [
        # [BG_START] 0 2 3 [BG_END] [OBJ_START] 1 [OBJ_END]
        ("in_place", SEPARATORS, [0, 2, 4, 5, 6, 1, 3, 7], 8),
        ("in_place", None, [0, 2, 3, 1], 4),
        ("own_range", SEPARATORS, [0, 1, 3, 4, 5, 6, 8, 11], 12),
        ("own_range", None, [0, 2, 3, 5], 8),
        ("sequential", SEPARATORS, [0, 1, 2, 3, 4, 5, 6, 7], 8),
        ("sequential", None, [0, 1, 2, 3], 4),
    ],
)
def test_positions_by_hand(positions: str, separators: Any, expected: list[int], num_positions: int):
    layout = layout_picture(rule_of(positions, separators=separators), places(0, 2, 3), places(1))
    assert layout.position_ids.tolist() == expected
    assert layout.num_positions == num_positions


def test_in_place_without_separators_is_the_unsplit_picture_in_another_order():
    layout = layout_picture(rule_of(separators=None), places(1, 2), places(0, 3))
    assert sorted(layout.position_ids.tolist()) == [0, 1, 2, 3]
    assert layout_picture(rule_of(separators=None), places(0, 1, 2, 3), places()).position_ids.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("background", "objects"), [((0, 1, 2, 3), ()), ((), (0, 1, 2, 3))])
def test_an_empty_group_keeps_its_separators(background: tuple[int, ...], objects: tuple[int, ...]):
    layout = layout_picture(rule_of(), places(*background), places(*objects))
    assert len(layout.token_ids) == 8
    assert [value for value in layout.token_ids.tolist() if value != IMAGE] == [90, 91, 92, 93]


# ---- what a cached prefix relies on ----


@st.composite
def object_sets(draw: Any) -> tuple[list[int], list[int]]:
    """Two sets of objects beside the background 0, 3, 5 of nine places."""
    rest = [1, 2, 4, 6, 7, 8]
    return tuple(sorted(draw(st.sets(st.sampled_from(rest)))) for _ in range(2))  # pyright: ignore


@pytest.mark.parametrize("positions", POSITIONS)
@settings(max_examples=20, deadline=None)
@given(objects=object_sets())
def test_any_objects_can_follow_a_prefix(positions: str, objects: tuple[list[int], list[int]]):
    rule = rule_of(positions, num_places=9)
    layouts = [layout_picture(rule, places(0, 3, 5), places(*each)) for each in objects]
    rows = [row_of(rule, [layout], [1, 2, IMAGE, 3, 4]) for layout in layouts]
    lengths = {row.prefix_length for row in rows}
    assert lengths == {2 + 5}
    prefixes = [(row.input_ids[:7].tolist(), row.position_ids[:7].tolist()) for row in rows]
    assert prefixes[0] == prefixes[1]
    if positions != "sequential":
        assert rows[0].position_ids[-2:].tolist() == rows[1].position_ids[-2:].tolist()
        positions_of = [row.position_ids[8:-3].tolist() for row in rows]
        by_place = [dict(zip(each, own, strict=True)) for each, own in zip(objects, positions_of, strict=True)]
        assert all(by_place[0][place] == by_place[1][place] for place in set(objects[0]) & set(objects[1]))


@pytest.mark.parametrize("positions", POSITIONS)
@settings(max_examples=20, deadline=None)
@given(is_object=st.lists(st.booleans(), min_size=6, max_size=6))
def test_no_two_slots_share_a_position_and_all_lie_within_the_picture(positions: str, is_object: list[bool]):
    mask = torch.tensor(is_object)
    layout = layout_picture(rule_of(positions, num_places=6), (~mask).nonzero()[:, 0], mask.nonzero()[:, 0])
    values = layout.position_ids.tolist()
    assert len(set(values)) == len(values) == 10
    assert min(values) >= 0 and max(values) < layout.num_positions


def test_with_a_range_of_its_own_nothing_is_followed_by_a_smaller_position():
    layout = layout_picture(rule_of("own_range", num_places=6), places(1, 4), places(0, 2, 3, 5))
    assert (layout.position_ids.diff() > 0).all()


def test_a_background_can_be_laid_out_ahead_of_its_objects():
    ahead = layout_picture(rule_of(), places(0, 2, 3), None)
    whole = layout_picture(rule_of(), places(0, 2, 3), places(1))
    assert ahead.position_ids.tolist() == whole.position_ids[:5].tolist()
    assert ahead.token_ids.tolist() == whole.token_ids[:5].tolist()


# ---- rows and clips ----


def test_a_row_is_text_pictures_and_text_with_a_chain_of_blocks():
    rule = rule_of()
    pictures = [layout_picture(rule, places(0, 1, 2), places(3)), layout_picture(rule, places(), places(0, 1, 2, 3))]
    row = row_of(rule, pictures, [1, 5, IMAGE, 6, IMAGE, 7, 8])
    assert row.input_ids.tolist() == [
        *(1, 5, 90, IMAGE, IMAGE, IMAGE, 91, 92, IMAGE, 93),
        *(6, 90, 91, 92, IMAGE, IMAGE, IMAGE, IMAGE, 93, 7, 8),
    ]
    assert row.labels.tolist() == [1, 5, *[IGNORE_INDEX] * 8, 6, *[IGNORE_INDEX] * 8, 7, 8]
    assert row.position_ids.tolist() == [
        *(0, 1, 2, 4, 5, 6, 8, 3, 7, 9),
        *(10, 11, 17, 12, 13, 14, 15, 16, 18, 19, 20),
    ]
    assert [(block.kind, block.start, block.stop) for block in row.blocks] == [
        *(("text", 0, 2), ("background", 2, 7), ("objects", 7, 10), ("text", 10, 11)),
        *(("background", 11, 13), ("objects", 13, 19), ("text", 19, 21)),
    ]
    assert row.prefix_length == 7


def test_a_row_without_pictures_stays_as_it_is():
    row = row_of(rule_of(), [], [1, 2, 3])
    assert (row.input_ids.tolist(), row.position_ids.tolist(), row.prefix_length) == ([1, 2, 3], [0, 1, 2], 0)
    empty = layout_row(rule_of(), places(), None, [])
    assert (empty.input_ids.tolist(), empty.blocks) == ([], ())


def test_a_clip_with_one_background_brings_it_with_its_first_frame():
    frames = layout_clip(rule_of(), [places(0, 2)], [places(1), places(), places(1, 3)])
    assert [frame.token_ids.tolist() for frame in frames] == [
        [90, IMAGE, IMAGE, 91, 92, IMAGE, 93],
        [92, 93],
        [92, IMAGE, IMAGE, 93],
    ]
    row = row_of(rule_of(), frames, [1, IMAGE, 5, IMAGE, 5, IMAGE, 2])
    blocks = [block.kind for block in row.blocks]
    assert blocks == ["text", "background", "objects", "text", "objects", "text", "objects", "text"]
    assert row.position_ids[-1] == 1 + 8 + 1 + 8 + 1 + 8  # every frame takes the room of a whole picture
    assert row.position_ids[13:15].tolist() == [1 + 8 + 1 + 8 + 1 + 2 + 1, 1 + 8 + 1 + 8 + 1 + 2 + 3]


def test_the_background_of_a_clip_may_be_hidden_by_the_objects_of_a_frame():
    assert len(layout_clip(rule_of(), [places(0, 1)], [places(1, 2), places(0)])) == 2


def test_a_clip_with_a_background_per_frame_is_a_row_of_pictures():
    frames = layout_clip(rule_of(), [places(0, 1), places(2)], [places(2), places(0, 1)])
    pictures = [layout_picture(rule_of(), places(0, 1), places(2)), layout_picture(rule_of(), places(2), places(0, 1))]
    assert [frame.token_ids.tolist() for frame in frames] == [each.token_ids.tolist() for each in pictures]


# ---- bad input ----


@pytest.mark.parametrize(
    ("background", "objects", "message"),
    [
        ((0, 1), (1, 2), r"places \[1\] are in the background and in the objects"),
        ((1, 0), (), r"places of the background are \[1, 0\], expected ascending numbers of 0..3"),
        ((0, 0), (), "ascending"),
        ((0,), (4,), r"places of the objects are \[4\]"),
        ((-1,), (), r"places of the background are \[-1\]"),
    ],
)
def test_places_that_cannot_be_are_refused(background: Any, objects: Any, message: str):
    with pytest.raises(ValueError, match=message):
        layout_picture(rule_of(), places(*background), places(*objects))


def test_other_mistakes_are_named():
    with pytest.raises(ValueError, match="did you mean 'in_place'"):
        rule_of("inplace")
    with pytest.raises(ValueError, match="num_places is 0"):
        rule_of(num_places=0)
    with pytest.raises(ValueError, match="2 placeholders and 1 pictures"):
        row_of(rule_of(), [layout_picture(rule_of(), places(0), places(1))], [IMAGE, IMAGE])
    with pytest.raises(ValueError, match=r"2 backgrounds for 3 frames, expected 1 .* or 3"):
        layout_clip(rule_of(), [places(0), places(0)], [places(1)] * 3)
    with pytest.raises(ValueError, match=r"no token \[BG_START\], \[BG_END\], \[OBJ_START\], \[OBJ_END\]"):
        Separators.of(make_tokenizer())
