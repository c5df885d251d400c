"""From the vision tower's width to the language model's, merging neighbouring patches on the way."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig

from llava.utils.registry import Registry
from llava.utils.weight_names import weight_names

LayerBuilder = Callable[[int, int], nn.Module]

PROJECTORS: Registry[LayerBuilder] = Registry("projector type")
"""Name -> (vision width, language width) -> layers; `mlp{N}x_gelu` is understood for every N."""

_DOWNSAMPLE_RATES = {
    "mlp_downsample": 2,
    "mlp_downsample_2x2_fix": 2,
    "mlp_downsample_3x3_fix": 3,
    "mlp_downsample_3x3_s2": 3,
    "mlp_downsample_3x3_s2_new": 3,
}
_MLP = re.compile(r"mlp(\d+)x_gelu")


def downsample_rate(projector_type: str) -> int:
    """Side in patches of the square that becomes one token; 1 for projectors that keep every patch."""
    return _DOWNSAMPLE_RATES.get(projector_type, 1)


def merge_neighbours(tokens: Float[Tensor, "b p d"], rate: int, order: str = "row") -> Float[Tensor, "b q e"]:
    """Squares of rate x rate patches become one token of rate² times the width; channels run row-wise inside a square.

    Grids that do not divide get zero patches at the bottom and the right. order says how the merged tokens follow each
    other: "row" by row, or "column" by column (VILA-1.5 and NaVILA).
    """
    batch, num_patches, width = tokens.shape
    side = round(num_patches**0.5)
    if side * side != num_patches:
        raise ValueError(
            f"{num_patches} patches are not a square grid; drop the class token (mm_vision_select_feature='patch')"
        )
    missing = -side % rate
    grid = F.pad(tokens.reshape(batch, side, side, width), (0, 0, 0, missing, 0, missing))
    cells = (side + missing) // rate
    grid = grid.reshape(
        batch, cells, rate, cells, rate, width
    )  # [b, cell row, row in cell, cell column, column in cell, d]
    cell_axes = (1, 3) if order == "row" else (3, 1)
    return grid.permute(0, *cell_axes, 2, 4, 5).reshape(batch, cells * cells, rate * rate * width)


class DownSample(nn.Module):
    """`merge_neighbours` as a layer without parameters."""

    def __init__(self, rate: int, order: str = "row") -> None:
        super().__init__()
        if order not in ("row", "column"):
            raise ValueError(f"token_order is {order!r}, expected 'row' or 'column'")
        self.rate, self.order = rate, order

    def forward(self, tokens: Tensor) -> Tensor:
        return merge_neighbours(tokens, self.rate, self.order)


def _norm_linear(widths: list[int]) -> list[nn.Module]:
    """LayerNorm, Linear, GELU for each step of widths."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.LayerNorm(before), nn.Linear(before, after), nn.GELU()]
    return layers


@PROJECTORS.register("identity")
def _identity(mm: int, h: int) -> nn.Module:
    if mm != h:
        raise ValueError(f"projector 'identity' keeps width {mm}, the language model wants {h}; use 'linear'")
    return nn.Identity()


@PROJECTORS.register("linear")
def _linear(mm: int, h: int) -> nn.Module:
    return nn.Linear(mm, h)


@PROJECTORS.register("mlp_downsample", "mlp_downsample_2x2_fix")
def _mlp_downsample(mm: int, h: int) -> nn.Module:
    return nn.Sequential(DownSample(2), *_norm_linear([4 * mm, h]), nn.Linear(h, h))


@PROJECTORS.register("mlp_downsample_3x3_fix")
def _mlp_downsample_3x3(mm: int, h: int) -> nn.Module:
    return nn.Sequential(DownSample(3), *_norm_linear([9 * mm, 3 * mm, h]), nn.Linear(h, h))


@PROJECTORS.register("mlp_downsample_3x3_s2")
def _mlp_downsample_3x3_s2(mm: int, h: int) -> nn.Module:
    return nn.Sequential(DownSample(3), *_norm_linear([9 * mm, 3 * mm, mm, mm // 3, h]), nn.Linear(h, h))


@PROJECTORS.register("mlp_downsample_3x3_s2_new")
def _mlp_downsample_3x3_s2_new(mm: int, h: int) -> nn.Module:
    return nn.Sequential(DownSample(3), *_norm_linear([9 * mm, 4 * mm, 2 * mm, mm, mm // 3, h]), nn.Linear(h, h))


def build_layers(projector_type: str, mm_hidden_size: int, hidden_size: int, token_order: str = "row") -> nn.Module:
    """Layers whose parameter names are those of published checkpoints (`layers.1.weight`, ...)."""
    if match := _MLP.fullmatch(projector_type):
        widths = [mm_hidden_size] + [hidden_size] * int(match[1])
        steps = [nn.Linear(a, b) for a, b in pairwise(widths)]
        return nn.Sequential(*(layer for step in steps for layer in (step, nn.GELU())))[:-1]
    try:
        layers = PROJECTORS[projector_type](mm_hidden_size, hidden_size)
    except KeyError as error:
        raise ValueError(f"{error.args[0]} (and mlp2x_gelu, mlp3x_gelu, ...)") from None
    if projector_type == "mlp_downsample":
        return nn.Sequential(DownSample(2, token_order), *list(layers.children())[1:])
    return layers


class MultimodalProjectorConfig(PreTrainedConfig):
    """token_order None in a file means that its writer had only one order: the folder's reader decides."""

    model_type = "v2l_projector"
    __no_type_check__ = True  # configs of transformers take any keyword; shape checks under pytest would refuse it

    mm_projector_type: str | None = None
    mm_hidden_size: int | None = None
    hidden_size: int | None = None
    token_order: str | None = None
    image_newline: bool = False


class MultimodalProjector(PreTrainedModel):
    """[N, patches, vision width] -> [N, tokens, language width]; its parameters live under `layers`.

    `image_newline` [language width] is there for models that end the rows of a tiled picture with it, else None.
    """

    config_class = MultimodalProjectorConfig
    base_model_prefix = ""
    main_input_name = "x"
    _supports_sdpa = True

    def __init__(self, config: MultimodalProjectorConfig) -> None:
        super().__init__(config)
        for key in ("mm_projector_type", "mm_hidden_size", "hidden_size"):
            if getattr(config, key, None) is None:
                raise ValueError(f"the projector's config has no {key}; its file names the type, its caller the widths")
        kind: Any = config.mm_projector_type
        before: Any = config.mm_hidden_size
        after: Any = config.hidden_size
        self.downsample_rate = downsample_rate(kind)
        self.layers = build_layers(kind, before, after, config.token_order or "row")
        self.image_newline = nn.Parameter(torch.empty(after)) if config.image_newline else None
        self.post_init()

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights; "identity" has none, and transformers asks before it saves."""
        return next((weight.dtype for weight in self.parameters()), torch.get_default_dtype())

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Writes settings and weights; "identity" gets a file without any, as a part without a file counts as lost."""
        super().save_pretrained(save_directory, **kwargs)
        if not weight_names(self):
            save_file({}, Path(save_directory) / "model.safetensors", metadata={"format": "pt"})

    def _init_weights(self, module: nn.Module) -> None:
        """Fresh layers start as `nn.Linear` does by itself, wider than the usual 0.02: small models learn faster."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        if isinstance(module, MultimodalProjector) and module.image_newline is not None:
            init.normal_(module.image_newline, std=len(module.image_newline) ** -0.5)

    def forward(self, x: Float[Tensor, "n p d"]) -> Float[Tensor, "n q h"]:
        return self.layers(x)
