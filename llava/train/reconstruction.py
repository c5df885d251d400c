"""What the trainer does about the next-frame loss: counts its items, sets its weight, tells how it fares, warns."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from llava.model.autoregressive_reconstruction.batches import items_of_batch
from llava.model.autoregressive_reconstruction.config import ReconstructionConfig
from llava.model.autoregressive_reconstruction.losses import GeometrySums, SkillSums
from llava.model.outputs import ReconstructionTerm
from llava.train.parts import LANGUAGE_MODEL, part_of
from llava.utils.distributed import gather_objects

logger = logging.getLogger(__name__)

LARGEST_RATIO = 0.5
"""Weighted auxiliary loss / main loss above which the log warns: it then decides what is learnt."""
SMALLEST_SHARE = 0.01
"""Weighted auxiliary gradient / main gradient below which the log warns: it then changes nothing."""
LARGEST_GROWTH = 10.0
"""Of a weight that follows a share of the gradient, from one measurement to the next."""
MEASURED_WEIGHTS = 50_000_000
"""Of a part with more trainable weights only some tensors, evenly spread, are measured."""
MEASURED_PARTS = (LANGUAGE_MODEL, "vision_tower")
ON_DEVICE = ("target_frames", "geometry")
"""Entries of a batch's clips that the model computes with."""


@dataclass(frozen=True)
class OnHost:
    """What no engine moves to a device: the attention over clips is planned where Python runs."""

    value: dict[str, Any]


@dataclass(frozen=True)
class KeepClipsOnHost:
    """A collator whose clips stay in host memory."""

    collator: Callable[[Any], Any]

    def __call__(self, samples: Any) -> Any:
        batch = self.collator(samples)
        return {**batch, "clips": OnHost(batch["clips"])} if "clips" in batch else batch


def with_clips(
    batch: Mapping[str, Any], move: Callable[[dict[str, Any]], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The batch with its clips as a mapping again.

    Args:
        move: brings what the model computes with to its device.
    """
    clips = batch.get("clips")
    if not isinstance(clips, OnHost):
        return dict(batch)
    computed = {name: clips.value[name] for name in ON_DEVICE if name in clips.value}
    return {**batch, "clips": {**clips.value, **(move(computed) if move and computed else computed)}}


@dataclass(frozen=True, kw_only=True)
class GradientComparison:
    """Norms over the weights of one part; the auxiliary one without its weight."""

    main: float
    auxiliary: float
    cosine: float


@dataclass
class _Finite:
    """Whether the losses of a micro-batch were finite; kept on the device until a log line is due."""

    step: int
    sample_ids: Sequence[str]
    is_finite: Tensor


@dataclass
class _Sums:
    skill: SkillSums | None = None
    by_motion: dict[str, SkillSums] = field(default_factory=dict)
    geometry: GeometrySums | None = None
    num_masked: int = 0
    checks: list[_Finite] = field(default_factory=list)


class ReconstructionMonitor:
    """The weight of the next-frame loss over a run, and its figures between two log lines.

    Every rank sees the same weight: it changes only by figures that all ranks have exchanged.
    """

    def __init__(self, config: ReconstructionConfig) -> None:
        self.config = config
        self.base_weight = config.loss_weight
        self._cap = math.inf
        self._sums = _Sums()
        self._gradients: dict[str, GradientComparison] = {}
        self._cannot_measure = False
        self._warned: set[str] = set()

    # ---- weight ----

    def weight(self, progress: float) -> float:
        """At a share of the training, 0 to 1."""
        decay = 1 - min(progress, 1.0) if self.config.weight_decay == "linear" else 1.0
        return min(self.base_weight * decay, self._cap)

    def state(self) -> dict[str, float | None]:
        """What a resumed run must know to go on with the same weight."""
        cap = None if math.isinf(self._cap) else self._cap
        return {"base_weight": self.base_weight, "cap": cap}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.base_weight = float(state.get("base_weight", self.base_weight))
        self._cap = math.inf if state.get("cap") is None else float(state["cap"])

    # ---- counting and watching ----

    def count(self, batches: Iterable[Mapping[str, Any]]) -> int:
        """Frames that this rank will predict in a step, from batches in host memory."""
        return sum(items_of_batch(with_clips(batch), self.config) for batch in batches)

    def observe(self, term: ReconstructionTerm, *, step: int, sample_ids: Sequence[str]) -> None:
        """Adds one micro-batch."""
        sums = self._sums
        sums.skill = term.skill if sums.skill is None else sums.skill + term.skill
        for name, skill in term.by_motion.items():
            sums.by_motion[name] = sums.by_motion[name] + skill if name in sums.by_motion else skill
        if term.geometry is not None:
            sums.geometry = term.geometry if sums.geometry is None else sums.geometry + term.geometry
        sums.num_masked += term.num_masked
        sums.checks.append(_Finite(step, sample_ids, torch.isfinite(term.loss.detach())))

    def check_finite(self) -> None:
        """Raises FloatingPointError: names the first step whose auxiliary loss was not finite, and its samples."""
        for check in self._sums.checks:
            if not bool(check.is_finite):
                raise FloatingPointError(
                    f"autoregressive_loss is not finite at step {check.step}, samples {list(check.sample_ids)}; look "
                    "at their frames, lower --autoregressive_lr, or go on from an earlier checkpoint"
                )

    # ---- gradients ----

    def is_due(self, step: int) -> bool:
        """Whether both gradients are measured at this step; the same on every rank."""
        every = self.config.gradient_every
        if every == 0 or self._cannot_measure or self.config.auxiliary_only:
            return False
        return step % every == 0

    def measure(self, total: Tensor, term: ReconstructionTerm, model: nn.Module, *, engine_watches: bool) -> None:
        """Compares the gradients of both losses of one micro-batch; costs two more backward passes through it.

        Args:
            engine_watches: the engine takes every backward pass for one of its own (DeepSpeed).
        """
        if engine_watches or any(hasattr(p, "device_mesh") for p in model.parameters()):
            self._give_up("DeepSpeed and FSDP allow no backward pass but their own")
            return
        if not term.loss.requires_grad or float(term.skill.num_items) == 0:
            found: dict[str, GradientComparison] = {}
        else:
            found = compare_gradients(total - term.weight * term.loss, term.loss, model)
        ranks = gather_objects(found)
        self._gradients = {part: _mean([r[part] for r in ranks if part in r]) for part in MEASURED_PARTS
                           if any(part in r for r in ranks)}  # fmt: skip
        if self.config.gradient_share is not None and self._gradients:
            self._follow_share(self.config.gradient_share)

    def _follow_share(self, share: float) -> None:
        """A head that begins at zero gives next to no gradient in its first steps. The weight of the share would be in
        the thousands, and stay there until the next measurement, when the head has long begun to learn.
        """
        main = math.hypot(*(g.main for g in self._gradients.values()))
        auxiliary = math.hypot(*(g.auxiliary for g in self._gradients.values()))
        if auxiliary > 0:
            self.base_weight = min(share * main / auxiliary, LARGEST_GROWTH * self.base_weight)

    def _give_up(self, why: str) -> None:
        if self.config.gradient_share is not None:
            raise ValueError(
                f"gradient_share is {self.config.gradient_share}, gradients cannot be measured: {why}; set loss_weight"
            )
        logger.info("gradients of the two losses are not compared: %s", why)
        self._cannot_measure = True

    # ---- the log ----

    def read(self, logs: Mapping[str, float], progress: float) -> dict[str, float]:
        """Figures since the last call, over all micro-batches and ranks; then the weight is brought up to date.

        Every rank must call it. logs: means of main_loss and autoregressive_loss.
        """
        self.check_finite()
        sums, self._sums = self._sums, _Sums()
        weight = self.weight(progress)
        result = {"autoregressive_weight": weight}
        found = _over_ranks(sums)
        result |= _figures(found)
        main, auxiliary = logs.get("main_loss", 0.0), logs.get("autoregressive_loss", 0.0)
        if main > 0:
            result["autoregressive_ratio"] = weight * auxiliary / main
            self._follow_cap(main, auxiliary)
        for part, gradient in self._gradients.items():
            result[f"gradient_ratio_{part}"] = weight * gradient.auxiliary / max(gradient.main, 1e-30)
            result[f"gradient_cosine_{part}"] = gradient.cosine
        self._warn(result, has_items=float(found.skill.num_items) + found.num_masked > 0)
        return result

    def _follow_cap(self, main: float, auxiliary: float) -> None:
        cap = self.config.max_loss_ratio
        if cap is not None:
            self._cap = cap * main / auxiliary if auxiliary > 0 else math.inf

    def _warn(self, figures: Mapping[str, float], *, has_items: bool) -> None:
        """Each warning once per run."""
        if not has_items:
            self._warn_once("no frames", "no frame was predicted since the last log line: the batches hold no clips")
        if figures.get("autoregressive_geometry_unknown") and "autoregressive_geometry_loss" not in figures:
            self._warn_once(
                "geometry",
                "the geometry of no frame was known since the last log line: the second target teaches nothing; check "
                "that depth_path holds the videos of the mixture",
            )
        ratio = figures.get("autoregressive_ratio", 0.0)
        if ratio > LARGEST_RATIO:
            self._warn_once(
                "ratio",
                f"the weighted next-frame loss is {ratio:.2f} of the main loss, expected at most {LARGEST_RATIO}; "
                "lower loss_weight, or set max_loss_ratio",
            )
        shares = [value for name, value in figures.items() if name.startswith("gradient_ratio_")]
        if shares and max(shares) < SMALLEST_SHARE and figures["autoregressive_weight"] > 0:
            self._warn_once(
                "share",
                f"the next-frame loss gives {max(shares):.2%} of the main loss's gradient, expected at least "
                f"{SMALLEST_SHARE:.0%} to have an effect; raise loss_weight, or set gradient_share",
            )

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            logger.warning(message)


def compare_gradients(main: Tensor, auxiliary: Tensor, model: nn.Module) -> dict[str, GradientComparison]:
    """Per part of the model that is trained; the graph stays for the backward pass of the step."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and part_of(name) in MEASURED_PARTS:
            parts.setdefault(part_of(name), []).append(parameter)
    chosen = {part: _spread(weights) for part, weights in parts.items()}
    flat = [weight for weights in chosen.values() for weight in weights]
    if not flat:
        return {}
    gradients = [torch.autograd.grad(loss, flat, retain_graph=True, allow_unused=True) for loss in (main, auxiliary)]
    result, begin = {}, 0
    for part, weights in chosen.items():
        ours = [grads[begin : begin + len(weights)] for grads in gradients]
        begin += len(weights)
        result[part] = _compare(*ours)
    return result


def _spread(weights: list[nn.Parameter]) -> list[nn.Parameter]:
    total = sum(weight.numel() for weight in weights)
    return weights[:: math.ceil(total / MEASURED_WEIGHTS)]


def _compare(main: Sequence[Tensor | None], auxiliary: Sequence[Tensor | None]) -> GradientComparison:
    def dot(left: Sequence[Tensor | None], right: Sequence[Tensor | None]) -> float:
        pairs = [(a, b) for a, b in zip(left, right, strict=True) if a is not None and b is not None]
        return float(sum((a.double() * b.double()).sum() for a, b in pairs))

    norms = math.sqrt(dot(main, main)), math.sqrt(dot(auxiliary, auxiliary))
    cosine = dot(main, auxiliary) / (norms[0] * norms[1]) if min(norms) > 0 else 0.0
    return GradientComparison(main=norms[0], auxiliary=norms[1], cosine=cosine)


def _mean(found: Sequence[GradientComparison]) -> GradientComparison:
    def mean(name: str) -> float:
        return sum(getattr(one, name) for one in found) / len(found)

    return GradientComparison(main=mean("main"), auxiliary=mean("auxiliary"), cosine=mean("cosine"))


@dataclass(frozen=True, kw_only=True)
class _Totals:
    """What the ranks saw together."""

    skill: SkillSums
    by_motion: Mapping[str, SkillSums]
    geometry: GeometrySums | None
    num_masked: int


def _over_ranks(sums: _Sums) -> _Totals:
    own = {f"motion {name}": skill.stack().tolist() for name, skill in sums.by_motion.items()}
    own["skill"] = (SkillSums.zero() if sums.skill is None else sums.skill).stack().tolist()
    own["masked"] = [float(sums.num_masked)]
    if sums.geometry is not None:
        own["geometry"] = sums.geometry.stack().tolist()
    total: dict[str, Tensor] = {}
    for rank in gather_objects(own):
        for name, values in rank.items():
            total[name] = total[name] + torch.tensor(values) if name in total else torch.tensor(values)
    motions = {name: values for name, values in total.items() if name.startswith("motion ")}
    return _Totals(
        skill=SkillSums.unstack(total["skill"]),
        by_motion={name.removeprefix("motion "): SkillSums.unstack(values) for name, values in motions.items()},
        geometry=GeometrySums.unstack(total["geometry"]) if "geometry" in total else None,
        num_masked=int(total["masked"]),
    )


def _figures(found: _Totals) -> dict[str, float]:
    """For the log. Skills without anything to compare with are left out and counted, so that no mean becomes -inf."""
    result = found.skill.read()
    skills = {"": result.get("autoregressive_skill")} if float(found.skill.num_items) else {}
    for name, sums in found.by_motion.items():
        if float(sums.num_items):
            skills[f"_{name}"] = sums.read().get("autoregressive_skill")
    result |= {f"autoregressive_skill{name}": skill for name, skill in skills.items() if skill is not None}
    if undefined := sum(skill is None for skill in skills.values()):
        result["autoregressive_undefined_skills"] = float(undefined)
    if found.geometry is not None:
        result |= found.geometry.read()
    if found.num_masked:
        result["autoregressive_masked"] = float(found.num_masked)
    return result
