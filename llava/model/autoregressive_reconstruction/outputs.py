"""What the next-frame loss returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from jaxtyping import Float
from torch import Tensor

from llava.model.autoregressive_reconstruction.clips import to_device
from llava.model.autoregressive_reconstruction.losses import (
    GeometryErrors,
    GeometrySums,
    SkillSums,
    frame_skills,
    masked_sum,
    skill_sums,
)
from llava.model.autoregressive_reconstruction.plan import SitePlan
from llava.model.loss import normalise


@dataclass(frozen=True, kw_only=True)
class SitePrediction:
    """What one site predicted.

    Attributes:
        plan: who predicts what.
        predicted, target, current: on the grid of targets, fp32; current = the frame predicted from.
        errors: training loss of each predicted frame; arbitrary where `plan.is_item` is False.
        geometry: the part of the errors that is the second target's, where there is one.
    """

    plan: SitePlan
    predicted: Float[Tensor, "v q p d"]
    target: Float[Tensor, "v q p d"]
    current: Float[Tensor, "v q p d"]
    errors: Float[Tensor, "v q"]
    geometry: GeometryErrors | None = None


@dataclass(frozen=True, kw_only=True)
class ReconstructionOutput:
    """Sums over the predicted frames of this batch.

    Attributes:
        loss_sum: unweighted; always connected to every parameter of the predictor.
        num_items: predicted frames.
        num_masked: frames that a control left out, see `SitePlan`.
        skill: error beside that of copying the current frame.
        by_motion: the same per class of executed motion (`SitePlan.motion_classes`), as far as motions are known.
        geometry: of the second target; None where there is none.
        sites: per site what was predicted; empty for a batch without video.
    """

    loss_sum: Float[Tensor, ""]
    num_items: int
    num_masked: int
    skill: SkillSums
    by_motion: Mapping[str, SkillSums]
    geometry: GeometrySums | None
    sites: Mapping[str, SitePrediction]

    def loss(self, num_items_in_batch: int | Tensor | None = None) -> Float[Tensor, ""]:
        """Mean over this batch, or this batch's share of the mean over a whole (accumulated, global) step."""
        return normalise(self.loss_sum, self.num_items, num_items_in_batch)

    def broken_clips(self) -> list[int]:
        """Clips with an error that is not finite."""
        broken: set[int] = set()
        for site in self.sites.values():
            is_broken = site.plan.is_item.to(site.errors.device) & ~torch.isfinite(site.errors)
            broken.update(is_broken.any(dim=1).nonzero()[:, 0].tolist())
        return sorted(broken)

    def surprise(self, num_frames: int) -> Float[Tensor, "v t"]:
        """How wrong the prediction of each frame of the clip was; NaN for frames that nothing predicted.

        The mean where both pathways predict the same frame.
        """
        site = self.sites["visual"]
        index, is_item = site.plan.targets.to(site.errors.device), site.plan.is_item.to(site.errors.device)
        total = site.errors.new_zeros(len(index), num_frames)
        index = index.clamp(min=0)
        count = total.scatter_add(1, index, is_item.to(total.dtype))
        total = total.scatter_add(1, index, torch.where(is_item, site.errors.detach(), 0.0))
        return total / torch.where(count > 0, count, torch.nan)


def sum_up(sites: Mapping[str, SitePrediction]) -> ReconstructionOutput:
    """Over the sites and all their predicted frames."""
    losses, skills, geometry = [], [], []
    by_motion: dict[str, SkillSums] = {}
    for site in sites.values():
        plan, device = site.plan, site.errors.device
        classes = plan.motion_classes()
        chosen = torch.stack([plan.is_item, *(plan.is_item & moved for moved in classes.values())])  # [C, V, Q]
        chosen = to_device(chosen, device)
        losses.append(masked_sum(site.errors, chosen[0]))
        geometry += [] if site.geometry is None else [site.geometry.sums(chosen[0])]
        per_frame = frame_skills(site.predicted.detach(), site.target, site.current, chosen[0])
        overall, *of_classes = skill_sums(per_frame, chosen)
        skills.append(overall)
        for name, sums in zip(classes, of_classes, strict=True):
            by_motion[name] = by_motion[name] + sums if name in by_motion else sums
    return ReconstructionOutput(
        loss_sum=torch.stack(losses).sum(),
        num_items=sum(int(site.plan.is_item.sum()) for site in sites.values()),
        num_masked=sum(site.plan.num_masked for site in sites.values()),
        skill=reduce(add, skills),
        by_motion=by_motion,
        geometry=reduce(add, geometry) if geometry else None,
        sites=sites,
    )
