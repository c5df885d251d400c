"""Which patches of the pictures of a data set show objects, read from the masks that were written beside them.

    hall.jpg            hall.jpg.objects.json | .png          beside it, or under the same name in another folder
    17/filmstrip.png    17/filmstrip.png.objects.json | .png  all frames of the strip from top to bottom
    any picture         objects.jsonl                         one line per picture, of the whole data set

`scripts/make_object_masks.py` writes them with any detector, `vila-world write --object-masks` from what was rendered.
Frames of a video file have no file of their own: with the detector "motion" they are looked at when they are read.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from llava.batch import VisualSpec
from llava.data.utils import BrokenSampleError, SmallCache
from llava.scene.detections import Detections
from llava.scene.detector import ObjectDetector, build_detector
from llava.scene.geometry import ViewMap, one_view, picture_views
from llava.scene.object_files import file_beside, from_record, picture_hash, read_png
from llava.scene.patch_mask import PatchRule, to_patches
from llava.utils import io
from llava.video.decode import frame_number, list_frames
from llava.video.frame_store import STRIP_NAMES

logger = logging.getLogger(__name__)

ALL_OBJECTS = "objects.jsonl"
KINDS = ("json", "png")
PATCHES_KEPT = 50_000
"""Pictures whose patch masks a process remembers; their files are read again after that."""
STRIPS_KEPT = 8
FIRST_LOOK = 100
"""Pictures after which it is said that none of them has masks."""
SHORTEST_CLIP = 3
"""Frames in which motion can be seen."""


@dataclass(frozen=True, kw_only=True)
class ObjectMaskOptions:
    """What samples must know of objects.

    Attributes:
        rule: when a patch is an object patch; of the model.
        grid_side: patches on each side of what the tower reads.
        folder: where masks lie: a folder with the names of the data set's media folder (or of the data set, and then
            those), or with an objects.jsonl, or such a file; None = beside the pictures.
        missing: a picture without a readable mask is all "background", or makes its sample a broken one ("error").
        motion_options: settings of the detector "motion" for frames of video files; None = these count as missing.
        shares_background: the pictures of a sample are frames of one clip.
    """

    rule: PatchRule
    grid_side: int
    folder: Path | None = None
    missing: str = "background"
    motion_options: Any = None
    shares_background: bool = False

    def __post_init__(self) -> None:
        if self.missing not in ("background", "error"):
            raise ValueError(f"missing is {self.missing!r}, expected 'background' or 'error'")
        if self.grid_side < 1:
            raise ValueError(f"grid_side is {self.grid_side}, expected the patches on each side of a picture")
        if self.folder is not None and not self.folder.exists():
            raise FileNotFoundError(
                f"object_masks is {self.folder}, which does not exist; give the folder (or objects.jsonl) that "
                "scripts/make_object_masks.py wrote, or leave it out where masks lie beside the pictures"
            )


@dataclass(kw_only=True)
class MaskStatistics:
    """What one data set met so far in this process; a picture counts when its mask is read."""

    pictures: int = 0
    missing: int = 0
    broken: int = 0
    objects: int = 0
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        shown = "".join(f"\n    {example}" for example in self.examples)
        return (
            f"object masks of {self.pictures} pictures: {self.missing} missing, {self.broken} broken, "
            f"{self.objects} pictures show objects{shown}"
        )


class ObjectMasks:
    """Patch masks of the pictures of one data set, [n, patches] row by row, True = object."""

    def __init__(self, name: str, options: ObjectMaskOptions, spec: VisualSpec, media_dir: Path) -> None:
        self.name, self.options, self.spec, self.media_dir = name, options, spec, media_dir
        self.statistics = MaskStatistics()
        self.folder, self._records = self._sources()
        self._patches: SmallCache[Tensor] = SmallCache(PATCHES_KEPT)
        self._strips: SmallCache[Detections] = SmallCache(STRIPS_KEPT)
        self._motion: ObjectDetector | None = None
        if options.motion_options is not None:
            self._motion = build_detector("motion", **options.motion_options)

    def _sources(self) -> tuple[Path, dict[str, dict[str, Any]]]:
        """Folder of the single files, and the lines of the file for all."""
        given = self.options.folder
        if given is not None and given.is_dir() and (given / self.name).is_dir():
            given = given / self.name
        folder = self.media_dir if given is None else given if given.is_dir() else given.parent
        file = given if given is not None and given.is_file() else folder / ALL_OBJECTS
        if not file.is_file():
            return folder, {}
        return folder, {record["picture"]: record for record in io.load(file) if "picture" in record}

    def of_pictures(self, names: Sequence[str | None]) -> Bool[Tensor, "n p"]:
        """Of pictures that become one view each; names are relative to the media folder, None = a black picture."""
        masks = [self._background() if name is None else self._of_picture(name) for name in names]
        return torch.stack(masks) if masks else torch.zeros(0, self.options.grid_side**2, dtype=torch.bool)

    def of_tiles(self, name: str) -> Bool[Tensor, "n p"]:
        """Of one picture that is cut into tiles; a row per tile, then the whole."""
        found, size = self._read(name)
        mask = np.zeros(size, dtype=bool) if found is None else found.pixel_mask()
        return torch.stack([self._to_patches(mask, view) for view in picture_views(self.spec, *size)])

    def of_clip(self, path: Path, indices: Sequence[int | None], pixels: Sequence[np.ndarray]) -> Bool[Tensor, "n p"]:
        """Of frames of a video: files of a folder, or the frames themselves where motion is looked for.

        Args:
            indices: of all frames that are shown, None = a black one.
            pixels: those that are not black, as they were decoded.
        """
        if path.is_dir():
            files = [str(PurePosixPath(file.relative_to(self.media_dir))) for file in list_frames(path)]
            return self.of_pictures([None if index is None else files[index] for index in indices])
        if self._motion is None or len(pixels) < SHORTEST_CLIP:
            self.statistics.pictures += len(pixels)
            why = "its frames have no files of masks" if self._motion is None else f"it shows {len(pixels)} frames"
            self._without(str(path), f"{why}; take the detector 'motion', or write its frames as pictures", len(pixels))
            return self.of_pictures([None] * len(indices))
        answers = iter(self._motion.detect(list(pixels)))
        self.statistics.pictures += len(pixels)
        return torch.stack([self._background() if i is None else self._seen(next(answers)) for i in indices])

    def _seen(self, found: Detections) -> Bool[Tensor, "p"]:
        self.statistics.objects += bool(len(found))
        return self._to_patches(found.pixel_mask(), self._one_view(found.height, found.width))

    def _of_picture(self, name: str) -> Bool[Tensor, "p"]:
        def make() -> Tensor:
            found, size = self._read(name)
            mask = np.zeros(size, dtype=bool) if found is None else found.pixel_mask()
            return self._to_patches(mask, self._one_view(*size))

        return self._patches.get(name, make)

    def _one_view(self, height: int, width: int) -> ViewMap:
        if self.spec.aspect_mode == "dynamic":  # among others, or a frame: not cut
            return one_view(self.spec.image_size, height, width)
        (view,) = picture_views(self.spec, height, width)
        return view

    def _to_patches(self, mask: np.ndarray, view: ViewMap) -> Bool[Tensor, "p"]:
        patches = torch.from_numpy(to_patches(mask, view, self.options.rule).patches.reshape(-1))
        expected = self.options.grid_side**2
        if len(patches) != expected:
            raise ValueError(
                f"a mask of {len(patches)} patches was made for a tower of {expected}; take patch size, image size and "
                "grid from one model"
            )
        return patches

    def _background(self) -> Bool[Tensor, "p"]:
        return torch.zeros(self.options.grid_side**2, dtype=torch.bool)

    # ---- files ----

    def _read(self, name: str) -> tuple[Detections | None, tuple[int, int]]:
        """Objects of a picture (None = there is no readable mask) and its height and width."""
        path = self.media_dir / PurePosixPath(name)
        strip = None if path.is_file() else next((f for n in STRIP_NAMES if (f := path.with_name(n)).is_file()), None)
        self.statistics.pictures += 1
        size = _size_of(path) if strip is None else _size_in(strip)
        try:
            found = self._of_file(name, path) if strip is None else self._in_strip(strip, path, size)
            if (found.height, found.width) != size:
                raise ValueError(
                    f"the mask has {found.height} x {found.width} pixels (height x width), the picture "
                    f"{size[0]} x {size[1]}; write it again: scripts/make_object_masks.py --overwrite"
                )
        except FileNotFoundError as error:
            self._without(name, str(error))
            return None, size
        except (ValueError, OSError, SyntaxError) as error:
            self._without(name, str(error), is_broken=True)
            return None, size
        self.statistics.objects += bool(len(found))
        return found, size

    def _of_file(self, name: str, path: Path) -> Detections:
        record = self._records.get(name)
        if record is not None:
            found = from_record(record, f"{ALL_OBJECTS} ({name})")
        else:
            found, record = self._beside(self.folder / PurePosixPath(name))
        if record.get("sha256") is not None and picture_hash(path) != record["sha256"]:
            raise ValueError(
                "the picture has changed since its objects were found; write them again: scripts/make_object_masks.py"
            )
        return found

    def _beside(self, place: Path) -> tuple[Detections, dict[str, Any]]:
        for kind in KINDS:
            path = file_beside(place, kind)
            if path.is_file() and kind == "json":
                record = io.load(path)
                return from_record(record, str(path)), record
            if path.is_file():
                return read_png(path)
        raise FileNotFoundError(f"neither {file_beside(place, 'json')} nor .png exists")

    def _in_strip(self, strip: Path, frame: Path, size: tuple[int, int]) -> Detections:
        """Row `frame` of the objects of a filmstrip; the whole strip is read once."""
        name = str(PurePosixPath(strip.relative_to(self.media_dir)))
        whole = self._strips.get(name, lambda: self._of_file(name, strip))
        number, (height, width) = frame_number(frame.name), size
        if whole.failure is not None:
            return Detections.failed(height, width, whole.failure)
        if number is None or whole.width != width or (number + 1) * height > whole.height:
            raise ValueError(
                f"the mask of {strip.name} has {whole.height} x {whole.width} pixels, expected row {frame.name} of "
                f"{height} x {width}; write it again"
            )
        rows = whole.pixel_mask()[number * height : (number + 1) * height]
        return Detections.of_masks(rows[None]) if rows.any() else Detections.of(height, width)

    def _without(self, name: str, why: str, count: int = 1, *, is_broken: bool = False) -> None:
        """Counts; the 1st, 10th, 100th ... is logged, and a data set in which nothing is found early on."""
        statistics = self.statistics
        if is_broken:
            statistics.broken += count
        else:
            statistics.missing += count
        if len(statistics.examples) < 5:
            statistics.examples.append(f"{name}: {why}")
        if self.options.missing == "error":
            raise BrokenSampleError(f"no object mask for {name}: {why}")
        number = statistics.broken if is_broken else statistics.missing
        if str(number).strip("0") == "1":
            kind = "broken" if is_broken else "missing"
            logger.warning(
                "%s object mask number %d of '%s', all is background: %s: %s", kind, number, self.name, name, why
            )
        if statistics.pictures >= FIRST_LOOK and statistics.missing == statistics.pictures == FIRST_LOOK:
            logger.warning(
                "none of the first %d pictures of '%s' has an object mask: only backgrounds are trained; check "
                "--object_masks, or write them: scripts/make_object_masks.py",
                FIRST_LOOK,
                self.name,
            )


def _size_of(path: Path) -> tuple[int, int]:
    """Height and width from a picture's header."""
    with Image.open(path) as image:
        return image.height, image.width


def _size_in(strip: Path) -> tuple[int, int]:
    """Height and width of a frame of a filmstrip."""
    facts = io.load(strip.with_name("filmstrip.json"))
    return int(facts["height"]), int(facts["width"])
