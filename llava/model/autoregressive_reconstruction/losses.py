"""Errors of predicted features, per frame; sums that can be added over micro-batches and ranks."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def frame_errors(
    predicted: Float[Tensor, "v q p d"], target: Float[Tensor, "v q p d"], loss_type: str
) -> Float[Tensor, "v q"]:
    """Mean error over the tokens (and channels) of each frame."""
    return token_errors(predicted, target, loss_type).mean(dim=-1)


def token_errors(
    predicted: Float[Tensor, "v q p d"], target: Float[Tensor, "v q p d"], loss_type: str
) -> Float[Tensor, "v q p"]:
    """Mean error over the channels of each token."""
    if loss_type == "cosine":
        return 1 - F.cosine_similarity(predicted, target, dim=-1)
    losses = {"mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss, "l1": F.l1_loss}
    return losses[loss_type](predicted, target, reduction="none").mean(dim=-1)


def masked_sum(per_frame: Float[Tensor, "v q"], is_item: Bool[Tensor, "v q"]) -> Float[Tensor, ""]:
    """Sum over the frames that count; what stands at the others, NaN included, has no influence."""
    return torch.where(is_item, per_frame, 0.0).sum()


S = TypeVar("S", bound="Sums")


class Sums:
    """Scalar tensors in the fields of a dataclass, in fp32: add those of all micro-batches and ranks, then read."""

    @classmethod
    def zero(cls: type[S], device: torch.device | str | None = None) -> S:
        return cls.unstack(torch.zeros(len(fields(cls)), device=device))  # pyright: ignore[reportArgumentType]

    def __add__(self: S, other: S) -> S:
        return self.unstack(self.stack() + other.stack())

    def stack(self) -> Float[Tensor, " n"]:
        """One tensor, in the order of the fields, for a reduction over ranks."""
        return torch.stack([getattr(self, f.name) for f in fields(self)])  # pyright: ignore[reportArgumentType]

    @classmethod
    def unstack(cls: type[S], sums: Float[Tensor, " n"]) -> S:
        names = [f.name for f in fields(cls)]  # pyright: ignore[reportArgumentType]
        return cls(**dict(zip(names, sums.unbind(), strict=True)))


@dataclass(frozen=True, kw_only=True)
class SkillSums(Sums):
    """Sums over `num_items` predicted frames.

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

    def read(self) -> dict[str, float]:
        """By name for the log; empty where nothing was predicted. Skill = 1 - error / error of copying the frame.

        A copy that is right everywhere (still pictures, control `current_frame`) leaves the skill undefined and out.
        """
        count = float(self.num_items)
        if count == 0:
            return {}
        skill = _skill(self.squared_error, self.copy_squared_error)
        return {
            **({} if skill is None else {"autoregressive_skill": skill}),
            "autoregressive_mse": float(self.squared_error) / count,
            "autoregressive_copy_mse": float(self.copy_squared_error) / count,
            "autoregressive_centred_cosine": float(self.centred_cosine) / count,
            "autoregressive_delta_cosine": float(self.delta_cosine) / count,
        }


@dataclass(frozen=True, kw_only=True)
class GeometrySums(Sums):
    """Sums of the second target over the predicted frames.

    Attributes:
        num_known, num_unknown: frames of which some token is known, there and in the frame predicted from; the others.
        error, copy_error: in the loss's own type, unweighted; of the prediction, and of the current frame in its place.
    """

    num_known: Tensor
    num_unknown: Tensor
    error: Tensor
    copy_error: Tensor

    def read(self) -> dict[str, float]:
        """By name for the log: mean error of known frames, skill against copying, and how many frames were unknown."""
        known, unknown = float(self.num_known), float(self.num_unknown)
        figures = {"autoregressive_geometry_unknown": unknown} if known + unknown else {}
        if known:
            figures["autoregressive_geometry_loss"] = float(self.error) / known
            skill = _skill(self.error, self.copy_error)
            figures |= {} if skill is None else {"autoregressive_geometry_skill": skill}
        return figures


def _skill(error: Tensor, copy_error: Tensor) -> float | None:
    """None where copying makes no error, so that there is nothing to compare with."""
    return 1 - float(error / copy_error) if float(copy_error) else None


@dataclass(frozen=True, kw_only=True)
class GeometryErrors:
    """Errors of the second target per predicted frame, unweighted; 0 where is_known is False."""

    errors: Float[Tensor, "v q"]
    copy_errors: Float[Tensor, "v q"]
    is_known: Bool[Tensor, "v q"]

    def sums(self, is_item: Bool[Tensor, "v q"]) -> GeometrySums:
        """Over the frames that count."""
        return GeometrySums(
            num_known=(is_item & self.is_known).sum().float(),
            num_unknown=(is_item & ~self.is_known).sum().float(),
            error=masked_sum(self.errors.detach(), is_item),
            copy_error=masked_sum(self.copy_errors, is_item),
        )


def geometry_errors(
    predicted: Float[Tensor, "v q p g"],
    target: Float[Tensor, "v q p g"],
    current: Float[Tensor, "v q p g"],
    loss_type: str,
) -> GeometryErrors:
    """Means over the tokens that are known (not NaN) in the target and in the frame predicted from."""
    is_known = ~(current.isnan() | target.isnan()).any(dim=3)  # [V, Q, P]
    count = is_known.sum(dim=2)
    predicted, target, current = (torch.where(is_known[..., None], v, 0.0) for v in (predicted, target, current))

    def mean(guess: Tensor) -> Tensor:
        return torch.where(is_known, token_errors(guess, target, loss_type), 0.0).sum(dim=2) / count.clamp(min=1)

    return GeometryErrors(errors=mean(predicted), copy_errors=mean(current), is_known=count > 0)


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
