"""From a batch to the module: pictures, or features that exist already, become clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llava.model.autoregressive_reconstruction.clips import VideoClips, describe_clips, to_device
from llava.model.autoregressive_reconstruction.config import ReconstructionConfig
from llava.model.autoregressive_reconstruction.module import AutoregressiveReconstructionModule
from llava.model.autoregressive_reconstruction.outputs import ReconstructionOutput
from llava.model.autoregressive_reconstruction.plan import count_items
from llava.model.autoregressive_reconstruction.teacher import FrozenVisionEmbeddingProcessor
from llava.model.utils import is_partitioned

PADDING = -1
"""Index of a frame that a shorter clip does not have."""

Clips = Mapping[str, Tensor]
"""`batch.ClipBatch`."""


@contextmanager
def outputs_of(module: nn.Module, *, wanted: bool = True) -> Iterator[list[Tensor]]:
    """What a module returns while the context lasts, so that nobody computes it twice."""
    seen: list[Tensor] = []
    if not wanted:
        yield seen
        return

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen.append(output)

    hook = module.register_forward_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()


def reconstruct(
    module: AutoregressiveReconstructionModule,
    hidden_states: Float[Tensor, "b s d"] | None,
    *,
    images: Any = None,
    tower_features: Float[Tensor, "n p w"] | None = None,
    video_frames: Tensor | None = None,
    clips: Clips | None = None,
    segment_ids: Int[Tensor, "b s"] | None = None,
    branch_ids: Int[Tensor, "b s"] | None = None,
) -> ReconstructionOutput:
    """Predicts the clips of a batch; without any, a zero that reaches every weight.

    Args:
        images: the pictures of the batch, which `clips["frames"]` counts.
        tower_features: what the tower made of them in this pass; used where tower and teacher are one.
        video_frames: [V, T, 3, H, W], whole clips apart from the sequence; then `clips` says nothing about pictures.
    """
    known: dict[str, Any] = {"segment_ids": segment_ids, "branch_ids": branch_ids}
    if clips is not None:
        known |= described(clips)
    if video_frames is not None:
        return module(hidden_states, video_frames, **known)
    if clips is None or "target_frames" not in clips:
        _touch_split_tower(module)
    if clips is None:
        return module(hidden_states)
    features = clip_features(module.teacher, clips, images, tower_features)
    return module(hidden_states, frame_features=features, features_of_teacher=True, **known)


def _touch_split_tower(module: AutoregressiveReconstructionModule) -> None:
    """Where the live tower is spread over ranks and some of them encode frames behind answers, all must gather it."""
    teacher = module.teacher
    if teacher.is_shared and "answer" in module.config.sites and is_partitioned(teacher.tower.parameters()):
        size, device = teacher.tower.image_size, module.predictor.place.device
        teacher.encode(torch.zeros(1, 1, 3, size, size, dtype=torch.uint8, device=device))


def described(clips: Clips) -> dict[str, Tensor | None]:
    """The keyword arguments of the module that say where and when the frames of the clips are."""
    is_real = clips["frames"] != PADDING if "frames" in clips else clips.get("is_real")
    return {
        "frame_end_positions": clips.get("frame_end_positions"),
        "answer_end_positions": clips.get("answer_end_positions"),
        "frame_times": clips.get("times"),
        "is_real_frame": is_real,
        "motions": clips.get("motions"),
        "clip_rows": clips.get("rows"),
        "geometry": clips.get("geometry"),
    }


def describe_batch(batch: Mapping[str, Any]) -> VideoClips | None:
    """The clips of a batch that is still in host memory; None where it has none."""
    clips, frames = batch.get("clips"), batch.get("video_frames")
    if clips is None and frames is None:
        return None
    shape = clips["frames"].shape if frames is None and clips is not None else frames.shape[:2]  # pyright: ignore
    known = described(clips) if clips is not None else {}
    known.pop("geometry", None)
    return describe_clips(*shape, **known)


def items_of_batch(batch: Mapping[str, Any], config: ReconstructionConfig) -> int:
    """Frames that will be predicted in a batch."""
    clips = describe_batch(batch)
    return 0 if clips is None or clips.times.shape[0] == 0 or clips.times.shape[1] < 2 else count_items(clips, config)


def clip_features(
    teacher: FrozenVisionEmbeddingProcessor, clips: Clips, images: Any, tower_features: Tensor | None
) -> Float[Tensor, "v t p d"]:
    """Each picture is encoded once, and not at all where the tower has done so; padding repeats the first picture."""
    targets = clips.get("target_frames")
    pictures = [] if images is None else [images]
    features = []
    if tower_features is not None and teacher.is_shared:
        features, pictures = [tower_features.detach()], []
    pictures += [] if targets is None else [targets]
    if pictures:
        features.append(teacher.encode(torch.cat(pictures)[None])[0])
    index = clips["frames"].clamp(min=0)
    return torch.cat(features)[to_device(index, features[0].device)]
