"""Builds a fresh projector from its type or settings."""

from __future__ import annotations

from typing import Any

from llava.model.multimodal_projector.base_projector import MultimodalProjector, MultimodalProjectorConfig


def build_mm_projector(
    part: Any, mm_hidden_size: int, hidden_size: int, token_order: str | None = None
) -> MultimodalProjector:
    """A projector with fresh weights.

    Args:
        part: projector type ("mlp_downsample"), settings, or a config object.
        mm_hidden_size, hidden_size: widths of the vision tower and of the language model.
        token_order: order of the merged tokens; settings that name one win. New projectors are row-major.
    """
    settings = {"mm_projector_type": part} if isinstance(part, str) else part
    settings = dict(settings if isinstance(settings, dict) else settings.to_dict())
    if settings.get("mm_projector_type") is None:
        raise ValueError(
            "mm_projector_cfg names no mm_projector_type, expected one such as 'mlp_downsample' or 'mlp2x_gelu'"
        )
    order = settings.get("token_order") or token_order or "row"
    config = MultimodalProjectorConfig(
        mm_projector_type=settings["mm_projector_type"],
        mm_hidden_size=mm_hidden_size,
        hidden_size=hidden_size,
        token_order=order,
        dtype=settings.get("dtype"),
    )
    return MultimodalProjector(config)
