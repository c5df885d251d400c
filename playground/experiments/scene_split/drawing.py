"""Rooms seen by a camera that stands still: a textured background with furniture, and objects that change before it.

A picture is 4 x 4 spots of 32 pixels. The top row belongs to the wall: a clock in one corner, something flat that hangs
elsewhere. One piece of furniture stands below, and objects take spots around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw

from llava.navigation.worlds.house import pick_integers, random_pool
from llava.utils.registry import Registry

SIDE, SPOT = 128, 32
RADIUS = 9
"""Half the width of an object."""
JITTER = 8
"""Pixels by which an object stands beside the middle of its spot, at most."""
HOURS = 12
FLOOR_LINE = 68
SCENE_STREAM = 1 << 24

COLOURS = {"red": (214, 32, 36), "green": (24, 160, 60), "blue": (32, 70, 224), "yellow": (246, 212, 30)}
PAINTS = {"brown": (112, 72, 40), "black": (26, 26, 30), "white": (240, 240, 236), "pink": (230, 140, 170)}
WALLS = ((176, 166, 150), (150, 160, 168), (166, 174, 156), (186, 164, 150), (172, 160, 176), (196, 188, 172))
FLOORS = ((146, 120, 96), (128, 128, 130), (112, 120, 110), (158, 146, 124))
PIECES = ("sofa", "table", "bench")
HANGINGS = ("shelf", "curtain", "poster")

Drawer = Callable[[ImageDraw.ImageDraw, int, int, tuple[int, int, int]], None]
SHAPES: Registry[Drawer] = Registry("shape")


@SHAPES.register("ball")
def _ball(draw: ImageDraw.ImageDraw, x: int, y: int, colour: tuple[int, int, int]) -> None:
    draw.ellipse((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS), fill=colour)


@SHAPES.register("box")
def _box(draw: ImageDraw.ImageDraw, x: int, y: int, colour: tuple[int, int, int]) -> None:
    draw.rectangle((x - RADIUS + 1, y - RADIUS + 1, x + RADIUS - 1, y + RADIUS - 1), fill=colour)


@SHAPES.register("cone")
def _cone(draw: ImageDraw.ImageDraw, x: int, y: int, colour: tuple[int, int, int]) -> None:
    draw.polygon(((x, y - RADIUS), (x + RADIUS, y + RADIUS), (x - RADIUS, y + RADIUS)), fill=colour)


@dataclass(frozen=True, kw_only=True)
class Thing:
    """An object: x and y of its middle in pixels."""

    shape: str
    colour: str
    x: int
    y: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What never changes before one camera, drawn from a seed.

    Attributes:
        piece: the furniture on the floor; piece_x: its middle.
        clock_x: middle of the clock, in the top row.
    """

    seed: int
    wall: int
    pattern: int
    floor: int
    piece: str
    piece_paint: str
    piece_x: int
    hanging: str
    hanging_paint: str
    hanging_x: int
    clock_x: int

    @classmethod
    def of(cls, seed: int) -> Scene:
        """Paints follow the seed's number, so that every piece has every paint equally often."""
        draw = random_pool(np.array([seed]), SCENE_STREAM, 8)[0]
        paints = tuple(PAINTS)
        left = bool(draw[0] < 0.5)
        column = 1 + int(draw[1] < 0.5)
        return cls(
            seed=seed,
            wall=int(pick_integers(draw[2:3], len(WALLS))[0]),
            pattern=int(pick_integers(draw[3:4], 4)[0]),
            floor=int(pick_integers(draw[4:5], len(FLOORS))[0]),
            piece=PIECES[seed // 4 % 3],
            piece_paint=paints[seed % 4],
            piece_x=16 + SPOT * column + int(pick_integers(draw[5:6], 9)[0]) - 4,
            hanging=HANGINGS[seed // 4 % 3],
            hanging_paint=paints[(seed + seed // 12) % 4],
            hanging_x=int(72 + 24 * draw[6]) if left else int(32 + 24 * draw[6]),
            clock_x=16 if left else SIDE - 16,
        )

    @property
    def piece_column(self) -> int:
        return self.piece_x // SPOT


def background(scene: Scene) -> UInt8[np.ndarray, "h w 3"]:
    """Wall, floor and furniture, without any object."""
    return _background(scene).copy()


@lru_cache(maxsize=512)
def _background(scene: Scene) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    tone = (
        np.stack([columns // 8, rows // 6, columns // 8 + rows // 8, (columns // 4) * (rows // 4)])[scene.pattern] % 2
    )
    wall = np.asarray(WALLS[scene.wall]) - 16 * tone[..., None]
    boards = (columns + 2 * rows) // 14 % 2
    floor = np.asarray(FLOORS[scene.floor]) - 12 * boards[..., None]
    canvas = Image.fromarray(np.where(rows[..., None] < FLOOR_LINE, wall, floor).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    _hang(draw, scene)
    _stand(draw, scene)
    return np.asarray(canvas)


def furniture_mask(scene: Scene) -> Bool[np.ndarray, "h w"]:
    """Where the piece of furniture is, objects before it not taken out."""
    blank = Image.new("RGB", (SIDE, SIDE))
    _stand(ImageDraw.Draw(blank), scene)
    return np.asarray(blank)[..., 0] > 0


def _hang(draw: ImageDraw.ImageDraw, scene: Scene) -> None:
    x, paint = scene.hanging_x, PAINTS[scene.hanging_paint]
    if scene.hanging == "shelf":
        draw.rectangle((x - 22, 20, x + 22, 27), fill=paint, outline=(70, 60, 50))
    elif scene.hanging == "curtain":
        for fold in range(-18, 18, 9):
            draw.rectangle((x + fold, 2, x + fold + 6, 29), fill=paint, outline=(90, 80, 80))
    else:
        draw.rectangle((x - 12, 3, x + 12, 28), fill=paint, outline=(60, 50, 50), width=2)


def _stand(draw: ImageDraw.ImageDraw, scene: Scene) -> None:
    x, paint = scene.piece_x, PAINTS[scene.piece_paint]
    if scene.piece == "sofa":
        draw.rectangle((x - 15, 80, x + 15, 94), fill=paint, outline=(60, 60, 60))
        draw.rectangle((x - 18, 88, x + 18, 108), fill=paint, outline=(60, 60, 60))
    elif scene.piece == "table":
        draw.rectangle((x - 18, 82, x + 18, 88), fill=paint, outline=(60, 60, 60))
        for leg in (-15, 12):
            draw.rectangle((x + leg, 88, x + leg + 3, 110), fill=paint, outline=(60, 60, 60))
    else:
        draw.rectangle((x - 18, 92, x + 18, 99), fill=paint, outline=(60, 60, 60))
        draw.rectangle((x - 12, 99, x + 12, 106), fill=paint, outline=(60, 60, 60))


def _clock(draw: ImageDraw.ImageDraw, scene: Scene, hour: int, *, is_mask: bool) -> None:
    x, y = scene.clock_x, 16
    face, ink = ((255,) * 3, (255,) * 3) if is_mask else ((250, 250, 244), (20, 20, 20))
    draw.ellipse((x - 13, y - 13, x + 13, y + 13), fill=face, outline=ink)
    angle = 2 * np.pi * hour / HOURS
    tip = round(x + 10 * np.sin(angle)), round(y - 10 * np.cos(angle))
    draw.line(((x, y), tip), fill=ink, width=3)


def draw_picture(
    scene: Scene, hour: int, things: tuple[Thing, ...]
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "n h w"], list[str]]:
    """The picture, the true mask of every object (the clock first) and their names."""
    canvas = Image.fromarray(background(scene))
    masks = []
    for number in range(len(things) + 1):
        blank = Image.new("RGB", (SIDE, SIDE))
        for image, is_mask in ((canvas, False), (blank, True)):
            draw = ImageDraw.Draw(image)
            if number == 0:
                _clock(draw, scene, hour, is_mask=is_mask)
            else:
                thing = things[number - 1]
                SHAPES[thing.shape](draw, thing.x, thing.y, (255, 255, 255) if is_mask else COLOURS[thing.colour])
        masks.append(np.asarray(blank)[..., 0] > 0)
    return np.asarray(canvas), np.stack(masks), ["clock", *(thing.shape for thing in things)]
