"""Errors of predicted features, per frame; sums that can be added over micro-batches and ranks."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def frame_errors(
    predicted: Float[Tensor, "v q p d"], target: Float[Tensor, "v q p d"], loss_type: str
) -> Float[Tensor, "v q"]:
    """Mean error over the tokens (and channels) of each frame."""
    if loss_type == "cosine":
        return (1 - F.cosine_similarity(predicted, target, dim=-1)).mean(dim=-1)
    losses = {"mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss, "l1": F.l1_loss}
    return losses[loss_type](predicted, target, reduction="none").mean(dim=(-2, -1))


def masked_sum(per_frame: Float[Tensor, "v q"], is_item: Bool[Tensor, "v q"]) -> Float[Tensor, ""]:
    """Sum over the frames that count; what stands at the others, NaN included, has no influence."""
    return torch.where(is_item, per_frame, 0.0).sum()


@dataclass(frozen=True, kw_only=True)
class SkillSums:
    """Sums over `num_items` predicted frames, in fp32; add those of all micro-batches and ranks, then read.

    Attributes:
        squared_error, copy_squared_error: mean squared error of the prediction, and of the current frame in its place.
        centred_cosine: between prediction and target, both less the mean target token of the batch.
        delta_cosine: between predicted and true change.
    """

    num_items: Tensor
    squared_error: Tensor
    copy_squared_error: Tensor
    centred_cosine: Tensor
    delta_cosine: Tensor

    @classmethod
    def zero(cls, device: torch.device | str | None = None) -> SkillSums:
        return cls.unstack(torch.zeros(5, device=device))

    def __add__(self, other: SkillSums) -> SkillSums:
        return SkillSums(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def stack(self) -> Float[Tensor, "5"]:
        """One tensor, in the order of the attributes, for a reduction over ranks."""
        return torch.stack([getattr(self, f.name) for f in fields(self)])

    @classmethod
    def unstack(cls, sums: Float[Tensor, "5"]) -> SkillSums:
        return cls(**{f.name: value for f, value in zip(fields(cls), sums.unbind(), strict=True)})

    def read(self) -> dict[str, float]:
        """By name for the log; empty where nothing was predicted. Skill = 1 - error / error of copying the frame."""
        count = float(self.num_items)
        if count == 0:
            return {}
        ratio = float(self.squared_error / self.copy_squared_error) if float(self.copy_squared_error) else float("inf")
        return {
            "autoregressive_skill": 1 - ratio,
            "autoregressive_mse": float(self.squared_error) / count,
            "autoregressive_copy_mse": float(self.copy_squared_error) / count,
            "autoregressive_centred_cosine": float(self.centred_cosine) / count,
            "autoregressive_delta_cosine": float(self.delta_cosine) / count,
        }


@torch.no_grad()
def frame_skills(
    predicted: Float[Tensor, "v q p d"],
    target: Float[Tensor, "v q p d"],
    current: Float[Tensor, "v q p d"],
    is_item: Bool[Tensor, "v q"],
) -> Float[Tensor, "4 v q"]:
    """Per frame what `SkillSums` sums, in the order of its attributes; "current" is the frame predicted from."""
    count = (is_item.sum() * target.shape[2]).clamp(min=1)
    mean = torch.where(is_item[..., None, None], target, 0.0).sum(dim=(0, 1, 2)) / count
    centred = F.cosine_similarity(predicted - mean, target - mean, dim=-1).mean(dim=-1)
    delta = F.cosine_similarity(predicted - current, target - current, dim=-1).mean(dim=-1)
    errors = [frame_errors(guess, target, "mse") for guess in (predicted, current)]
    return torch.stack([*errors, centred, delta])


def skill_sums(per_frame: Float[Tensor, "4 v q"], chosen: Bool[Tensor, "c v q"]) -> list[SkillSums]:
    """Over the frames that each of the c rows chooses."""
    values = torch.cat([torch.ones_like(per_frame[:1]), per_frame])
    sums = torch.where(chosen[:, None], values, 0.0).sum(dim=(-2, -1))  # [C, 5]
    return [SkillSums.unstack(of_class) for of_class in sums]
