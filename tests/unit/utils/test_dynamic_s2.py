"""Grids and token counts of pictures at every scale, against counting by hand."""

import random
from types import SimpleNamespace

import pytest

from llava.utils.dynamic_s2 import DynamicS2Rule, dynamic_s2_rule, read_scales

NVILA = (448, 896, 1344)


def nearest_grid(width: int, height: int, side: int, fewest: int, most: int) -> tuple[int, int]:
    """(columns, rows) by trying all grids, the smallest first; of two equally near the larger for a large picture."""
    best, least = None, None
    for tiles in range(fewest, most + 1):
        for columns in range(1, tiles + 1):
            if tiles % columns:
                continue
            rows = tiles // columns
            off = abs(width / height - columns / rows)
            if least is None or off < least or (off == least and 2 * width * height > side * side * tiles):
                best, least = (columns, rows), off
    assert best is not None
    return best


@pytest.mark.parametrize("output", [-1, 0, 1, 2])
def test_tokens_of_a_thousand_random_sizes(output):
    """The 448-pixel tower of NVILA behind its 3 x 3 projector: 11 x 11 tokens a tile, 9 to 12 tiles."""
    rule, draw = DynamicS2Rule(scales=NVILA, patches=11, output=output), random.Random(0)
    for _ in range(1000):
        height, width = draw.randint(8, 3000), draw.randint(8, 3000)
        columns, rows = nearest_grid(width, height, 448, 9, 12)
        layout = rule.layout(height, width)
        assert layout.grids == ((1, 1), (2, 2), (rows, columns)), (height, width)
        assert layout.num_tiles == 1 + 4 + rows * columns
        assert layout.num_tokens == {0: 121, 1: 484}.get(output, rows * columns * 121)
        assert layout.num_tokens <= rule.most_views * 121


def test_a_picture_that_is_not_cut_is_one_tile():
    layout = DynamicS2Rule(scales=NVILA, patches=11, output=-1).layout(0, 0)
    assert (layout.num_tiles, layout.shown, layout.num_tokens) == (1, (1, 1), 121)


def test_only_a_picture_alone_is_cut():
    rule = DynamicS2Rule(scales=NVILA, patches=11)
    assert [rule.cuts(number) for number in (0, 1, 2)] == [False, True, False]


def test_one_scale_is_a_dynamic_grid():
    layout = DynamicS2Rule(scales=(448,), patches=1, max_tiles=6, output=-1).layout(300, 900)
    assert (layout.grids, layout.num_tokens) == (((1, 3),), 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": 3}, r"s2_resize_output_to_scale_idx is 3, expected an index .*-3..2"),
        ({"max_tiles": 8}, "max_tiles is 8, expected at least 9"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DynamicS2Rule(**{"scales": NVILA, "patches": 11, **change})


def test_the_words_of_the_config():
    stored = {"image_aspect_ratio": "dynamic_s2", "dynamic_s2": True, "s2_scales": "448,1344,896"}
    rule = dynamic_s2_rule(SimpleNamespace(**stored, s2_resize_output_to_scale_idx=-1, max_tiles=10), 11)
    assert rule == DynamicS2Rule(scales=NVILA, patches=11, max_tiles=10, output=-1)
    assert dynamic_s2_rule(SimpleNamespace(**stored), 11) == DynamicS2Rule(scales=NVILA, patches=11)
    assert dynamic_s2_rule(SimpleNamespace(image_aspect_ratio="dynamic"), 11) is None
    assert read_scales([896, 448]) == (448, 896)
    with pytest.raises(ValueError, match="the tower has one scale; set dynamic_s2 and s2_scales"):
        dynamic_s2_rule(SimpleNamespace(**{**stored, "dynamic_s2": False}), 11)
