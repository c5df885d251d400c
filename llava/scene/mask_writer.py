"""The objects of many pictures onto the disk, once: what is there and still true is taken as it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from llava.scene.detections import Detections
from llava.scene.detector import GuardedDetector
from llava.scene.object_files import file_beside, picture_hash, read_png, to_record, write_png
from llava.utils import io

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
PICTURE_KEYS = ("image", "images", "frames")
KINDS = ("json", "png", "jsonl")


@dataclass
class MaskSummary:
    """reused: pictures whose objects were there. failures: picture -> reason; they are tried again next time."""

    num_pictures: int = 0
    reused: int = 0
    written: int = 0
    objects: int = 0
    without_objects: int = 0
    failures: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{self.num_pictures} pictures: {self.written} written, {self.reused} reused from an earlier run, "
            f"{len(self.failures)} without an answer",
            f"{self.objects} objects written; {self.without_objects} written pictures show none",
        ]
        return "\n".join([*lines, *(f"failed: {name}: {why}" for name, why in self.failures.items())])


def find_pictures(source: Path, media_dir: Path | None = None) -> tuple[list[Path], Path]:
    """Pictures of a folder (with its subfolders) or of a record file, and the folder that their names are relative to.

    A record names its pictures under `image`, `images` or `frames`: a path, a list of paths, or of {"path": path}.
    """
    if source.is_dir():
        if media_dir is not None:
            raise ValueError(f"media_dir is '{media_dir}' and {source} is a folder; it goes with a record file")
        found = sorted(p for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and ".objects." not in p.name)
    else:
        root, records = media_dir or source.parent, io.load(source)
        if not isinstance(records, list):
            raise ValueError(f"{source} holds a {type(records).__name__}, expected a list of records")
        named = dict.fromkeys(name for record in records for name in _names_of(record))  # each once, in order
        found, source = [root / name for name in named], root
    if not found:
        raise ValueError(
            f"no pictures in {source}; expected files ending in {', '.join(IMAGE_SUFFIXES)}, or records with one of "
            f"{', '.join(PICTURE_KEYS)}"
        )
    return found, source


def _names_of(record: Mapping[str, Any]) -> Iterator[str]:
    for key in PICTURE_KEYS:
        value = record.get(key, [])
        for item in value if isinstance(value, list) else [value]:
            name = item.get("path") if isinstance(item, Mapping) else item
            if not isinstance(name, str) or not name:
                raise ValueError(f"a record has {key}={item!r}, expected a path or {{'path': path}}")
            yield name


def describe_detector(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the answers depend on, for the files: settings, and the hash of a weights file."""
    said = {key: value for key, value in options.items() if key not in ("batch", "device")}
    described: dict[str, Any] = {"name": name, **said}
    weights = options.get("weights")
    if weights is not None and Path(weights).is_file():
        described["weights_sha256"] = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    return json.loads(json.dumps(described, default=str))  # as it comes back from a file


class MaskStore:
    """Where the records of pictures lie: beside each picture, or in one .jsonl file.

    Raises:
        ValueError: at `done`, where the objects of a picture come from another detector or other settings.
    """

    def __init__(self, kind: str, root: Path, detector: Mapping[str, Any], file: Path | None = None) -> None:
        if kind not in KINDS:
            raise ValueError(f"format is '{kind}', expected one of {', '.join(KINDS)}")
        if file is not None and kind != "jsonl":
            raise ValueError(f"a file '{file}' is given and the format is '{kind}'; it goes with 'jsonl'")
        self.kind, self.root, self.detector = kind, root, dict(detector)
        self.file = file or root / "objects.jsonl"
        self.lines: dict[str, dict[str, Any]] = {}
        if kind == "jsonl" and self.file.is_file():
            self.lines = {record["picture"]: record for record in _whole_lines(self.file)}
            io.save(self.file, list(self.lines.values()))  # without a cut-off line, ready to be added to

    def name_of(self, picture: Path) -> str:
        return picture.relative_to(self.root).as_posix() if picture.is_relative_to(self.root) else str(picture)

    def done(self, picture: Path, digest: str) -> bool:
        """Whether the objects of this very content are there; failures count as not done."""
        record = self._stored(picture)
        if record is None or record.get("sha256") != digest or record.get("failure"):
            return False
        if record.get("detector") != self.detector:
            raise ValueError(
                f"the objects of {picture} were found by {record.get('detector')}, this run uses {self.detector}; "
                "take the same settings, or --overwrite"
            )
        return True

    def _stored(self, picture: Path) -> dict[str, Any] | None:
        if self.kind == "jsonl":
            return self.lines.get(self.name_of(picture))
        path = file_beside(picture, self.kind)
        if not path.is_file():
            return None
        return io.load(path) if self.kind == "json" else read_png(path)[1]

    def write(self, picture: Path, found: Detections, digest: str) -> None:
        record = to_record(found, picture=self.name_of(picture), digest=digest, detector=self.detector)
        path = file_beside(picture, self.kind)
        if self.kind == "json":
            io.save(path, record)
        elif self.kind == "png":
            write_png(path, found, record)
        else:
            is_new = self.name_of(picture) not in self.lines
            self.lines[self.name_of(picture)] = record
            self._append(record) if is_new else io.save(self.file, list(self.lines.values()))

    def _append(self, record: Mapping[str, Any]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _whole_lines(file: Path) -> list[dict[str, Any]]:
    """Records of a file whose last line may be cut off by a killed run."""
    lines = file.read_text(encoding="utf-8").split("\n")
    if not lines[-1]:
        return io.load(file)
    return [json.loads(line) for line in lines[:-1] if line.strip()]


def write_masks(
    pictures: Sequence[Path],
    detector: GuardedDetector,
    store: MaskStore,
    *,
    batch: int = 16,
    overwrite: bool = False,
    progress: Callable[[MaskSummary], None] | None = None,
) -> MaskSummary:
    """Detects and writes what is not there yet.

    A detector that sees clips gets the pictures of one folder as one clip, in the order of their names, and all of
    them again where one is new.
    """
    summary = MaskSummary(num_pictures=len(pictures))
    for group in _groups(pictures, 0 if detector.sees_clips else batch):
        digests = {picture: picture_hash(picture) for picture in group if _exists(picture, summary)}
        todo = [p for p, digest in digests.items() if overwrite or not store.done(p, digest)]
        if detector.sees_clips and todo:
            todo = list(digests)
        summary.reused += len(digests) - len(todo)
        _detect_and_write(todo, digests, detector, store, summary)
        if progress is not None:
            progress(summary)
    return summary


def _groups(pictures: Sequence[Path], size: int) -> Iterator[list[Path]]:
    """`size` pictures at a time; 0 = folder by folder."""
    if size:
        for begin in range(0, len(pictures), size):
            yield list(pictures[begin : begin + size])
        return
    folders: dict[Path, list[Path]] = {}
    for picture in pictures:
        folders.setdefault(picture.parent, []).append(picture)
    for folder in folders.values():
        yield sorted(folder)


def _exists(picture: Path, summary: MaskSummary) -> bool:
    if not picture.is_file():
        summary.failures[str(picture)] = "the file does not exist"
    return picture.is_file()


def _detect_and_write(
    todo: Sequence[Path],
    digests: Mapping[Path, str],
    detector: GuardedDetector,
    store: MaskStore,
    summary: MaskSummary,
) -> None:
    shown: dict[Path, np.ndarray] = {}
    for path in todo:
        try:
            with Image.open(path) as image:
                shown[path] = np.array(image.convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            summary.failures[str(path)] = f"cannot be decoded: {error}"
    if not shown:
        return
    answers = detector.detect(list(shown.values()), list(shown))
    for path, found in zip(shown, answers, strict=True):
        found = found if found.failure else found.visible()
        store.write(path, found, digests[path])
        if found.failure:
            summary.failures[str(path)] = found.failure
        else:
            summary.written += 1
            summary.objects += len(found)
            summary.without_objects += not len(found)
