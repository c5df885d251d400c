"""The arms of the experiment as rows of a table: what is added to a training, and what the row is there to tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llava.model.autoregressive_reconstruction.config import ReconstructionConfig
from llava.utils.registry import Registry

Keys = Mapping[str, Any]
"""Keys of `ReconstructionConfig`."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train.

    Attributes:
        name: of folders and options.
        title: of tables.
        group: ablation, control, weight or data.
        tells: what a difference to the baseline would mean.
        keys: of the next-frame loss; None = without it.
        share: of the training data, in (0, 1]; an arm is compared with the baseline of the same share.
    """

    name: str
    title: str
    group: str
    tells: str
    keys: Keys | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"arm '{self.name}' has share {self.share}, expected more than 0 and at most 1")
        if self.keys is not None:
            ReconstructionConfig.read({"embedding_dim": None, **self.keys})

    @property
    def baseline(self) -> str:
        """Name of the arm that it is compared with."""
        return "baseline" if self.share == 1 else f"baseline_{100 * self.share:.0f}"

    @property
    def is_baseline(self) -> bool:
        return self.keys is None

    @property
    def needs_depth(self) -> bool:
        """A second target: the data must hold the depth of every frame."""
        return self.keys is not None and self.keys.get("geometry_dim") is not None


MEASURE_EVERY = 100
"""Steps between two comparisons of both gradients, which cost two more backward passes each."""
FOLLOW_EVERY = 25
"""The same where the weight follows a share of the gradient."""

PLAIN: Keys = {"preset": "documented", "gradient_every": MEASURE_EVERY}
PATHWAYS: Keys = {
    "use_fast_slow_frames": True, "fast_stride": 1, "slow_stride": 2, "num_fast": 4, "num_slow": 4,
}  # fmt: skip
"""Small enough that both pathways differ on a clip of eight frames."""
DEFAULT: Keys = {"gradient_every": MEASURE_EVERY}
ACTIONS: Keys = {**DEFAULT, "site": "answer", "condition_on_action": "answer"}
"""The candidate for a default. The answer is the site after the instruction."""
STRONG: Keys = {**ACTIONS, "gradient_share": 0.05, "gradient_every": FOLLOW_EVERY}
"""The same with a pull that can be felt: at a weight of 0.1 it can be so small that no control tells anything."""
FROM_STATES: Keys = {
    **DEFAULT, "predictor_input": "hidden", "head": "direct", "gradient_share": 0.05, "gradient_every": FOLLOW_EVERY,
}  # fmt: skip

ARMS: Registry[Arm] = Registry("arm")


def _add(name: str, title: str, group: str, tells: str, keys: Keys | None = None, share: float = 1.0) -> None:
    ARMS.register(name)(Arm(name=name, title=title, group=group, tells=tells, keys=keys, share=share))


_add("baseline", "baseline", "ablation", "the same training without the loss")
_add("frame_mask", "+ frame mask", "ablation", "the loss as documented: every frame sees itself and older ones", PLAIN)
_add("fast_slow", "+ fast/slow", "ablation", "two pathways of one clip, each predicts its own next frame",
     {**PLAIN, **PATHWAYS})  # fmt: skip
_add("full", "full", "ablation", "both, with normalised and pooled targets, the gap of time, and the change predicted",
     {**DEFAULT, **PATHWAYS})  # fmt: skip
_add("actions", "+ actions", "ablation", "from the answer, told the motion that it leads to", ACTIONS)

_add("depth", "+ actions, 5 % pull, and depth", "ablation", "a second, geometric target: the depth of the next frame",
     {**STRONG, "geometry_dim": 1})  # fmt: skip

_add("weight_zero", "weight 0, same layout", "control", "the layout alone: the baseline up to rounding",
     {**ACTIONS, "loss_weight": 0.0})  # fmt: skip
_add("weight_tiny", "weight 0.001, same layout", "control",
     "the layout alone, with a predictor that learns beside a model which hardly feels it",
     {**ACTIONS, "loss_weight": 1e-3})  # fmt: skip
_add("other_clip", "5 % pull, another episode's frame", "control", "nothing to learn: only disturbance remains",
     {**STRONG, "control": "other_clip"})  # fmt: skip
_add("detached", "5 % pull, detached states", "control", "no pull on the language model: expected to do nothing",
     {**STRONG, "control": "detached_states"})  # fmt: skip
_add("frozen_head", "5 % pull, frozen random head", "control",
     "same pull, a predictor that never learns; a head that begins as a copy would pull at nothing, so it is direct",
     {**STRONG, "control": "frozen_predictor", "head": "direct"})  # fmt: skip
_add("from_states", "5 % pull, from the states alone", "control", "from the slots' states: partner of the next",
     FROM_STATES)  # fmt: skip
_add("current_frame", "5 % pull, current frame as target", "control", "visual supervision without time",
     {**FROM_STATES, "control": "current_frame"})  # fmt: skip
_add("leaking", "5 % pull, leaking", "control", "predictions see their targets: the skill must be far too good",
     {**STRONG, "use_frame_causal_mask": False})  # fmt: skip

for _share in (0.0, 0.01, 0.05, 0.20):
    _add(f"share_{100 * _share:.0f}", f"+ actions, {100 * _share:.0f} % pull", "weight",
         "the weight follows this share of the main loss's gradient norm",
         {**STRONG, "gradient_share": _share, **({} if _share else {"loss_weight": 0.0})})  # fmt: skip

for _data in (0.10, 0.30):
    _percent = f"{100 * _data:.0f}"
    _add(f"baseline_{_percent}", f"baseline, {_percent} % of the data", "data", "what the share alone costs",
         share=_data)  # fmt: skip
    _add(f"share_5_of_{_percent}", f"+ actions, 5 % pull, {_percent} % of the data", "data",
         "whether the loss helps where data is short", STRONG, _data)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: an arm in one format with one seed.

    Attributes:
        budget: "steps" = as many optimizer steps as the baseline, "cost" = as much computing time as it.
    """

    arm: Arm
    format: str
    seed: int
    budget: str = "steps"
    name: str = field(init=False)

    def __post_init__(self) -> None:
        if self.budget not in ("steps", "cost"):
            raise ValueError(f"budget is '{self.budget}', expected 'steps' or 'cost'")
        suffix = "" if self.budget == "steps" else "-cost"
        object.__setattr__(self, "name", f"{self.format}-{self.arm.name}{suffix}-s{self.seed}")
