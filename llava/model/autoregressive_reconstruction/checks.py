"""Whether what came in fits what was configured: every answer names the value, the expectation and the next step."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from llava.model.autoregressive_reconstruction.clips import NOT_IN_SEQUENCE, VideoClips
from llava.model.autoregressive_reconstruction.config import ReconstructionConfig


def check_width(tower_width: int, config: ReconstructionConfig) -> int:
    """The width of the teacher's features."""
    if config.embedding_dim not in (None, tower_width):
        raise ValueError(
            f"embedding_dim is {config.embedding_dim}, the vision tower gives {tower_width}; set embedding_dim to "
            f"{tower_width}, or to None for whatever the tower gives"
        )
    return tower_width


def check_features(
    features: Float[Tensor, "..."], frames: Tensor | None, *, is_known: bool, num_patches: int, width: int
) -> None:
    """Features that the tower computed already may stand for pictures only where tower and teacher are one."""
    if not is_known:
        raise ValueError(
            "frame_features were given and the vision tower is trained, expected video_frames: the teacher is a copy "
            "of the tower as it was, and its features are others"
        )
    if features.ndim != 4 or tuple(features.shape[2:]) != (num_patches, width):
        raise ValueError(
            f"frame_features has shape {list(features.shape)}, expected [clips, frames, {num_patches}, {width}]; give "
            "what the vision tower returned, before the projector"
        )
    if frames is not None and frames.shape[:2] != features.shape[:2]:
        raise ValueError(
            f"frame_features are of {list(features.shape[:2])} clips and frames, video_frames of "
            f"{list(frames.shape[:2])}; give either of them"
        )


def check_geometry(geometry: Float[Tensor, "..."] | None, shape: tuple[int, ...], width: int | None) -> None:
    if width is None and geometry is not None:
        raise ValueError(
            f"the batch has geometry {list(geometry.shape)} and geometry_dim is None; set it or leave it out"
        )
    if width is not None and geometry is None:
        raise ValueError(
            f"geometry_dim is {width} and the batch has no geometry, expected [clips, frames, tokens, {width}] with "
            "NaN where it is unknown"
        )
    if geometry is not None and (geometry.ndim != 4 or tuple(geometry.shape[:2]) != shape):
        raise ValueError(
            f"geometry has shape {list(geometry.shape)}, expected [{shape[0]}, {shape[1]}, tokens, {width}]: one entry "
            "per frame of video_frames"
        )


def check_context(
    hidden_states: Tensor | None, clips: VideoClips, config: ReconstructionConfig, hidden_size: int
) -> bool:
    """Whether the language model's states are seen."""
    if config.context == "none":
        return False
    if clips.frame_end_positions is None:
        if config.context == "language" or config.predictor_input == "hidden":
            raise ValueError(
                "the predictor is to see the language model's states and the batch has no frame_end_positions, "
                "expected [clips, frames]: let the collator record them, or set context to 'none'"
            )
        return False
    if hidden_states is None or hidden_states.ndim != 3 or hidden_states.shape[-1] != hidden_size:
        found = "no hidden_states" if hidden_states is None else f"hidden_states {list(hidden_states.shape)}"
        raise ValueError(
            f"frame_end_positions come with {found}, expected [rows, tokens, {hidden_size}]; build the module with the "
            "language model's hidden_size"
        )
    _check_rows(len(hidden_states), clips)
    for name in ("frame_end_positions", "answer_end_positions"):
        _check_positions(name, getattr(clips, name), hidden_states.shape[1])
    return True


def _check_positions(name: str, ends: Tensor | None, length: int) -> None:
    if ends is not None and bool(((ends >= length) | (ends < NOT_IN_SEQUENCE)).any()):
        raise ValueError(
            f"{name} {ends.tolist()} do not fit a sequence of {length} tokens, expected -1..{length - 1}; a frame or "
            f"answer that was cut off has {NOT_IN_SEQUENCE}"
        )


def _check_rows(num_rows: int, clips: VideoClips) -> None:
    if clips.rows is None and num_rows != len(clips.times):
        raise ValueError(
            f"{len(clips.times)} clips and {num_rows} rows of hidden_states, expected as many; say in clip_rows which "
            "row holds each clip"
        )
    if clips.rows is not None and not bool(((clips.rows >= 0) & (clips.rows < num_rows)).all()):
        raise ValueError(f"clip_rows are {clips.rows.tolist()}, expected 0..{num_rows - 1}, rows of hidden_states")
