"""Files of a data set in the NaVILA layout, written piece by piece so that memory stays small."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

DEPTH_UNIT_M = 0.001
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


def save_depth(path: Path, depth: Float32[np.ndarray, "t h w"]) -> None:
    """z-depth in whole millimetres, as `depth` [t, h, w] and `unit_m`; up to 65 m, beyond which it is unknown (0)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    millimetres = np.rint(depth / DEPTH_UNIT_M)
    whole = np.where(millimetres < 1 << 16, millimetres, 0).astype(np.uint16)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, depth=whole, unit_m=np.float64(DEPTH_UNIT_M))
    partial.replace(path)


def save_frames(folder: Path, frames: UInt8[np.ndarray, "t h w 3"]) -> None:
    """`frame_0.jpg`, `frame_1.jpg`, ... as in the published data."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, frame in enumerate(frames):
        _save(folder / f"frame_{i}.jpg", frame)


def save_instances(folder: Path, ids: UInt8[np.ndarray, "t h w"], suffix: str | None) -> None:
    """Which object each pixel shows (0 = none), beside what `save_filmstrip`, or for None `save_frames`, wrote."""
    count, height, width = ids.shape
    if suffix is not None:
        _save(folder / f"filmstrip{suffix}.objects.png", ids.reshape(count * height, width))
        return
    for i, frame in enumerate(ids):
        _save(folder / f"frame_{i}.jpg.objects.png", frame)


def _png_settings() -> list[int]:
    """Pictures of flat colours are smaller, and written and read twice as fast, without row filters (newer OpenCV)."""
    settings = [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL]
    if hasattr(cv2, "IMWRITE_PNG_FILTER"):
        settings += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
    return settings


def _save(path: Path, picture: UInt8[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w"]) -> None:
    settings = _png_settings() if path.suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    encodable = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(path.suffix, encodable, settings)
    if not done:
        size = f"{picture.shape[1]}x{picture.shape[0]}"
        raise OSError(f"cannot encode {path} of {size} pixels; write frames='files', or png instead of jpg")
    path.write_bytes(encoded.tobytes())
