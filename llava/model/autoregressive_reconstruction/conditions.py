"""What a predictor is told about a frame beside its features: when it was taken, how far its target lies, motions."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llava.model.autoregressive_reconstruction.clips import to_device

SHORTEST_PERIOD, LONGEST_PERIOD, NUM_PERIODS = 0.25, 4096.0, 16
"""In the unit of the time stamps: low-level steps, frames or seconds alike."""


def time_features(times: Float[Tensor, "*b"]) -> Float[Tensor, "*b f"]:
    """Sine and cosine at periods from the shortest to the longest, in equal ratios; fp32."""
    steps = torch.linspace(0, 1, NUM_PERIODS, device=times.device)
    period = SHORTEST_PERIOD * (LONGEST_PERIOD / SHORTEST_PERIOD) ** steps
    angle = 2 * math.pi * times.float()[..., None] / period
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def motion_features(motion: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b f"]:
    """Forward metres, sine and cosine of the yaw, yaw in half turns, log of the steps, and whether it is known."""
    is_known = ~motion.isnan().any(dim=-1, keepdim=True)
    forward, yaw, steps = torch.where(is_known, motion, 0.0).float().unbind(-1)
    angle = torch.deg2rad(yaw)
    values = torch.stack([forward, angle.sin(), 1 - angle.cos(), yaw / 180, steps.clamp(min=0).log1p()], dim=-1)
    return torch.cat([values, is_known.float()], dim=-1)


class FrameConditions(nn.Module):
    """One vector per frame that is added to all of its tokens: the sum of what is told."""

    def __init__(self, width: int, *, tells_gap: bool, tells_motion: bool) -> None:
        super().__init__()
        self.when = nn.Linear(2 * NUM_PERIODS, width)
        self.gap = nn.Linear(2 * NUM_PERIODS + 1, width) if tells_gap else None
        self.motion_in = _mlp(width) if tells_motion else None
        self.motion_out = _mlp(width) if tells_motion else None
        for layer in (self.when, self.gap):
            if layer is not None:  # NUM_PERIODS is the squared length of the sines and cosines: outputs of variance 1
                nn.init.normal_(layer.weight, std=NUM_PERIODS**-0.5)
                nn.init.zeros_(layer.bias)

    def forward(
        self,
        times: Float[Tensor, "v q"],
        gap: Float[Tensor, "v q"],
        motion_in: Float[Tensor, "v q 3"] | None,
        motion_out: Float[Tensor, "v q 3"] | None,
    ) -> Float[Tensor, "v q d"]:
        """times: since the first real frame of each clip."""
        told = self.when(self._on_device(time_features(times)))
        if self.gap is not None:
            told = told + self.gap(
                self._on_device(torch.cat([time_features(gap), gap.float().log1p()[..., None]], dim=-1))
            )
        for layers, motion in ((self.motion_in, motion_in), (self.motion_out, motion_out)):
            if layers is not None:
                assert motion is not None
                told = told + layers(self._on_device(motion_features(motion)))
        return told

    def _on_device(self, features: Tensor) -> Tensor:
        """Sines of few numbers are made where the numbers are, on the host."""
        weight = self.when.weight
        return to_device(features, weight.device).to(weight.dtype)


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, width), nn.GELU(), nn.Linear(width, width))
