"""Next-frame feature prediction as an auxiliary loss. Names load on first use: the settings alone bring no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava.model.autoregressive_reconstruction.clips import VideoClips, describe_clips
    from llava.model.autoregressive_reconstruction.config import PRESETS, ReconstructionConfig
    from llava.model.autoregressive_reconstruction.losses import SkillSums
    from llava.model.autoregressive_reconstruction.module import (
        AutoregressiveReconstructionModule,
        create_autoregressive_reconstruction_module,
    )
    from llava.model.autoregressive_reconstruction.outputs import ReconstructionOutput
    from llava.model.autoregressive_reconstruction.plan import count_items
    from llava.model.autoregressive_reconstruction.predictor import ParallelAutoregressivePredictor
    from llava.model.autoregressive_reconstruction.rollout import roll_out
    from llava.model.autoregressive_reconstruction.teacher import FrozenVisionEmbeddingProcessor

__all__ = [
    "PRESETS",
    "AutoregressiveReconstructionModule",
    "FrozenVisionEmbeddingProcessor",
    "ParallelAutoregressivePredictor",
    "ReconstructionConfig",
    "ReconstructionOutput",
    "SkillSums",
    "VideoClips",
    "count_items",
    "create_autoregressive_reconstruction_module",
    "describe_clips",
    "roll_out",
]

_HOME = {
    "PRESETS": "config",
    "ReconstructionConfig": "config",
    "VideoClips": "clips",
    "describe_clips": "clips",
    "SkillSums": "losses",
    "AutoregressiveReconstructionModule": "module",
    "create_autoregressive_reconstruction_module": "module",
    "ReconstructionOutput": "outputs",
    "count_items": "plan",
    "ParallelAutoregressivePredictor": "predictor",
    "roll_out": "rollout",
    "FrozenVisionEmbeddingProcessor": "teacher",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
