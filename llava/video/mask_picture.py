"""A mask as a picture that a person can read: frame borders, time stamps, legend."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

SEEN, HIDDEN = (38, 120, 178), (236, 236, 232)
INK, BORDER, PAPER = (40, 40, 40), (214, 106, 52), (255, 255, 255)
SIDE, LEFT, TOP, RIGHT, BOTTOM = 560, 92, 78, 24, 62
MOST_LABELS = 24
"""Of frames per axis; of more, every second, third ... is written."""


def write_mask_picture(
    mask: Bool[np.ndarray, "q k"],
    title: str,
    path: Path,
    *,
    borders: Sequence[int],
    stamps: Sequence[float] | None,
) -> Path:
    """borders: tokens at which a new frame begins. stamps: one per frame, or None."""
    num_queries, num_keys = mask.shape
    height = max(1, round(SIDE * num_queries / max(num_queries, num_keys)))
    width = max(1, round(SIDE * num_keys / max(num_queries, num_keys)))
    picture = Image.new("RGB", (LEFT + width + RIGHT, TOP + height + BOTTOM), PAPER)
    cells = np.where(mask[..., None], SEEN, HIDDEN).astype(np.uint8)
    picture.paste(Image.fromarray(cells).resize((width, height), Image.Resampling.NEAREST), (LEFT, TOP))
    draw = ImageDraw.Draw(picture)
    draw.text((LEFT, 8), title, fill=INK)
    _draw_axis(draw, borders, num_keys, width, height, stamps, is_vertical=False)
    _draw_axis(draw, borders, num_queries, height, width, stamps, is_vertical=True)
    draw.rectangle((LEFT, TOP, LEFT + width, TOP + height), outline=INK)
    _draw_legend(draw, TOP + height + 16)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, format="PNG")
    return path


def _draw_axis(
    draw: ImageDraw.ImageDraw,
    borders: Sequence[int],
    num_tokens: int,
    length: int,
    across: int,
    stamps: Sequence[float] | None,
    *,
    is_vertical: bool,
) -> None:
    """Border lines through the mask and a label in the middle of each frame; length and across in pixels."""
    edges = [0, *(border for border in borders if border < num_tokens), num_tokens]
    pixels = [round(length * edge / num_tokens) for edge in edges]
    for place in pixels[1:-1]:
        ends = ((LEFT, TOP + place), (LEFT + across, TOP + place))
        draw.line(ends if is_vertical else ((LEFT + place, TOP), (LEFT + place, TOP + across)), fill=BORDER)
    step = -(-(len(edges) - 1) // MOST_LABELS)
    for frame, (start, stop) in enumerate(pairwise(pixels)):
        if frame % step:
            continue
        middle = (start + stop) // 2
        stamp = "" if stamps is None else f"t={stamps[frame]:g}"
        if is_vertical:
            draw.text((LEFT - 6, TOP + middle), f"{stamp}  F{frame}".strip(), fill=INK, anchor="rm")
        else:
            draw.text((LEFT + middle, TOP - 6), f"F{frame}\n{stamp}".strip(), fill=INK, anchor="md", align="center")
    if is_vertical:
        draw.text((6, TOP - 14), "query", fill=INK)
    else:
        draw.text((LEFT + length - 20, 8), "key", fill=INK)


def _draw_legend(draw: ImageDraw.ImageDraw, top: int) -> None:
    entries = ((SEEN, "may attend"), (HIDDEN, "hidden"), (BORDER, "border of a frame"))
    for number, (colour, text) in enumerate(entries):
        left = LEFT + number * 140
        if colour == BORDER:
            draw.line((left, top + 7, left + 14, top + 7), fill=colour, width=2)
        else:
            draw.rectangle((left, top, left + 14, top + 14), fill=colour, outline=INK)
        draw.text((left + 22, top + 7), text, fill=INK, anchor="lm")
