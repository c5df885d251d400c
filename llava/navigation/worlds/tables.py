"""Look-up tables: headings, colours, shapes, wall textures. Nothing depends on a maths library's rounding."""

from __future__ import annotations

import numpy as np


def _exact_cosines() -> np.ndarray:
    """cos(15 k degrees), k = 0..23, from square roots (IEEE rounds those the same way everywhere)."""
    root2, root3, root6 = np.sqrt(2.0), np.sqrt(3.0), np.sqrt(6.0)
    quarter = np.array([1.0, (root6 + root2) / 4, root3 / 2, root2 / 2, 0.5, (root6 - root2) / 4, 0.0])
    half = np.concatenate([quarter, -quarter[-2::-1]])  # 0..180 degrees
    return np.concatenate([half, half[-2:0:-1]])


COS = _exact_cosines()  # [24]
SIN = COS[(np.arange(24) - 6) % 24]  # [24]
FORWARD_X, FORWARD_Z = -SIN, -COS  # walking direction of heading index k
RIGHT_X, RIGHT_Z = COS, -SIN  # to the right of heading index k
ROOT_HALF = float(np.sqrt(0.5))

OBJECT_COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 28, 32),
    "green": (28, 168, 52),
    "blue": (36, 66, 232),
    "yellow": (248, 216, 24),
    "purple": (152, 38, 190),
    "cyan": (24, 206, 218),
    "orange": (250, 126, 14),
    "white": (248, 248, 248),
}
COLOUR_NAMES = tuple(OBJECT_COLOURS)
SHAPE_NAMES = ("ball", "box", "cone", "cylinder")
BALL, BOX, CONE, CYLINDER = range(4)
LINTEL = 4  # a box above a doorway, part of the background
SHAPE_RADIUS_M = np.array([0.40, 0.34, 0.42, 0.32])
SHAPE_HEIGHT_M = np.array([0.80, 0.80, 1.10, 1.05])

WALL_TINTS = (
    (176, 164, 148),
    (150, 158, 166),
    (164, 172, 152),
    (186, 160, 146),
    (140, 144, 138),
    (170, 158, 172),
    (196, 188, 170),
    (126, 134, 146),
)
FLOOR_TINTS = ((146, 118, 92), (128, 128, 130), (112, 118, 108), (160, 146, 122))
CEILING_TINTS = ((206, 206, 202), (188, 192, 198))
FRAME_TINT = (88, 74, 64)  # the piece of wall above a doorway
NUM_PATTERNS = 6

NUM_TONES = 8  # brightness steps of a surface: texture tone of a wall, light on an object
NUM_SHADES = 32  # steps of distance
SHADES_PER_M = 2.5
TEXTURE_U, TEXTURE_V = 16, 32  # texels: 8 per metre along a wall, 12 per metre upwards
TEXELS_PER_M_U, TEXELS_PER_M_V = 8.0, 12.0
CEILING_M, DOOR_TOP_M = 2.6, 2.1
TILE_M = 0.5  # floor squares

NUM_WALL_TINTS, NUM_FLOOR_TINTS, NUM_CEILING_TINTS = len(WALL_TINTS), len(FLOOR_TINTS), len(CEILING_TINTS)
FLOOR_BASE = NUM_WALL_TINTS
CEILING_BASE = FLOOR_BASE + NUM_FLOOR_TINTS
FRAME_BASE = CEILING_BASE + NUM_CEILING_TINTS
OBJECT_BASE = FRAME_BASE + 1
ROW = NUM_TONES * NUM_SHADES  # entries of one material in the colour table


def _pattern(kind: int) -> np.ndarray:
    """Tones 0 (dark) .. 7 (bright) of one wall texture, uint8 [U, V], v = 0 at the floor."""
    u, v = np.meshgrid(np.arange(TEXTURE_U), np.arange(TEXTURE_V), indexing="ij")
    bricks = ((v % 4 == 0) | ((u + 4 * (v // 4 % 2)) % 8 == 0)) * -3 + 6
    tone = (
        np.full_like(u, 5),
        4 + 3 * (u // 4 % 2),
        bricks,
        4 + 3 * (v // 6 % 2),
        4 + 3 * ((u // 4 + v // 6) % 2),
        4 + 3 * ((abs(u % 8 - 4) + abs(v % 12 - 6) * 2 // 3) < 3),
    )[kind]
    tone = np.where(v < 2, 1, tone)  # skirting board
    return np.where(v >= 30, 2, tone).astype(np.uint8)


def _wall_atlas() -> np.ndarray:
    """Row of the colour table for (material = tint * patterns + pattern, u, v), flattened int32."""
    tones = np.stack([_pattern(kind) for kind in range(NUM_PATTERNS)]).astype(np.int32)  # [patterns, U, V]
    tints = np.arange(NUM_WALL_TINTS, dtype=np.int32)[:, None, None, None]
    return ((tints * NUM_TONES + tones[None]) * NUM_SHADES).reshape(-1)


def _colour_table() -> np.ndarray:
    """Packed RGBA uint32 for (material, tone, shade); integers only."""
    scenery = np.array(WALL_TINTS + FLOOR_TINTS + CEILING_TINTS + (FRAME_TINT,), dtype=np.int64)
    objects = np.array(list(OBJECT_COLOURS.values()), dtype=np.int64)
    tone = np.arange(NUM_TONES)[None, :, None, None]
    shade = np.arange(NUM_SHADES)[None, None, :, None]
    contrast = (tone - 5) * 2 * (40 - shade)  # texture fades with distance
    scenery_rgb = scenery[:, None, None, :] * (1000 + contrast) * (66 - shade) // 66000
    object_rgb = objects[:, None, None, :] * (58 + tone * 6) * (92 - shade) // 9200
    rgb = np.clip(np.concatenate([scenery_rgb, object_rgb]), 0, 255)
    packed = rgb[..., 0] | rgb[..., 1] << 8 | rgb[..., 2] << 16 | 255 << 24
    return packed.astype("<u4").reshape(-1)


WALL_ATLAS = _wall_atlas()
COLOUR_TABLE = _colour_table()
