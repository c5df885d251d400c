"""Where a prediction of the next frame was wrong: heat maps over the real frames, beside those of copying the frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

SIDE, GAP, LEFT, TOP, FOOT, RIGHT = 168, 10, 132, 62, 24, 14
INK, SOFT, PAPER = (31, 41, 51), (95, 107, 122), (255, 255, 255)
BETTER, WORSE = (43, 138, 95), (190, 60, 50)
COLUMNS = ("frame seen last", "the next frame", "prediction error", "error of copying")
STOPS: Float[np.ndarray, "6 3"] = np.array(
    [[0, 0, 0], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]], dtype=float
)
"""Colours from no error to the largest one of the scale: darker to lighter, also without colour."""


@dataclass(frozen=True, kw_only=True)
class ErrorRow:
    """One predicted frame.

    Attributes:
        seen, following: RGB pictures of the frame predicted from, and of the frame to be predicted.
        error, copy_error: per target token on its grid, in the same unit; NaN = unknown.
        title, note: beside the row, such as "frame 3 to 4" and "turn left 30 degrees"; lines of at most 20 characters.
    """

    seen: UInt8[np.ndarray, "h w 3"]
    following: UInt8[np.ndarray, "h w 3"]
    error: Float[np.ndarray, "g g"]
    copy_error: Float[np.ndarray, "g g"]
    title: str
    note: str = ""

    @property
    def means(self) -> tuple[float, float]:
        """Error and copying error of the whole frame."""
        return float(np.mean(self.error)), float(np.mean(self.copy_error))


def draw_error_sheet(rows: Sequence[ErrorRow], title: str, *, largest: float | None = None) -> Image.Image:
    """A row per predicted frame: last frame, next frame, both error maps over the next frame, with their means.

    Args:
        largest: error at the light end of the colour scale, which all maps share; None = all but the largest 2 % of the
            values are below it.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("no predicted frame to draw, expected at least one; give a clip of two or more frames")
    largest = scale_of(rows) if largest is None else largest
    width = LEFT + len(COLUMNS) * (SIDE + GAP) - GAP + RIGHT
    sheet = Image.new("RGB", (width, TOP + len(rows) * (SIDE + FOOT) + 46), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((12, 10), title, fill=INK, font=_font(16))
    for number, name in enumerate(COLUMNS):
        draw.text((LEFT + number * (SIDE + GAP), TOP - 20), name, fill=SOFT, font=_font(13))
    for number, row in enumerate(rows):
        _draw_row(sheet, draw, row, TOP + number * (SIDE + FOOT), largest)
    _draw_scale(sheet, draw, TOP + len(rows) * (SIDE + FOOT) + 8, largest)
    return sheet


def scale_of(rows: Sequence[ErrorRow]) -> float:
    """98 % of all errors are below it; never 0."""
    values = np.concatenate([part.ravel() for row in rows for part in (row.error, row.copy_error)])
    known = values[np.isfinite(values)]
    return max(float(np.quantile(known, 0.98)), 1e-12) if len(known) else 1.0


def skill_of(row: ErrorRow) -> float | None:
    """1 - error / error of copying; None where the frame did not change."""
    error, copied = row.means
    return 1 - error / copied if copied > 0 else None


def colours_of(share: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n 3"]:
    """0..1 to RGB 0..255.

    >>> colours_of(np.array([0.0, 1.0])).tolist()
    [[0.0, 0.0, 0.0], [252.0, 255.0, 164.0]]
    """
    place = np.clip(share, 0, 1) * (len(STOPS) - 1)
    return np.stack([np.interp(place, np.arange(len(STOPS)), STOPS[:, channel]) for channel in range(3)], axis=-1)


def overlay(
    picture: UInt8[np.ndarray, "h w 3"], error: Float[np.ndarray, "g g"], largest: float, side: int = SIDE
) -> UInt8[np.ndarray, "s s 3"]:
    """The picture in grey with the error of each token over it, stronger where the error is larger; NaN = grey only."""
    grey = np.asarray(Image.fromarray(picture).convert("L").resize((side, side)), dtype=float)[..., None] * 0.8
    share = np.nan_to_num(np.clip(error / largest, 0, 1))
    cells = (np.arange(side) * len(share)) // side
    heat = colours_of(share)[cells][:, cells]
    weight = np.where(np.isnan(error), 0.0, 0.35 + 0.5 * share)[cells][:, cells][..., None]
    return ((1 - weight) * grey + weight * heat).round().astype(np.uint8)


def _draw_row(sheet: Image.Image, draw: ImageDraw.ImageDraw, row: ErrorRow, top: int, largest: float) -> None:
    draw.multiline_text((12, top + 4), row.title, fill=INK, font=_font(13))
    lines = row.title.count("\n") + 1
    draw.multiline_text((12, top + 10 + 17 * lines), row.note, fill=SOFT, font=_font(12))
    pictures = [
        *(Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.NEAREST) for frame in (row.seen, row.following)),
        *(Image.fromarray(overlay(row.following, error, largest)) for error in (row.error, row.copy_error)),
    ]
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (LEFT + number * (SIDE + GAP), top))
    error, copied = row.means
    skill = skill_of(row)
    told = "" if skill is None else f"   skill {skill:+.2f}"
    left, foot = LEFT + 2 * (SIDE + GAP), top + SIDE + 3
    draw.text((left, foot), f"{error:.3g}{told}", fill=BETTER if (skill or 0) > 0 else WORSE, font=_font(12))
    draw.text((left + SIDE + GAP, foot), f"{copied:.3g}", fill=INK, font=_font(12))


def _draw_scale(sheet: Image.Image, draw: ImageDraw.ImageDraw, top: int, largest: float) -> None:
    left, width = LEFT + 2 * (SIDE + GAP), 2 * SIDE + GAP
    ramp = colours_of(np.linspace(0, 1, width))[None].repeat(10, axis=0).round().astype(np.uint8)
    sheet.paste(Image.fromarray(ramp), (left, top))
    draw.text((left, top + 13), "0", fill=SOFT, font=_font(11))
    draw.text((left + width, top + 13), f"{largest:.3g}", fill=SOFT, font=_font(11), anchor="ra")
    explained = "squared error per token; skill = 1 - error / error of copying"
    draw.text((12, top - 2), explained, fill=SOFT, font=_font(11))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
