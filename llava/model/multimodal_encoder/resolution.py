"""Another input size for a trained tower: its table of positions is resized as the two-dimensional map that it is."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from llava.model.multimodal_encoder.families import square_side

if TYPE_CHECKING:
    from llava.model.multimodal_encoder.vision_encoder import VisionTower

MODES = ("bicubic", "bilinear")


def resize_positions(table: Tensor, prefix: int, side: int, mode: str = "bicubic", antialias: bool = False) -> Tensor:
    """A table [..., prefix + old², D] for a grid of side x side patches; the rows of the prefix stay as they are."""
    rows = table.reshape(-1, table.shape[-1])
    head, grid = rows[:prefix], rows[prefix:]
    before = round(len(grid) ** 0.5)
    maps = grid.reshape(1, before, before, -1).permute(0, 3, 1, 2).float()  # [1, D, y, x]
    maps = F.interpolate(maps, size=(side, side), mode=mode, align_corners=False, antialias=antialias)
    resized = torch.cat([head, maps[0].flatten(1).T.to(table.dtype)])
    return resized.reshape(*table.shape[:-2], *resized.shape)


def with_resolution(
    kind: type[VisionTower], model: PreTrainedModel, resolution: int, mode: str | None = None
) -> PreTrainedModel:
    """The model itself where it reads that size already, else a copy that does, with the same weights otherwise.

    Raises:
        ValueError: for an unknown mode. "linear" ran along the rows laid end to end and lost some of them.
    """
    config: Any = deepcopy(model.config)
    if square_side(config.image_size) == resolution:
        return model
    mode = mode or MODES[0]
    if mode not in MODES:
        raise ValueError(f"interpolate_mode is {mode!r}, expected {' or '.join(map(repr, MODES))} (two-dimensional)")
    patch = square_side(config.patch_size, "patch_size")
    if resolution < patch:
        raise ValueError(f"vision_resolution is {resolution}, expected at least one patch of {patch} pixels")
    config.image_size = resolution if isinstance(config.image_size, int) else (resolution, resolution)
    state = model.state_dict()
    if kind.position_table is not None:
        table, prefix = state[kind.position_table], kind.num_position_prefix
        state[kind.position_table] = resize_positions(table, prefix, resolution // patch, mode, kind.position_antialias)
    resized = kind.model_class._from_config(config, attn_implementation="sdpa", dtype=model.dtype)
    resized.load_state_dict(state)
    return resized.to(model.device)  # pyright: ignore[reportArgumentType]


def fit_processor(image_processor: Any, side: int) -> None:
    """Tells transformers' image processor of the checkpoint to make pictures of that size."""
    for name in ("size", "crop_size"):
        stored = getattr(image_processor, name, None)
        if stored is not None:
            setattr(image_processor, name, dict.fromkeys(dict(stored), side))
