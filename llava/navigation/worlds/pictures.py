"""Pictures for people: what the robot sees side by side, and a house from above with the ways in it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw

from llava.navigation.worlds.base import Coordinates, Episode
from llava.navigation.worlds.demonstrations import Demonstrations
from llava.navigation.worlds.house import HouseBatch
from llava.navigation.worlds.tables import (
    BALL,
    BOX,
    COLOUR_NAMES,
    CONE,
    FLOOR_TINTS,
    FORWARD_X,
    FORWARD_Z,
    NUM_PATTERNS,
    OBJECT_COLOURS,
    WALL_TINTS,
)

OVERSIZE = 3  # drawn larger, then reduced: smooth lines
PAPER, REFERENCE, WALKED, START, INK = (250, 250, 248), (70, 70, 70), (215, 40, 140), (40, 120, 230), (40, 40, 40)


def film_strip(
    frames: UInt8[np.ndarray, "f h w 3"], shown: int = 8, side: int = 160, captions: Sequence[str] = ()
) -> Image.Image:
    """`shown` frames spread evenly over an episode from left to right, the first and the last among them."""
    picked = np.unique(np.linspace(0, len(frames) - 1, min(shown, len(frames))).round().astype(int))
    sheet = Image.new("RGB", (len(picked) * (side + 4) - 4, side), PAPER)
    for place, index in enumerate(picked.tolist()):
        picture = Image.fromarray(frames[index]).resize((side, side), Image.Resampling.NEAREST)
        caption = str(captions[index] if index < len(captions) else index)
        draw = ImageDraw.Draw(picture)
        draw.rectangle((0, 0, 8 + 6 * len(caption), 13), fill=(0, 0, 0))
        draw.text((4, 1), caption, fill=(255, 255, 255))
        sheet.paste(picture, (place * (side + 4), 0))
    return sheet


class _Canvas:
    """Metres to pixels of an oversized picture."""

    def __init__(self, bounds: np.ndarray, side: int) -> None:
        x0, z0, x1, z1 = (float(value) for value in bounds)
        self.x0, self.z0, margin = x0 - 0.3, z0 - 0.3, 0.6
        self.scale = side * OVERSIZE / max(x1 - x0 + margin, z1 - z0 + margin)
        self.size = (round((x1 - x0 + margin) * self.scale), round((z1 - z0 + margin) * self.scale))
        self.image = Image.new("RGB", self.size, PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def at(self, x: float, z: float) -> tuple[float, float]:
        return (x - self.x0) * self.scale, (z - self.z0) * self.scale

    def box(self, x0: float, z0: float, x1: float, z1: float, fill: tuple[int, int, int]) -> None:
        self.draw.rectangle((*self.at(x0, z0), *self.at(x1, z1)), fill=fill)

    def disc(self, x: float, z: float, radius: float, fill: tuple[int, int, int] | None, ring: bool = False) -> None:
        area = (*self.at(x - radius, z - radius), *self.at(x + radius, z + radius))
        self.draw.ellipse(area, fill=fill, outline=INK, width=2 * OVERSIZE if ring else OVERSIZE)

    def line(self, points: Sequence[tuple[float, float]], fill: tuple[int, int, int], width: float | int) -> None:
        if len(points) > 1:
            self.draw.line(
                [self.at(*point) for point in points], fill=fill, width=round(width * OVERSIZE), joint="curve"
            )

    def reduced(self) -> Image.Image:
        return self.image.resize((self.size[0] // OVERSIZE, self.size[1] // OVERSIZE), Image.Resampling.BOX)


def draw_map(
    houses: HouseBatch,
    index: int,
    *,
    walked: Float[np.ndarray, "t 3"] | None = None,
    reference: Sequence[Coordinates] = (),
    goals: Sequence[Coordinates] = (),
    start_heading: int | None = None,
    side: int = 480,
) -> Image.Image:
    """A house from above, north (-z) up: rooms, objects in their colours, reference way dashed, walked way magenta.

    Args:
        goals: drawn as rings of 1 m, the smallest radius that counts as success.
        start_heading: draws an arrow at the first position, in multiples of 15 degrees.
    """
    canvas = _Canvas(houses.bounds[index], side)
    _draw_rooms(canvas, houses, index)
    for goal in goals:
        canvas.disc(goal[0], goal[2], 1.0, None, ring=True)
    _draw_objects(canvas, houses, index)
    for a, b in _dashes([(point[0], point[2]) for point in reference]):
        canvas.line([a, b], REFERENCE, 2)
    way = [] if walked is None else [(float(point[0]), float(point[2])) for point in walked]
    canvas.line(way, WALKED, 2.5)
    begin = way[0] if way else (reference[0][0], reference[0][2]) if len(reference) else None
    if way:
        canvas.disc(*way[-1], 0.12, WALKED)
    if begin is not None:
        _draw_start(canvas, begin, start_heading)
    return canvas.reduced()


def _draw_rooms(canvas: _Canvas, houses: HouseBatch, index: int) -> None:
    x0, z0, x1, z1 = (float(value) for value in houses.bounds[index])
    canvas.box(x0 - 0.2, z0 - 0.2, x1 + 0.2, z1 + 0.2, (90, 90, 94))
    rows, columns = (int(value) for value in houses.grid[index])
    size = float(houses.room_size[index])
    for room in range(rows * columns):
        row, column = divmod(room, columns)
        area = (max(x0, column * size), max(z0, row * size), min(x1, (column + 1) * size), min(z1, (row + 1) * size))
        wall = WALL_TINTS[int(houses.wall_texture[index, room, 0]) // NUM_PATTERNS]
        floor = FLOOR_TINTS[int(houses.floor_tint[index, room])]
        light = tuple(min(255, (2 * f + w) // 3 + 70) for f, w in zip(floor, wall, strict=True))
        canvas.box(*area, (light[0], light[1], light[2]))
    for x0, z0, x1, z1 in houses.wall_boxes[index].tolist():
        if x0 == x0:  # absent boxes are NaN
            canvas.box(x0, z0, x1, z1, (90, 90, 94))


def _draw_objects(canvas: _Canvas, houses: HouseBatch, index: int) -> None:
    for k in range(int(houses.num_objects[index])):
        x, z, r = (float(values[index, k]) for values in (houses.object_x, houses.object_z, houses.radius))
        colour = OBJECT_COLOURS[COLOUR_NAMES[houses.colour[index, k]]]
        shape = int(houses.shape[index, k])
        if shape == BOX:
            canvas.draw.rectangle((*canvas.at(x - r, z - r), *canvas.at(x + r, z + r)), colour, INK, OVERSIZE)
        else:
            canvas.disc(x, z, r, colour)
        if shape == CONE:
            canvas.disc(x, z, 0.05, INK)
        elif shape == BALL:
            canvas.disc(x - 0.3 * r, z - 0.3 * r, 0.2 * r, (255, 255, 255))


def _draw_start(canvas: _Canvas, begin: tuple[float, float], heading: int | None) -> None:
    if heading is not None:
        forward = float(FORWARD_X[heading % 24]), float(FORWARD_Z[heading % 24])
        canvas.line([begin, (begin[0] + 0.6 * forward[0], begin[1] + 0.6 * forward[1])], START, 4)
    canvas.disc(*begin, 0.16, START)


def _dashes(points: Sequence[tuple[float, float]], dash: float = 0.15) -> list[tuple[tuple[float, float], ...]]:
    """Every second piece of a way cut into equal dashes."""
    pieces = []
    for a, b in pairwise(points):
        count = max(1, round(((b[0] - a[0]) ** 2 + (b[1] - a[1]) ** 2) ** 0.5 / dash))
        cuts = [(a[0] + (b[0] - a[0]) * i / count, a[1] + (b[1] - a[1]) * i / count) for i in range(count + 1)]
        pieces += [(cuts[i], cuts[i + 1]) for i in range(0, count, 2)]
    return pieces


def draw_demonstration(
    walks: Demonstrations, e: int, episode: Episode, frames: UInt8[np.ndarray, "f h w 3"]
) -> Image.Image:
    """Instruction, map and film strip of one walked episode on a sheet."""
    part = slice(int(walks.frame_start[e]), int(walks.frame_start[e + 1]))
    way = np.stack([walks.x[part], 0 * walks.x[part], walks.z[part]], axis=1)
    chart = draw_map(
        walks.houses,
        e,
        walked=way,
        reference=episode.reference_path,
        goals=episode.goals,
        start_heading=int(walks.houses.start_heading[e]),
        side=330,
    )
    strip = film_strip(frames, shown=8, side=160, captions=_captions(walks.action[part]))
    sheet = Image.new("RGB", (chart.width + 8 + strip.width // 2 + 4, max(chart.height, 2 * 160 + 4) + 20), PAPER)
    ImageDraw.Draw(sheet).text((4, 4), episode.instruction, fill=INK)
    sheet.paste(chart, (0, 20))
    half = strip.width // 2 + 2
    sheet.paste(strip.crop((0, 0, half, 160)), (chart.width + 8, 20))
    sheet.paste(strip.crop((half, 0, strip.width, 160)), (chart.width + 8, 184))
    return sheet


def _captions(actions: Int[np.ndarray, " f"]) -> list[str]:
    return [f"{i} {('stop', 'forward', 'left', 'right')[action]}" for i, action in enumerate(actions.tolist())]
