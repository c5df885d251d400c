"""Object patches of the frames that policies show to a model which reads background and objects apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from llava.eval.policies import EpisodeView
from llava.model.scene_split.object_source import frame_patches
from llava.model.scene_split.parts import SplitParts
from llava.scene.detector import ObjectDetector

NEEDS_FILES = ("precomputed",)
"""Detectors that look answers up by the file of a picture, which a frame of a walk does not have."""


class FrameObjects:
    """Each frame of a running episode is looked at once.

    The model's own detector answers where it can look at single frames; else the simulator's true instances.

    Args:
        detector: instead of the one that the model's configuration names.
    """

    def __init__(self, model: Any, detector: ObjectDetector | None = None) -> None:
        self.parts = SplitParts.of(model, force=False)
        self.detector = detector if detector is not None else _detector_for_frames(model)
        self._episodes: dict[str, dict[int, Bool[Tensor, "p"]]] = {}

    def describe(self) -> str:
        """Where object masks come from, for the protocol card."""
        if self.detector is None:
            return "the simulator's true instances"
        return f"detector {self.parts.split.config.detector or type(self.detector).__name__}"

    def of(self, view: EpisodeView, indices: Sequence[int]) -> Bool[Tensor, "n p"]:
        """Patches of some frames, True = object; a negative index is a black frame, without objects."""
        known = self._episodes.setdefault(view.key, {})
        new = sorted({index for index in indices if index >= 0} - known.keys())
        if new:
            known |= zip(new, self._look(view, new), strict=True)
        nothing = torch.zeros(self.parts.grid_side**2, dtype=torch.bool)
        return torch.stack([known[index] if index >= 0 else nothing for index in indices])

    def forget(self, key: str) -> None:
        self._episodes.pop(key, None)

    def _look(self, view: EpisodeView, indices: Sequence[int]) -> list[Bool[Tensor, "p"]]:
        spec, rule = self.parts.model.visual_spec, self.parts.patch_rule
        return [frame_patches(mask, spec, rule) for mask in self._masks(view, indices)]

    def _masks(self, view: EpisodeView, indices: Sequence[int]) -> list[Bool[np.ndarray, "_ _"]]:
        """
        Raises:
            ValueError: nobody says what the objects are.
        """
        if self.detector is not None:
            return [found.pixel_mask() for found in self.detector.detect([view.frames[index] for index in indices])]
        if view.object_masks is None:
            raise ValueError(
                "the model reads background and objects apart, its configuration names "
                f"{self.parts.split.config.detector!r}, which does not look at single frames, and the simulator tells "
                "no instances; set scene_split.detector to one that does, such as 'yolo', or walk in a world that "
                "renders instances"
            )
        if len(view.object_masks) != len(view.frames):
            raise ValueError(
                f"the view has {len(view.object_masks)} object_masks for {len(view.frames)} frames, expected one each"
            )
        return [view.object_masks[index] for index in indices]


def _detector_for_frames(model: Any) -> ObjectDetector | None:
    if model.scene_split.config.detector in NEEDS_FILES:
        return None
    found = model.scene_detector
    return None if getattr(found, "sees_clips", False) else found
