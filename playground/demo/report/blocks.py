"""What blocks of the report page share: sections that other files add to it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from playground.demo.report.data import EpisodePicture

Block = tuple[str, str, str]
"""Title, lead and body of a section of the page."""


def figures(pictures: Sequence[EpisodePicture]) -> str:
    """Pictures with their titles, beside each other."""
    shown = "".join(
        f'<figure><img alt="{escape(picture.title)}" src="data:image/png;base64,'
        f'{base64.b64encode(picture.png).decode()}"><figcaption><b>{escape(picture.title)}</b></figcaption></figure>'
        for picture in pictures
    )
    return f'<div class="episodes">{shown}</div>'
