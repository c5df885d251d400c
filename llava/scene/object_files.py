"""Objects of pictures on disk: one JSON or PNG beside each picture, or one JSON Lines file for a folder.

JSON holds COCO's boxes and run-length masks; PNG holds instance numbers (0 = background) that any viewer shows. All of
them keep the picture's hash, so objects of an older picture of the same name are never taken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from llava.scene.detections import Detections
from llava.scene.rle import decode_rle, encode_rle
from llava.utils import io

VERSION = 1
PNG_KEY = "llava-objects"
MOST_PNG_OBJECTS = 65535


def file_beside(picture: Path, kind: str) -> Path:
    """`hall.jpg` -> `hall.jpg.objects.json`: two pictures that differ in their ending keep apart."""
    return picture.with_name(f"{picture.name}.objects.{kind}")


def picture_hash(picture: Path) -> str:
    """Of the file's bytes."""
    return hashlib.sha256(picture.read_bytes()).hexdigest()


def to_record(found: Detections, *, picture: str, digest: str, detector: Mapping[str, Any]) -> dict[str, Any]:
    """One line of JSON Lines, or one JSON file."""
    objects = []
    for row in range(len(found)):
        left, top, right, bottom = (float(value) for value in found.boxes[row])
        entry: dict[str, Any] = {
            "bbox": [left, top, right - left, bottom - top],  # COCO: left, top, width, height
            "score": float(found.scores[row]),
            "category_id": int(found.class_ids[row]),
            "category": found.names[row],
        }
        if found.masks is not None:
            entry["segmentation"] = encode_rle(found.masks[row])
        objects.append(entry)
    return {
        "version": VERSION,
        "picture": picture,
        "sha256": digest,
        "size": [found.height, found.width],
        "detector": dict(detector),
        "failure": found.failure,
        "objects": objects,
    }


def from_record(record: Mapping[str, Any], name: str) -> Detections:
    """The reverse of `to_record`; other people's COCO annotations pass too if they say `size`.

    Args:
        name: of the file, for errors.
    """
    try:
        if record.get("version", VERSION) != VERSION:
            raise ValueError(f"version {record['version']}, this program reads {VERSION}; write the masks again")
        if not isinstance(record["size"], (list, tuple)) or len(record["size"]) != 2:
            raise ValueError(f"size is {record['size']!r}, expected [height, width]")
        height, width = (int(value) for value in record["size"])
        objects = record["objects"]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in objects)]
        codes = [entry.get("segmentation") for entry in objects]
        if None in codes and any(codes):
            raise ValueError("some objects have a segmentation and some have none; give all of them one, or none")
        masks = np.stack([decode_rle(code) for code in codes]) if codes and codes[0] else None
        if record.get("failure"):
            return Detections.failed(height, width, str(record["failure"]))
        return Detections.of(
            height,
            width,
            boxes,
            scores=[entry.get("score", 1.0) for entry in objects],
            class_ids=[entry.get("category_id", 0) for entry in objects],
            names=[entry.get("category", "object") for entry in objects],
            masks=masks,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        detail = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{name} holds no objects of a picture: {detail}") from error


def write_png(path: Path, found: Detections, record: Mapping[str, Any]) -> None:
    """Instance numbers as grey levels, the later object on top; classes, scores and the hash as text inside the file.

    Objects without masks are drawn as boxes. Use JSON where overlapping objects must stay apart.
    """
    if len(found) > MOST_PNG_OBJECTS:
        raise ValueError(f"{len(found)} objects in one picture, a PNG holds {MOST_PNG_OBJECTS}; write JSON instead")
    numbers = np.zeros((found.height, found.width), dtype=np.uint8 if len(found) < 256 else np.uint16)
    for row in range(len(found)):
        numbers[found.select(np.array([row])).pixel_mask()] = row + 1
    slim = dict(record) | {
        "objects": [
            {key: value for key, value in entry.items() if key != "segmentation"} for entry in record["objects"]
        ]
    }
    text = PngImagePlugin.PngInfo()
    text.add_text(PNG_KEY, json.dumps(slim))
    with io.atomic_path(path) as temporary:
        Image.fromarray(numbers).save(temporary, format="PNG", pnginfo=text)


def read_png(path: Path) -> tuple[Detections, dict[str, Any]]:
    """Objects and record. A PNG of instance numbers without our text has objects named "object" and no hash."""
    try:
        with Image.open(path) as image:
            text = getattr(image, "text", {}).get(PNG_KEY)
            numbers = np.asarray(image)
        record = {} if text is None else json.loads(text)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as instance numbers: {error}; write it again") from error
    if numbers.ndim != 2:
        raise ValueError(f"{path} has {numbers.shape[2]} channels, expected one with instance numbers (0 = background)")
    if record.get("failure"):
        return Detections.failed(numbers.shape[0], numbers.shape[1], str(record["failure"])), record
    entries = record.get("objects", [])
    present = range(1, len(entries) + 1) if record else [int(value) for value in np.unique(numbers) if value]
    if record and int(numbers.max()) > len(entries):
        raise ValueError(f"{path} has instance {int(numbers.max())} and names {len(entries)} objects; write it again")
    masks = np.stack([numbers == number for number in present]) if len(present) else None
    if masks is None:
        return Detections.of(*numbers.shape), record
    values = {
        key: [entry[key] for entry in entries] if record else None for key in ("score", "category_id", "category")
    }
    found = Detections.of_masks(
        masks, scores=values["score"], class_ids=values["category_id"], names=values["category"]
    )
    return found, record
