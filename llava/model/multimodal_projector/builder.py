"""The projector part: fresh from its type or settings, or read from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava.model.checkpoints import ReadOptions
from llava.model.checkpoints.keys import read_part
from llava.model.configuration_llava import LlavaConfig
from llava.model.multimodal_projector.base_projector import MultimodalProjector, MultimodalProjectorConfig


def build_mm_projector(
    part: Any,
    mm_hidden_size: int,
    hidden_size: int,
    *,
    token_order: str | None = None,
    image_newline: bool = False,
    dtype: Any = None,
) -> MultimodalProjector:
    """A projector with fresh weights, or read when `part` is a folder.

    Args:
        part: projector type ("mlp_downsample"), folder, settings, or a config object.
        mm_hidden_size, hidden_size: widths of the vision tower and of the language model.
        token_order: order of the merged tokens; settings that name one win. New projectors are row-major.
        image_newline: the model ends the rows of tiled pictures with a vector of its own; settings win.
    """
    if isinstance(part, str | Path) and (Path(part) / "config.json").is_file():
        options = ReadOptions(dtype=dtype or "auto")
        return read_mm_projector(part, mm_hidden_size, hidden_size, token_order=token_order, options=options)
    settings = {"mm_projector_type": part} if isinstance(part, str) else LlavaConfig.part_as_dict(part) or {}
    if settings.get("mm_projector_type") is None:
        raise ValueError("mm_projector_cfg names no mm_projector_type, expected one such as 'mlp_downsample'")
    config = MultimodalProjectorConfig(
        mm_projector_type=settings["mm_projector_type"],
        mm_hidden_size=mm_hidden_size,
        hidden_size=hidden_size,
        token_order=settings.get("token_order") or token_order or "row",
        image_newline=bool(settings.get("image_newline", image_newline)),
    )
    return MultimodalProjector._from_config(config, **({} if dtype is None else {"dtype": dtype}))


def read_mm_projector(
    folder: Path | str, mm_hidden_size: int, hidden_size: int, *, token_order: str | None, options: ReadOptions
) -> MultimodalProjector:
    """A projector from its folder; the widths of its neighbours must be those it was trained for.

    token_order None or a stored one: the stored one wins; a folder without one is VILA-1.5's (column).
    """
    config = MultimodalProjectorConfig.from_pretrained(str(folder))
    config.mm_hidden_size, config.hidden_size = mm_hidden_size, hidden_size
    config.token_order = config.token_order or token_order or "column"
    return read_part(
        MultimodalProjector.from_pretrained,
        folder,
        "projector",
        config=config,
        dtype=options.dtype,
        device_map=options.device_map,
    )
