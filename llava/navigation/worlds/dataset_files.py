"""Files of a data set in the NaVILA layout, written piece by piece so that memory stays small."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import cv2
import numpy as np
from jaxtyping import UInt8

JPEG_QUALITY = 92
PNG_LEVEL = 1


class JsonListWriter:
    """A JSON list that grows record by record; the file appears under its name only when it is complete."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0
        self._partial = path.with_name(path.name + ".partial")
        self._file: TextIO | None = None

    def __enter__(self) -> JsonListWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("w", encoding="utf-8")
        self._file.write("[")
        return self

    def extend(self, records: Iterable[dict[str, Any]]) -> None:
        assert self._file is not None, "use it as a context manager"
        for record in records:
            self._file.write((",\n" if self.count else "\n") + json.dumps(record))
            self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.write("\n]\n")
        self._file.close()
        if kind is None:
            self._partial.replace(self.path)


def save_filmstrip(folder: Path, frames: UInt8[np.ndarray, "t h w 3"], suffix: str) -> None:
    """All frames from top to bottom in `filmstrip<suffix>`, their number and size in `filmstrip.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    count, height, width, _ = frames.shape
    _save(folder / f"filmstrip{suffix}", frames.reshape(count * height, width, 3))
    facts = {"num_frames": count, "height": height, "width": width}
    (folder / "filmstrip.json").write_text(json.dumps(facts))


def save_frames(folder: Path, frames: UInt8[np.ndarray, "t h w 3"]) -> None:
    """`frame_0.jpg`, `frame_1.jpg`, ... as in the published data."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, frame in enumerate(frames):
        _save(folder / f"frame_{i}.jpg", frame)


def _png_settings() -> list[int]:
    """Pictures of flat colours are smaller, and written and read twice as fast, without row filters (newer OpenCV)."""
    settings = [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL]
    if hasattr(cv2, "IMWRITE_PNG_FILTER"):
        settings += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
    return settings


def _save(path: Path, rgb: UInt8[np.ndarray, "h w 3"]) -> None:
    settings = _png_settings() if path.suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    done, encoded = cv2.imencode(path.suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), settings)
    if not done:
        size = f"{rgb.shape[1]}x{rgb.shape[0]}"
        raise OSError(f"cannot encode {path} of {size} pixels; write frames='files', or png instead of jpg")
    path.write_bytes(encoded.tobytes())
