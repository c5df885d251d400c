"""Labelled pictures in rows, as one PNG and as one page that needs no other file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from llava.utils.io import atomic_path

PAPER, INK, QUIET = (250, 250, 248), (30, 30, 30), (110, 110, 110)
GAP, CAPTION = 16, 40

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:24px;background:#fafaf8;color:#1e1e1e}
.row{display:flex;flex-wrap:wrap;gap:16px;margin-bottom:24px}
figure{margin:0;max-width:100%}
figcaption{margin-bottom:6px}
figcaption span,li{color:#6e6e6e}
img{display:block;max-width:100%;image-rendering:pixelated}
.key{display:inline-block;width:12px;height:12px;margin:0 6px 0 14px}
"""


class Panel(NamedTuple):
    """A picture uint8 [height, width, 3] with a title and one line about it."""

    title: str
    note: str
    pixels: np.ndarray


def write_sheet(rows: Sequence[Sequence[Panel]], path: Path) -> Path:
    """All panels on one picture."""
    heights = [max(panel.pixels.shape[0] for panel in row) + CAPTION + GAP for row in rows]
    widths = [sum(_width(panel) + GAP for panel in row) for row in rows]
    sheet = Image.new("RGB", (max(widths) + GAP, sum(heights) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for panel in row:
            draw.text((left, top), panel.title, fill=INK, font_size=14)
            draw.text((left, top + 18), _shortened(panel), fill=QUIET, font_size=12)
            sheet.paste(Image.fromarray(panel.pixels), (left, top + CAPTION))
            left += _width(panel) + GAP
        top += height
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")
    return path


def _width(panel: Panel) -> int:
    """Wide enough for the title of a narrow picture."""
    return max(panel.pixels.shape[1], 160)


def _shortened(panel: Panel) -> str:
    most = _width(panel) // 6
    return panel.note if len(panel.note) <= most else f"{panel.note[: most - 3]}..."


def write_page(
    rows: Sequence[Sequence[Panel]],
    path: Path,
    title: str,
    facts: Sequence[str],
    legend: Mapping[str, tuple[int, int, int]],
) -> Path:
    """The pictures lie inside the page."""
    keys = "".join(
        f'<span class="key" style="background:rgb{colour}"></span>{html.escape(name)}'
        for name, colour in legend.items()
    )
    body = "".join(f'<div class="row">{"".join(_figure(panel) for panel in row)}</div>\n' for row in rows)
    told = "".join(f"<li>{html.escape(fact)}</li>" for fact in facts)
    text = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{html.escape(title)}</h1>\n<ul>{told}</ul>\n<p>{keys}</p>\n{body}</html>\n"
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _figure(panel: Panel) -> str:
    buffer = io.BytesIO()
    Image.fromarray(panel.pixels).save(buffer, format="PNG")
    code = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        f"<figure><figcaption><b>{html.escape(panel.title)}</b> <span>{html.escape(panel.note)}</span></figcaption>"
        f'<img alt="{html.escape(panel.title)}" src="data:image/png;base64,{code}"></figure>'
    )
