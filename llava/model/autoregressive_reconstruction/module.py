"""The next-frame loss as one module: teacher, predictor, error. Data flow and names: README.md of this folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llava.model.autoregressive_reconstruction.attention import FrameBlocks, plan_blocks
from llava.model.autoregressive_reconstruction.checks import check_context, check_features, check_geometry, check_width
from llava.model.autoregressive_reconstruction.clips import VideoClips, describe_clips, to_device
from llava.model.autoregressive_reconstruction.conditions import FrameConditions
from llava.model.autoregressive_reconstruction.config import ReconstructionConfig
from llava.model.autoregressive_reconstruction.context import LanguageContext, cut_context, gather_slots
from llava.model.autoregressive_reconstruction.losses import (
    GeometryErrors,
    GeometrySums,
    SkillSums,
    frame_errors,
    geometry_errors,
)
from llava.model.autoregressive_reconstruction.outputs import ReconstructionOutput, SitePrediction, sum_up
from llava.model.autoregressive_reconstruction.plan import SitePlan, as_predicted, other_clip, plan_site
from llava.model.autoregressive_reconstruction.predictor import ParallelAutoregressivePredictor
from llava.model.autoregressive_reconstruction.targets import (
    gather_frames,
    grid_side_of,
    make_geometry,
    make_targets,
    pooled_side,
)
from llava.model.autoregressive_reconstruction.teacher import Frames, FrozenVisionEmbeddingProcessor

logger = logging.getLogger(__name__)

PerFrame = Float[Tensor, "..."] | Int[Tensor, "..."] | Bool[Tensor, "..."] | None
"""Shapes of what describes the frames are checked in `describe_clips`, whose errors say what to do."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a batch as the language model left them."""

    hidden_states: Float[Tensor, "b s d"] | None = None
    segment_ids: Int[Tensor, "b s"] | None = None
    branch_ids: Int[Tensor, "b s"] | None = None


class AutoregressiveReconstructionModule(nn.Module):
    """From what was seen up to frame t predicts the features of frame t+1; for training, or to measure surprise.

    Args:
        vision_tower: anything with hidden_size, num_patches, image_size and forward(pixels) -> [N, P, D].
        hidden_size: width of the language model's states.
        token_order: how a frame's slots follow each other in the sequence, "row" by row or "column" by column; read by
            predictor_input "hidden" only.
    """

    def __init__(
        self, vision_tower: nn.Module, hidden_size: int, config: ReconstructionConfig, *, token_order: str = "row"
    ) -> None:
        super().__init__()
        if token_order not in ("row", "column"):
            raise ValueError(f"token_order is {token_order!r}, expected 'row' or 'column'")
        self.config, self.hidden_size, self.token_order = config, hidden_size, token_order
        self.teacher = FrozenVisionEmbeddingProcessor(vision_tower, chunk_size=config.teacher_chunk)
        self.embedding_dim = check_width(self.teacher.embedding_dim, config)
        self.target_side = pooled_side(grid_side_of(self.teacher.num_patches), config.target_pool)
        widths = {"language": hidden_size, "vision": self.embedding_dim}
        width: Any = widths.get(str(config.predictor_dim), config.predictor_dim)
        self.input_dim = self.embedding_dim if config.predictor_input == "teacher" else hidden_size
        self.predictor = ParallelAutoregressivePredictor(
            input_dim=self.input_dim,
            output_dim=self.embedding_dim,
            width=width,
            num_tokens=self.target_side**2,
            num_heads=config.num_heads,
            num_layers=config.num_layers,
            context_dim=None if config.context == "none" else hidden_size,
            geometry_dim=config.geometry_dim,
            starts_at_zero=config.head == "residual",
        )
        self.conditions = FrameConditions(
            width, tells_gap=config.use_time_gap, tells_motion=config.condition_on_action != "none"
        )
        self._has_said_no_context = False
        if config.control == "frozen_predictor":
            self.requires_grad_(False)
        if not config.use_frame_causal_mask:
            logger.warning("use_frame_causal_mask is False: predictions see their targets, which only a control may do")

    def compute_autoregressive_loss(
        self, hidden_states: Float[Tensor, "b s d"] | None, video_frames: Frames | None, **known: Any
    ) -> Float[Tensor, ""]:
        """Mean error of the predicted frames of a batch, not weighted; zero where nothing can be predicted.

        known: the keyword arguments of `forward`. Without frame_end_positions frames are predicted from frames alone.
        """
        return self(hidden_states, video_frames, **known).loss()

    def forward(
        self,
        hidden_states: Float[Tensor, "b s d"] | None,
        video_frames: Frames | None = None,
        *,
        frame_features: Float[Tensor, "..."] | None = None,
        features_of_teacher: bool = False,
        frame_end_positions: PerFrame = None,
        answer_end_positions: PerFrame = None,
        frame_times: PerFrame = None,
        is_real_frame: PerFrame = None,
        motions: PerFrame = None,
        clip_rows: PerFrame = None,
        geometry: Float[Tensor, "..."] | None = None,
        segment_ids: Int[Tensor, "b s"] | None = None,
        branch_ids: Int[Tensor, "b s"] | None = None,
    ) -> ReconstructionOutput:
        """Predicts and compares V clips of T frames; `VideoClips` says what describes them.

        Args:
            hidden_states: states of the language model, not detached; None where nothing is fused.
            video_frames: [V, T, 3, H, W]; None, no clip or fewer than two frames give a connected zero.
            frame_features: [V, T, P, D] of a frozen tower that ran already; then no picture is encoded.
            features_of_teacher: they come from this module's own `teacher`, which may then be a copy.
            geometry: [V, T, n, geometry_dim], NaN = unknown, n any square number of tokens.
            segment_ids, branch_ids: of packed or branched rows, see `model/attention.py`.

        Raises:
            ValueError: for whatever does not fit the frames, the sequence or the configuration.
        """
        counted = frame_features if video_frames is None else video_frames
        if counted is None or counted.shape[0] == 0 or counted.shape[1] < 2:
            return self._nothing_to_predict(hidden_states)
        clips = describe_clips(
            *counted.shape[:2],
            frame_end_positions=frame_end_positions,
            answer_end_positions=answer_end_positions,
            frame_times=frame_times,
            is_real_frame=is_real_frame,
            motions=motions,
            clip_rows=clip_rows,
        )
        self._say_if_frames_alone(check_context(hidden_states, clips, self.config, self.hidden_size))
        check_geometry(geometry, clips.times.shape, self.config.geometry_dim)
        targets = self._targets(self._features(video_frames, frame_features, features_of_teacher), clips)
        if geometry is not None:
            assert self.config.geometry_dim is not None
            geometry = make_geometry(geometry, self.target_side**2, self.config.geometry_dim, self.config.geometry_norm)
        rows = Rows(hidden_states=hidden_states, segment_ids=segment_ids, branch_ids=branch_ids)
        return sum_up(self.predict_sites(targets, clips, rows, geometry))

    def predict_sites(
        self,
        targets: Float[Tensor, "v t p d"],
        clips: VideoClips,
        rows: Rows,
        geometry: Float[Tensor, "v t p g"] | None = None,
    ) -> Mapping[str, SitePrediction]:
        """Per site what is predicted from normalised, pooled features."""
        clips = as_predicted(clips, self.config)
        plans = {site: plan_site(clips, self.config, site) for site in self.config.sites}
        return {site: self._predict_site(plan, targets, rows, geometry) for site, plan in plans.items()}

    def _predict_site(self, plan: SitePlan, targets: Tensor, rows: Rows, geometry: Tensor | None) -> SitePrediction:
        current = targets[:, to_device(plan.clips.indices, targets.device)]  # [V, Q, P, D]
        predicted, change = self._predict(plan, current, rows)
        predicted = current + predicted if self.config.head == "residual" else predicted
        target = self._target_of(plan, targets, current)
        errors = frame_errors(predicted, target, self.config.loss_type)
        second = None if change is None else self._geometry_errors(plan, change, geometry)
        if second is not None:
            errors = errors + self.config.geometry_weight * second.errors
        return SitePrediction(
            plan=plan, predicted=predicted, target=target, current=current, errors=errors, geometry=second
        )

    def _predict(self, plan: SitePlan, current: Tensor, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """What the predictor adds to the current frame, or gives in its place; and the second target."""
        device, clips = current.device, plan.clips
        states = rows.hidden_states
        if states is not None and self.config.control == "detached_states":
            states = states.detach()
        context: LanguageContext | None = None
        if plan.context_ends is not None:
            assert states is not None
            context = cut_context(states, plan.context_ends, clips.rows, rows.segment_ids, rows.branch_ids)
        conditions = self.conditions(plan.since_start, plan.gap, plan.motion_in, plan.motion_out)
        inputs = current if self.config.predictor_input == "teacher" else self._slots(states, clips)
        return self.predictor(inputs, conditions, self._blocks(plan, device), context)

    def _blocks(self, plan: SitePlan, device: torch.device) -> list[FrameBlocks]:
        """Per layer who sees whom; layers of the same window share one plan."""
        windows = self.config.layer_windows
        by_window = dict(zip(windows, plan.visible, strict=True))
        planned = {window: plan_blocks(visible, device) for window, visible in by_window.items()}
        return [planned[window] for window in windows]

    def _slots(self, states: Tensor | None, clips: VideoClips) -> Float[Tensor, "v q p d"]:
        """States at the slots of each frame, row by row as the targets are."""
        assert states is not None and clips.frame_end_positions is not None
        side = self.target_side
        slots = gather_slots(states, clips.frame_end_positions, side * side, clips.rows)
        if self.token_order == "row":
            return slots
        return slots.unflatten(2, (side, side)).transpose(2, 3).flatten(2, 3)

    # ---- targets ----

    def _features(self, frames: Tensor | None, features: Tensor | None, of_teacher: bool) -> Float[Tensor, "v t n d"]:
        if features is None:
            assert frames is not None
            return self.teacher.encode(frames)
        teacher = self.teacher
        is_known = teacher.is_shared or of_teacher
        fit = {"is_known": is_known, "num_patches": teacher.num_patches, "width": self.embedding_dim}
        check_features(features, frames, **fit)
        return features

    def _targets(self, features: Tensor, clips: VideoClips) -> Float[Tensor, "v t p d"]:
        """Padding is zero, whatever pictures stood there."""
        targets = make_targets(features, self.config.target_pool, self.config.target_norm)
        return torch.where(to_device(clips.is_real, targets.device)[..., None, None], targets, 0.0)

    def _target_of(self, plan: SitePlan, targets: Tensor, current: Tensor) -> Float[Tensor, "v q p _"]:
        """Of features or geometry: the frame to be predicted, or what a control puts in its place."""
        if self.config.control == "current_frame":
            return current
        if self.config.control == "other_clip":
            targets = other_clip(targets)
        return gather_frames(targets, to_device(plan.targets, targets.device))

    def _geometry_errors(self, plan: SitePlan, change: Tensor, geometry: Tensor | None) -> GeometryErrors:
        assert geometry is not None, "check_geometry was not called"
        now = geometry[:, to_device(plan.clips.indices, geometry.device)]
        later = self._target_of(plan, geometry, now)
        predicted = now + change if self.config.head == "residual" else change
        return geometry_errors(predicted, later, now, self.config.geometry_loss_type)

    # ---- nothing to do ----

    def _say_if_frames_alone(self, sees_states: bool) -> None:
        if not sees_states and self.config.context is None and not self._has_said_no_context:
            logger.warning("no frame_end_positions: frames are predicted from frames alone (context='none')")
            self._has_said_no_context = True

    def _nothing_to_predict(self, hidden_states: Tensor | None) -> ReconstructionOutput:
        """Zero, with a gradient of zero for every parameter: a rank without video must not leave the others waiting."""
        device = self.predictor.place.device
        blank = torch.zeros(1, 1, self.target_side**2, self.input_dim, device=device)
        block = plan_blocks(torch.ones(1, 1, 1, dtype=torch.bool), device)
        moment = torch.zeros(1, 1, device=device)
        motion = None if self.config.condition_on_action == "none" else moment[..., None].expand(1, 1, 3)
        conditions = self.conditions(moment, moment, motion, motion)
        outputs = self.predictor(blank, conditions, [block] * self.config.num_layers)
        zero = sum((0.0 * output.sum() for output in outputs if output is not None), moment.sum())
        if hidden_states is not None:
            zero = zero + 0.0 * hidden_states[:, :1].float().sum()
        skill, geometry = (
            SkillSums.zero(device),
            None if self.config.geometry_dim is None else GeometrySums.zero(device),
        )
        return ReconstructionOutput(
            loss_sum=zero, num_items=0, num_masked=0, skill=skill, by_motion={}, geometry=geometry, sites={}
        )


def create_autoregressive_reconstruction_module(
    vision_tower: nn.Module,
    hidden_size: int,
    config: ReconstructionConfig | Mapping[str, Any] | None = None,
    *,
    token_order: str = "row",
) -> AutoregressiveReconstructionModule:
    """The module for this tower and a language model of this width; config may be a plain dict of its keys."""
    return AutoregressiveReconstructionModule(
        vision_tower, hidden_size, ReconstructionConfig.read(config), token_order=token_order
    )
