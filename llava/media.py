"""Media as values: what a prompt may hold besides text. Nothing is opened before it is needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Media:
    """A part of a prompt that is not text."""


@dataclass(frozen=True)
class File(Media):
    """A medium that lives in a file or folder; `~` is expanded.

    Raises:
        FileNotFoundError: at once, not when a model is already running.
    """

    path: Any

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | Path):
            return
        path = Path(self.path).expanduser()
        if not path.exists():
            kind = type(self).__name__.lower()
            raise FileNotFoundError(f"no {kind} at {path}; give an existing file")
        object.__setattr__(self, "path", str(path))


class Image(File):
    """One picture: a path, or a PIL picture.

    >>> model.generate_content([llava.Image("kitchen.jpg"), "What is on the table?"])
    """


class Video(File):
    """A clip: a video file, a folder of frames, a filmstrip or its folder (as `vila-world write` stores episodes), or a
    list of PIL frames; frames are chosen when it is asked about.
    """
