"""Which parts of a picture are objects: the protocol, the table of detectors, and what happens when one crashes."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from llava.scene.detections import Detections
from llava.utils.registry import Registry

logger = logging.getLogger(__name__)

Picture = UInt8[np.ndarray, "_ _ 3"]
"""RGB, of any size."""


@runtime_checkable
class ObjectDetector(Protocol):
    """Finds the objects of pictures; the same pictures give the same answers."""

    def detect(self, pictures: Sequence[Picture], sources: Sequence[str | Path] | None = None) -> list[Detections]:
        """One answer per picture, in pixels of that picture.

        Args:
            sources: the file of each picture, for detectors that look answers up; others do not read it.
        """
        ...


DETECTORS: Registry[Callable[..., ObjectDetector]] = Registry("object detector")
"""Name -> class whose keywords are its settings."""

MOST_EXAMPLES = 5
_MODULES = ("yolo", "precomputed", "motion")


def build_detector(name: str, **options: Any) -> ObjectDetector:
    """A detector by its name in `DETECTORS`, with its own settings as keywords.

    Raises:
        ValueError: for a name or a setting that does not exist.
        ImportError: with the pip command, where the detector needs a package that is missing.
    """
    for module in _MODULES:
        importlib.import_module(f"llava.scene.detectors.{module}")
    try:
        detector = DETECTORS[name]
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    known = list(inspect.signature(detector).parameters)
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"detector '{name}' has no setting {unknown}; it has {known}")
    return detector(**options)


@dataclass(frozen=True, kw_only=True)
class FailureReport:
    """What went wrong so far: a crash on a clip is one crash and as many failures as the clip has pictures."""

    num_pictures: int = 0
    num_failures: int = 0
    num_crashes: int = 0
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = "".join(f"\n  {example}" for example in self.examples)
        return f"{self.num_failures} of {self.num_pictures} pictures without an answer, each taken as a whole{shown}"


@dataclass
class GuardedDetector:
    """A detector whose crash on one picture costs that picture, not the run.

    A batch that crashes is asked again picture by picture. A picture that crashes alone becomes `Detections.failed`:
    one whole object, so that it is answered right and merely saves nothing. An answer that is no answer (another
    length, boxes that are no numbers, a mask of another size) counts as a crash.

    Attributes:
        max_crashes: one more ends the run with the reasons; a detector that always crashes would otherwise pass for one
            that finds whole pictures.
        sees_clips: the answer depends on all pictures of a call (motion), so asking again one by one means nothing and
            the whole clip fails together. None = as the detector says with an attribute of that name.
    """

    detector: ObjectDetector
    max_crashes: int = 20
    sees_clips: bool | None = None
    report: FailureReport = field(default_factory=FailureReport)

    def __post_init__(self) -> None:
        if self.max_crashes < 0:
            raise ValueError(f"max_crashes is {self.max_crashes}, expected at least 0 (the first crash ends the run)")
        if self.sees_clips is None:
            self.sees_clips = bool(getattr(self.detector, "sees_clips", False))

    def detect(self, pictures: Sequence[Picture], sources: Sequence[str | Path] | None = None) -> list[Detections]:
        """
        Raises:
            RuntimeError: after more than `max_crashes` crashes, with their reasons.
        """
        answers, reason = self._ask(pictures, sources)
        if answers is None and len(pictures) > 1 and not self.sees_clips:
            logger.warning("a batch of %d pictures crashed (%s); asking one by one", len(pictures), reason)
            named = [None] * len(pictures) if sources is None else [[source] for source in sources]
            pairs = zip(pictures, named, strict=True)
            return [answer for picture, source in pairs for answer in self.detect([picture], source)]
        self.report = replace(self.report, num_pictures=self.report.num_pictures + len(pictures))
        if answers is None:
            answers = [Detections.failed(picture.shape[0], picture.shape[1], reason) for picture in pictures]
            self._count(len(pictures), reason)
        return answers

    def _ask(
        self, pictures: Sequence[Picture], sources: Sequence[str | Path] | None
    ) -> tuple[list[Detections] | None, str]:
        try:
            answers = self.detector.detect(pictures, sources)
            _check_answers(answers, pictures)
        except Exception as error:  # the guard exists for detectors that raise anything
            return None, f"{type(error).__name__}: {error}"
        return answers, ""

    def _count(self, number: int, reason: str) -> None:
        old = self.report
        is_new = reason not in old.examples and len(old.examples) < MOST_EXAMPLES
        self.report = replace(
            old,
            num_failures=old.num_failures + number,
            num_crashes=old.num_crashes + 1,
            examples=(*old.examples, reason) if is_new else old.examples,
        )
        logger.warning("no objects found out for %d picture(s), taken as a whole: %s", number, reason)
        if self.report.num_crashes > self.max_crashes:
            raise RuntimeError(f"more than {self.max_crashes} crashes, the detector is broken: {self.report}")


def _check_answers(answers: Sequence[Detections], pictures: Sequence[Picture]) -> None:
    if len(answers) != len(pictures):
        raise ValueError(f"{len(answers)} answers for {len(pictures)} pictures, expected one each")
    for answer, picture in zip(answers, pictures, strict=True):
        if (answer.height, answer.width) != picture.shape[:2]:
            raise ValueError(
                f"an answer is for {answer.height} x {answer.width} pixels, its picture has "
                f"{picture.shape[0]} x {picture.shape[1]}; boxes are in pixels of the picture that was given"
            )


def check_pictures(pictures: Sequence[Any]) -> None:
    """Refuses what is no RGB picture, by its place in the list."""
    for place, picture in enumerate(pictures):
        is_picture = isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2] == 3
        if not is_picture or picture.dtype != np.uint8 or 0 in picture.shape:
            what = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
            raise ValueError(f"picture {place} is {what}, expected uint8 [height, width, 3] (RGB)")
