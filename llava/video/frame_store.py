"""Frames of episodes by name, whether they lie as files or as one filmstrip per episode."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray

from llava.video.decode import (
    STRIP_NAMES,
    Frame,
    frame_number,
    is_picture,
    ranges,
    read_picture,
    read_strip,
    strip_facts,
)


class FrameStore:
    """Reads `<episode>/frame_<i>.jpg`: the file, or row i of `<episode>/filmstrip.png|jpg`.

    A filmstrip stacks all frames of an episode from top to bottom; `filmstrip.json` beside it tells
    {"num_frames", "height", "width"}. A strip is decoded once and kept while it is among the last used ones.
    One store may be shared by threads and sent to worker processes (each then fills its own cache).

    Args:
        root: folder that the names are relative to.
        cache_bytes: decoded strips kept, in bytes; the last one is always kept.
    """

    def __init__(self, root: str | Path, cache_bytes: int = 256 * 2**20) -> None:
        self.root = Path(root).expanduser()
        self.cache_bytes = cache_bytes
        self._strips: OrderedDict[Path, UInt8[ndarray, "t h w 3"]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, name: str) -> Frame:
        """RGB picture [height, width, 3], not to be written to.

        Raises:
            FileNotFoundError: naming the frame, and the frames of that episode that exist.
            ValueError: for a broken file, or a strip whose size is not the one its json tells.
        """
        path = self.root / PurePosixPath(name)
        strip = self._strip_path(path.parent)
        if path.is_file() or strip is None:
            return read_picture(path) if path.is_file() else self._missing(path)
        frames, number = self._strip(strip), frame_number(path.name)
        if number is None or number >= len(frames):
            raise FileNotFoundError(
                f"frame {path} does not exist; {strip.name} beside it holds frames 0-{len(frames) - 1}"
            )
        return frames[number]

    def num_frames(self, episode: str) -> int:
        """How many frames an episode has on disk."""
        folder = self.root / PurePosixPath(episode)
        strip = self._strip_path(folder)
        return strip_facts(strip)["num_frames"] if strip else len(_frame_files(folder))

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "cache_bytes": self.cache_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def _strip_path(self, folder: Path) -> Path | None:
        return next((folder / name for name in STRIP_NAMES if (folder / name).is_file()), None)

    def _strip(self, path: Path) -> UInt8[ndarray, "t h w 3"]:
        with self._lock:
            if path in self._strips:
                self._strips.move_to_end(path)
                return self._strips[path]
        frames = read_strip(path)  # outside the lock: two threads may decode the same strip, none waits for another
        with self._lock:
            self._strips[path] = frames
            self._strips.move_to_end(path)
            while len(self._strips) > 1 and sum(strip.nbytes for strip in self._strips.values()) > self.cache_bytes:
                self._strips.popitem(last=False)
        return frames

    def _missing(self, path: Path) -> Frame:
        if not path.parent.is_dir():
            raise FileNotFoundError(f"frame {path} does not exist, nor does its folder {path.parent}; check media_dir")
        numbers = [number for file in _frame_files(path.parent) if (number := frame_number(file.name)) is not None]
        there = f"frames {ranges(numbers)} exist there" if numbers else "no frame and no filmstrip exists there"
        raise FileNotFoundError(f"frame {path} does not exist; {there}: write the episode again or remove its records")


def _frame_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if is_picture(path) and path.name not in STRIP_NAMES]
