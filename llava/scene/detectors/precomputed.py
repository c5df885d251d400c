"""Objects that were found before: read from the files that `scripts/make_object_masks.py` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.scene.detections import Detections
from llava.scene.detector import DETECTORS, Picture, check_pictures
from llava.scene.object_files import file_beside, from_record, picture_hash, read_png
from llava.utils import io


@DETECTORS.register("precomputed")
class PrecomputedDetector:
    """Reads; never looks at pixels. The only detector that must be told where pictures come from (`sources`).

    Args:
        file: one .jsonl for all pictures, whose names are relative to `root`; None = a .json or .png beside each.
        root: folder of the pictures in `file`; None = the folder of the file.
        verify: compare the picture file's hash with the one stored, where one is stored. False saves reading it.
    """

    def __init__(self, *, file: str | Path | None = None, root: str | Path | None = None, verify: bool = True) -> None:
        if root is not None and file is None:
            raise ValueError(f"root is '{root}' and there is no file; names are relative to it only in a .jsonl file")
        self.file = None if file is None else Path(file).expanduser()
        self.verify = verify
        self.records: dict[Path, dict[str, Any]] = {}
        if self.file is not None:
            folder = self.file.parent if root is None else Path(root).expanduser()
            self.records = {(folder / r["picture"]).resolve(): r for r in io.load(self.file) if "picture" in r}

    def detect(self, pictures: Sequence[Picture], sources: Sequence[str | Path] | None = None) -> list[Detections]:
        """
        Raises:
            ValueError: for pictures without a source or without objects on disk, and for objects of another picture.
        """
        check_pictures(pictures)
        if sources is None or len(sources) != len(pictures):
            given = "none" if sources is None else str(len(sources))
            raise ValueError(
                f"detector 'precomputed' wants the file of each of {len(pictures)} pictures as `sources`, got {given}"
            )
        return [self._one(picture, Path(source)) for picture, source in zip(pictures, sources, strict=True)]

    def _one(self, picture: Picture, source: Path) -> Detections:
        found = self.read(source)
        if (found.height, found.width) != picture.shape[:2]:
            raise ValueError(
                f"the objects of {source} are for {found.height} x {found.width} pixels, the picture has "
                f"{picture.shape[0]} x {picture.shape[1]}; write them again: scripts/make_object_masks.py --overwrite"
            )
        return found

    def read(self, source: Path) -> Detections:
        """The objects of a picture file, without the picture's pixels."""
        found, record = self._stored(source)
        stored = record.get("sha256")
        if self.verify and stored is not None and picture_hash(source) != stored:
            raise ValueError(
                f"{source} has changed since its objects were found; write them again: scripts/make_object_masks.py"
            )
        return found

    def _stored(self, source: Path) -> tuple[Detections, dict[str, Any]]:
        if self.file is not None:
            record = self.records.get(source.expanduser().resolve())
            if record is None:
                raise ValueError(f"{self.file} has no objects of {source}; run scripts/make_object_masks.py on it")
            return from_record(record, f"{self.file} ({record['picture']})"), record
        if (path := file_beside(source, "json")).is_file():
            record = io.load(path)
            return from_record(record, str(path)), record
        if (path := file_beside(source, "png")).is_file():
            return read_png(path)
        raise ValueError(
            f"no objects beside {source} ({file_beside(source, 'json').name} or .png); run scripts/make_object_masks.py"
        )
