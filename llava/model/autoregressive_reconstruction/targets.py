"""What is predicted: features as squares of patches, averaged and normalised; and which frame is whose target."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def grid_side_of(num_patches: int) -> int:
    """Side of the square of patches; class tokens and registers stand before it.

    >>> grid_side_of(729), grid_side_of(577)
    (27, 24)
    """
    return math.isqrt(num_patches)


def pooled_side(side: int, pool: int) -> int:
    """An incomplete square at the border counts as one."""
    return -(-side // pool)


@torch.no_grad()
def make_targets(features: Float[Tensor, "v t n d"], pool: int, norm: str) -> Float[Tensor, "v t p d"]:
    """Tokens before the grid dropped, squares of pool x pool patches averaged, each token normalised; in fp32.

    The average of an incomplete square at the border is that of the patches that exist.
    """
    side = grid_side_of(features.shape[2])
    tokens = features.detach()[:, :, -(side * side) :].float()
    if pool > 1:
        grid = tokens.flatten(0, 1).transpose(1, 2).unflatten(2, (side, side))  # [V*T, D, side, side]
        grid = F.avg_pool2d(grid, pool, ceil_mode=True, count_include_pad=False)
        tokens = grid.flatten(2).transpose(1, 2).unflatten(0, features.shape[:2])
    return F.layer_norm(tokens, tokens.shape[-1:]) if norm == "layer_norm" else tokens


@torch.no_grad()
def make_geometry(
    geometry: Float[Tensor, "v t n g"], num_tokens: int, width: int, norm: str = "none"
) -> Float[Tensor, "v t p g"]:
    """A second target on the grid of the first; what is averaged with an unknown (NaN) value is unknown.

    Raises:
        ValueError: for another width, or tokens that are no square: a file prepared for another setting.
    """
    side, wanted = grid_side_of(geometry.shape[2]), grid_side_of(num_tokens)
    if geometry.shape[3] != width or side * side != geometry.shape[2]:
        raise ValueError(
            f"geometry has shape {list(geometry.shape)}, expected [clips, frames, a square number of tokens, {width}]; "
            f"prepare the feature files anew or set geometry_dim to {geometry.shape[3]}"
        )
    grid = geometry.detach().float().flatten(0, 1).transpose(1, 2).unflatten(2, (side, side))
    pooled = F.adaptive_avg_pool2d(grid, wanted).flatten(2).transpose(1, 2)
    pooled = F.layer_norm(pooled, pooled.shape[-1:]) if norm == "layer_norm" else pooled
    return pooled.unflatten(0, geometry.shape[:2])


def next_of_pathway(
    times: Float[Tensor, "v t"], takes_part: Bool[Tensor, "v t"], pathway: Int[Tensor, "t"]
) -> Int[Tensor, "v t"]:
    """For each frame the earliest frame of its own pathway at a later moment; -1 = there is none."""
    later = times[:, None, :] > times[:, :, None]  # [V, frame, candidate]
    eligible = later & takes_part[:, None, :] & takes_part[:, :, None] & (pathway[None, :] == pathway[:, None])
    when = torch.where(eligible, times[:, None, :], math.inf)
    index = when.argmin(dim=2)
    return torch.where(eligible.any(dim=2), index, torch.full_like(index, -1))


def gather_frames(per_frame: Tensor, index: Int[Tensor, "v q"]) -> Any:
    """[V, T, ...] at a frame index per clip -> [V, Q, ...]; -1 gives an arbitrary frame, to be masked."""
    clips = torch.arange(len(index), device=index.device)[:, None]
    return per_frame[clips, index.clamp(min=0)]
