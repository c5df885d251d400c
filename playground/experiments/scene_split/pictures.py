"""Pictures, their true object masks and their records, as `LLaVADataset` and the training read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from llava.scene.detections import Detections
from llava.scene.object_files import from_record, picture_hash, to_record
from llava.utils import io

OBJECTS = "objects.jsonl"
TRUTH = {"name": "truth"}
"""What the mask files name as their detector: the drawing itself."""


class PictureFolder:
    """Writes pictures below a folder, and one line of objects for each into `objects.jsonl`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self._lines = (root / OBJECTS).open("w", encoding="utf-8")

    def __enter__(self) -> PictureFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lines.close()

    def add(
        self, name: str, picture: UInt8[np.ndarray, "h w 3"], masks: Bool[np.ndarray, "n h w"], names: Sequence[str]
    ) -> None:
        """Objects that show no pixel are left out.

        Args:
            name: of the file, relative to the folder.
            names: of the objects, in the order of the masks.
        """
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, compress_level=1)
        height, width = picture.shape[:2]
        seen = [i for i in range(len(masks)) if masks[i].any()]
        found = Detections.of(height, width)
        if seen:
            found = Detections.of_masks(masks[seen], names=[names[i] for i in seen])
        line = to_record(found, picture=name, digest=picture_hash(path), detector=TRUTH)
        self._lines.write(json.dumps(line) + "\n")


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    io.save(path, [dict(record) for record in records])


def read_masks(root: Path) -> dict[str, Bool[np.ndarray, "h w"]]:
    """Picture -> where any object is."""
    return {row["picture"]: from_record(row, row["picture"]).pixel_mask() for row in io.load(root / OBJECTS)}


def read_picture(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
