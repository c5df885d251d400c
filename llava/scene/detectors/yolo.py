"""Objects by a YOLO model of the `ultralytics` package (an optional extra, licence AGPL-3.0)."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava.scene.detections import Detections
from llava.scene.detector import DETECTORS, Picture, check_pictures
from llava.scene.detector_input import Frame
from llava.utils.registry import suggest

logger = logging.getLogger(__name__)

DEFAULT_SIDE = 640


@DETECTORS.register("yolo")
class YoloDetector:
    """Detect and segment models; the boxes of a detect model count as filled.

    Args:
        weights: a `.pt` file, or a `.yaml` with a model's layers, which then has random weights. Nothing is downloaded.
        confidence: smallest score of an object.
        keep: "all" objects, or the "best" one of each picture.
        classes: names or ids to keep; None = all.
        image_size: side in pixels to which pictures are letterboxed; "native" = they are not scaled, only padded up to
            a multiple of 32 (336 -> 352); None = the side that the model was trained with.
        batch: most pictures of one call. Pictures of unequal size never share a call, so mates change nothing.
        device: as torch names it; None = ultralytics decides.
    """

    def __init__(
        self,
        weights: str | Path,
        *,
        confidence: float | int = 0.25,
        keep: str = "all",
        classes: Sequence[str | int] | None = None,
        image_size: int | str | None = None,
        batch: int = 16,
        device: str | None = None,
    ) -> None:
        if not 0 <= confidence <= 1:
            raise ValueError(f"confidence is {confidence}, expected 0 to 1")
        if keep not in ("all", "best"):
            raise ValueError(f"keep is {keep!r}, expected 'all' or 'best'")
        if batch < 1:
            raise ValueError(f"batch is {batch}, expected at least 1")
        if not (image_size in (None, "native") or (isinstance(image_size, int) and image_size >= 32)):
            raise ValueError(f"image_size is {image_size!r}, expected at least 32 pixels, 'native' or None")
        self.model = load_model(weights)
        self._one_at_a_time = threading.Lock()
        self.confidence, self.keep, self.batch, self.device = confidence, keep, batch, device
        self.image_size = image_size or int(self.model.overrides.get("imgsz") or DEFAULT_SIDE)
        self.class_ids = None if classes is None else _class_ids(classes, self.model.names)

    def __getstate__(self) -> dict[str, Any]:
        """Copies, and detectors in other processes, have a lock of their own."""
        return {name: value for name, value in vars(self).items() if name != "_one_at_a_time"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _one_at_a_time=threading.Lock())

    def detect(self, pictures: Sequence[Picture], sources: Sequence[str | Path] | None = None) -> list[Detections]:
        check_pictures(pictures)
        of_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, picture in enumerate(pictures):
            of_shape[picture.shape].append(place)
        answers: dict[int, Detections] = {}
        for places in of_shape.values():
            for begin in range(0, len(places), self.batch):
                some = places[begin : begin + self.batch]
                found = self._detect_equal([pictures[place] for place in some])
                answers.update(zip(some, found, strict=True))
        return [answers[place] for place in range(len(pictures))]

    def _detect_equal(self, pictures: list[Picture]) -> list[Detections]:
        """Pictures of one size, at most `batch` of them. A model of ultralytics keeps the state of a call in itself."""
        height, width = pictures[0].shape[:2]
        is_native = self.image_size == "native"
        frame = Frame.around(height, width) if is_native else Frame.around(height, width, stride=1)
        with self._one_at_a_time:
            results = self.model.predict(
                [np.ascontiguousarray(frame.put(picture)[..., ::-1]) for picture in pictures],  # ultralytics reads BGR
                imgsz=[frame.outer_height, frame.outer_width] if is_native else self.image_size,
                conf=self.confidence,
                classes=self.class_ids,
                device=self.device,
                retina_masks=True,  # masks in the size of the picture
                verbose=False,
                save=False,
            )
        found = [_read(result, frame) for result in results]
        return [answer.most_confident() for answer in found] if self.keep == "best" else found


def _read(result: Any, frame: Frame) -> Detections:
    boxes, masks = result.boxes, result.masks
    class_ids = boxes.cls.cpu().numpy().astype(np.int64)
    outer = None if masks is None else masks.data.cpu().numpy().astype(bool)
    return Detections.of(
        frame.height,
        frame.width,
        frame.boxes_back(boxes.xyxy.cpu().numpy().astype(np.float64)),
        scores=boxes.conf.cpu().numpy(),
        class_ids=class_ids,
        names=[result.names[int(number)] for number in class_ids],
        masks=None if outer is None else frame.masks_back(outer),
    )


def load_model(weights: str | Path) -> Any:
    """A detect or segment model of ultralytics from a file; never from the net.

    Raises:
        ImportError: with the pip command, where ultralytics is missing.
        ValueError: for a file that does not exist or holds another kind of model.
    """
    YOLO = _import_yolo()
    path = Path(weights).expanduser()
    if path.suffix not in (".pt", ".yaml", ".yml"):
        raise ValueError(f"weights are '{weights}', expected a .pt file, or a .yaml with the layers of a model")
    if path.suffix == ".pt" and not path.is_file():  # ultralytics would try to download it
        raise ValueError(
            f"weights '{weights}' do not exist (working folder {Path.cwd()}) and nothing is downloaded; fetch the file "
            "yourself, or train one: scripts/train/yolo_embedded.sh"
        )
    try:
        model = YOLO(str(path))
    except FileNotFoundError as error:
        raise ValueError(
            f"'{weights}' is neither a file nor a model that ultralytics knows, such as yolo11n.yaml or "
            f"yolov8n-seg.yaml: {error}"
        ) from error
    if model.task not in ("detect", "segment"):
        raise ValueError(f"'{weights}' is a model for '{model.task}', expected one that detects or segments objects")
    if path.suffix != ".pt":
        logger.warning("%s has random weights; what it finds means nothing", weights)
    return model


def _import_yolo() -> Any:
    """The class, without what its import does to Pillow: with it every picture that cannot be decoded would start a
    pip install, anywhere in the program."""
    open_picture = Image.open
    try:
        from ultralytics import YOLO  # pyright: ignore[reportPrivateImportUsage]
    except ImportError as error:
        raise ImportError(
            f"detector 'yolo' needs the package ultralytics ({error}): pip install 'llava[yolo]' "
            "(pip install ultralytics-opencv-headless); without it use the detectors 'precomputed' or 'motion'"
        ) from error
    finally:
        Image.open = open_picture
    return YOLO


def _class_ids(classes: Sequence[str | int], names: dict[int, str]) -> list[int]:
    """Ids of the classes to keep, ascending."""
    if isinstance(classes, str) or not len(classes):
        raise ValueError(f"classes are {classes!r}, expected a list of names or ids; None keeps all")
    by_name, found = {name: number for number, name in names.items()}, set()
    for wanted in classes:
        is_id = isinstance(wanted, int) or wanted.isdigit()
        number = int(wanted) if is_id else by_name.get(str(wanted))
        if number is None or number not in names:
            near = f"; ids are 0 to {max(names)}" if is_id else suggest(str(wanted), list(by_name))
            raise ValueError(f"the model knows no class {wanted!r}{near}")
        found.add(number)
    return sorted(found)
