"""Grids of tiles, against transformers' own rule for the same tiling."""

import random

import pytest
from transformers.models.got_ocr2 import image_processing_got_ocr2 as peer

from llava.utils.tiles import count_tiles, tile_grid


def test_a_thousand_random_pictures_get_the_grid_that_transformers_gives():
    draw = random.Random(0)
    for _ in range(1000):
        width, height = draw.randint(8, 3000), draw.randint(8, 3000)
        most = draw.choice([1, 2, 6, 9, 12])
        expected = peer.get_optimal_tiled_canvas((height, width), (448, 448), 1, most)
        assert tile_grid(width, height, 448, 1, most) == tuple(expected), (width, height, most)


@pytest.mark.parametrize(("size", "grid"), [((800, 400), (2, 1)), ((400, 800), (1, 2)), ((448, 448), (1, 1))])
def test_columns_come_first(size, grid):
    assert tile_grid(*size, 448) == grid


def test_the_whole_picture_follows_several_tiles_only():
    assert count_tiles(1, 1) == 1
    assert count_tiles(3, 2) == 7


def test_fewest_tiles_are_kept():
    columns, rows = tile_grid(100, 100, 448, 4, 6)
    assert columns * rows == 4


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="min_tiles is 3 and max_tiles 2"):
        tile_grid(10, 10, 4, 3, 2)
    with pytest.raises(ValueError, match="0 x 10"):
        tile_grid(0, 10, 4)
