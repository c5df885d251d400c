"""How a picture of any shape is cut into square tiles: the one size function of the data side and the model side."""

from __future__ import annotations


def tile_grid(width: int, height: int, side: int, min_tiles: int = 1, max_tiles: int = 12) -> tuple[int, int]:
    """Columns and rows of the grid of `min_tiles` to `max_tiles` tiles whose shape is nearest to the picture's.

    Of two grids equally near, the larger one wins where the picture has more than half of its pixels (InternVL's rule,
    which NVILA's `dynamic` uses).

    >>> tile_grid(800, 400, 448)
    (2, 1)
    """
    if min(width, height, side) < 1:
        raise ValueError(
            f"a picture of {width} x {height} cannot be cut into tiles of {side}; expected at least 1 pixel"
        )
    if not 1 <= min_tiles <= max_tiles:
        raise ValueError(f"min_tiles is {min_tiles} and max_tiles {max_tiles}, expected 1 <= min_tiles <= max_tiles")
    shape, best, least = width / height, (1, 1), float("inf")
    for columns, rows in _grids(min_tiles, max_tiles):
        distance = abs(shape - columns / rows)
        is_large_enough = width * height > 0.5 * side * side * columns * rows
        if distance < least or (distance == least and is_large_enough):
            best, least = (columns, rows), distance
    return best


def _grids(min_tiles: int, max_tiles: int) -> list[tuple[int, int]]:
    """All (columns, rows) with so many tiles, the smallest first."""
    found = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles // columns + 1)
        if columns * rows >= min_tiles
    ]
    return sorted(found, key=lambda grid: (grid[0] * grid[1], grid))


def count_tiles(columns: int, rows: int) -> int:
    """Pictures that a grid becomes: its tiles, and the whole picture once more when there are several."""
    return columns * rows + (columns * rows > 1)
