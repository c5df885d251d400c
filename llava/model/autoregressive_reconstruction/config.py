"""All choices of the next-frame loss, valid from birth; importing this needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from llava.utils.registry import suggest

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "documented": {
        "predictor_dim": "language",
        "head": "direct",
        "target_norm": "none",
        "target_pool": 1,
        "use_time_gap": False,
    },
}
"""Name -> keys that differ from the defaults of `ReconstructionConfig`."""

_CHOICES: dict[str, tuple[Any, ...]] = {
    "merge_strategy": ("concat", "interleave"),
    "context": (None, "none", "language"),
    "predictor_input": ("teacher", "hidden"),
    "head": ("direct", "residual"),
    "target_norm": ("none", "layer_norm"),
    "loss_type": ("mse", "smooth_l1", "l1", "cosine"),
    "geometry_loss_type": ("mse", "smooth_l1", "l1", "cosine"),
    "geometry_norm": ("none", "layer_norm"),
    "condition_on_action": ("none", "history", "answer"),
    "site": ("visual", "answer", "both"),
    "weight_decay": ("none", "linear"),
    "control": (None, "current_frame", "other_clip", "detached_states", "frozen_predictor"),
}
"""Option -> the words that it takes."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """How the features of the next frame are predicted and what the error counts.

    Attributes:
        embedding_dim: width of the vision tower's features; None = whatever the tower gives.
        num_hist: frames on which a prediction may draw, the current one included, through all layers together.
        loss_weight: factor of the mean auxiliary loss in the total loss.
        num_heads: attention heads; heads wider than 256 are split further.
        num_layers: transformer layers behind the fusion with the language model's states.
        use_frame_causal_mask: False shows every prediction its own target: the leaking control arm, nothing else.
        window_size: frames that one layer's attention spans, the current one included; None = all that num_hist allows.
        use_fast_slow_frames: two pathways of one clip, see `video.fast_slow`; each predicts its own next frame.
        context: "language" fuses with the language model's states and needs their positions, "none" does not fuse;
            None = language where a batch brings positions.
        predictor_input: features of the teacher, or the language model's states at the frame's own slots.
        predictor_dim: "language" or "vision" for the width of either part, or a number.
        head: "residual" predicts the change and begins as a copy of the current frame.
        target_norm: "layer_norm" brings every target token to mean 0 and variance 1; needed before a final norm.
        target_pool: side of the square of patches that is averaged into one target token; 1 = none.
        use_time_gap: tell the predictor how far away in time its target lies.
        condition_on_action: what the predictor is told of executed motions: "history" = between the frames that the
            language model saw, "answer" = also that of the answer whose outcome is predicted.
        site: predict from the end of each frame ("visual"), from the end of each answer, or both.
        aux_layer: index of the language model's hidden states to hand over; read by the model.
        geometry_dim: width of a second target per token, such as depth; None = there is none.
        geometry_origin: what the data side reads for it: "depth" (the logarithm of metres, width 1), or the name of the
            model that wrote the feature files.
        geometry_weight: factor of the second target's loss beside the first.
        geometry_loss_type: of the second target, as loss_type is of the first.
        geometry_norm: of the second target, as target_norm is of the first.
        teacher_chunk: pictures that the teacher encodes at a time.
        max_loss_ratio: cap of loss_weight x auxiliary / main loss; above it the weight shrinks. None = no cap.
        gradient_share: the weight follows this share of the main loss's gradient norm instead of staying loss_weight,
            from which it rises tenfold at most per measurement.
        weight_decay: "linear" lowers the weight to 0 over the training.
        gradient_every: optimizer steps between two measurements of both gradients, 0 = never.
        auxiliary_only: leave the main loss out: a stage on video without text.
        control: arm of an experiment: the current frame or another clip's frame as target, states without gradient,
            or a predictor that stays as it was initialised. `other_clip` leaves out frames for which the batch has no
            other clip's frame.
    """

    embedding_dim: int | None = 1152
    num_hist: int = 3
    loss_weight: float = 0.1
    num_heads: int = 8
    num_layers: int = 3
    use_frame_causal_mask: bool = True
    window_size: int | None = None
    use_fast_slow_frames: bool = False
    fast_stride: int = 1
    slow_stride: int = 4
    num_fast: int = 8
    num_slow: int = 8
    merge_strategy: str = "concat"
    context: str | None = None
    predictor_input: str = "teacher"
    predictor_dim: int | str = "vision"
    head: str = "residual"
    target_norm: str = "layer_norm"
    target_pool: int = 2
    loss_type: str = "mse"
    use_time_gap: bool = True
    condition_on_action: str = "none"
    site: str = "visual"
    aux_layer: int = -1
    geometry_dim: int | None = None
    geometry_origin: str = "depth"
    geometry_weight: float = 1.0
    geometry_loss_type: str = "mse"
    geometry_norm: str = "none"
    teacher_chunk: int = 64
    max_loss_ratio: float | None = None
    gradient_share: float | None = None
    weight_decay: str = "none"
    gradient_every: int = 100
    auxiliary_only: bool = False
    control: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}, expected one of {allowed}{_nearest(value, allowed)}")
        self._check_numbers()
        self._check_combinations()

    @classmethod
    def read(cls, config: ReconstructionConfig | Mapping[str, Any] | None = None) -> ReconstructionConfig:
        """From a plain dict of the keys above; `preset` names a row of PRESETS that the other keys change."""
        if isinstance(config, ReconstructionConfig):
            return config
        keys = dict(config or {})
        preset = keys.pop("preset", "default")
        if preset not in PRESETS:
            raise ValueError(f"preset is {preset!r}{suggest(str(preset), list(PRESETS))}")
        known = [field.name for field in fields(cls)]
        for key in keys:
            if key not in known:
                raise ValueError(f"the next-frame loss has no option '{key}'{suggest(key, known)}")
        return cls(**{**PRESETS[preset], **keys})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def sites(self) -> tuple[str, ...]:
        return ("visual", "answer") if self.site == "both" else (self.site,)

    @property
    def layer_windows(self) -> tuple[int, ...]:
        """Frames that each layer spans; together they reach back exactly num_hist - 1 frames, or less."""
        every, first_ones = divmod(self.num_hist - 1, self.num_layers)
        spans = [1 + every + (layer < first_ones) for layer in range(self.num_layers)]
        return tuple(spans if self.window_size is None else [min(span, self.window_size) for span in spans])

    def _check_numbers(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value!r}, expected a whole number of at least 1")
        width = self.predictor_dim
        if width not in ("language", "vision") and (not isinstance(width, int) or width < 1):
            raise ValueError(f"predictor_dim is {width!r}, expected 'language', 'vision' or a number of at least 1")
        for name in ("loss_weight", "geometry_weight", "max_loss_ratio", "gradient_share"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}, expected a finite number of at least 0")
        if not isinstance(self.gradient_every, int) or self.gradient_every < 0:
            raise ValueError(f"gradient_every is {self.gradient_every!r}, expected a number of steps, or 0 for never")
        if self.gradient_share is not None and not self.gradient_every:
            raise ValueError("gradient_share is set and gradient_every is 0, expected at least 1: it must be measured")

        if self.gradient_share and not self.loss_weight:
            raise ValueError(
                f"gradient_share is {self.gradient_share} and loss_weight 0, from which no weight can rise; expected a "
                "loss_weight above 0, such as 0.1"
            )

    def _check_combinations(self) -> None:
        if self.condition_on_action == "answer" and self.site == "visual":
            raise ValueError("condition_on_action is 'answer' and site 'visual', expected site 'answer' or 'both'")
        if self.use_fast_slow_frames and self.site != "visual":
            raise ValueError(
                f"use_fast_slow_frames is set and site is '{self.site}', expected 'visual': an answer leads to the "
                "very next frame, which a pathway may leave out"
            )
        if self.geometry_dim is None and self.geometry_origin != "depth":
            raise ValueError(
                f"geometry_origin is '{self.geometry_origin}' and geometry_dim None, expected the width of its feature "
                "files; set geometry_dim"
            )
        if self.geometry_dim == 1 and (self.geometry_loss_type == "cosine" or self.geometry_norm == "layer_norm"):
            raise ValueError(
                f"geometry_dim is 1 (depth), geometry_loss_type '{self.geometry_loss_type}' and geometry_norm "
                f"'{self.geometry_norm}', expected no 'cosine' and no 'layer_norm': of a single channel both leave "
                "nothing; use 'mse' and 'none'"
            )
        if self.predictor_input == "hidden" and self.context == "none":
            raise ValueError("predictor_input is 'hidden' and context 'none', expected context 'language'")
        if self.control == "current_frame" and (self.predictor_input, self.head) != ("hidden", "direct"):
            raise ValueError(
                f"control is 'current_frame', predictor_input '{self.predictor_input}' and head '{self.head}', "
                "expected 'hidden' and 'direct': else the target is the input"
            )
        if self.control == "frozen_predictor" and self.head == "residual":
            raise ValueError(
                "control is 'frozen_predictor' and head 'residual', which begins as a copy of the current frame: "
                "frozen it stays one and pulls at nothing; expected head 'direct', set it"
            )


_COUNTS = (
    *("embedding_dim", "num_hist", "num_heads", "num_layers", "window_size", "fast_stride", "slow_stride"),
    *("num_fast", "num_slow", "target_pool", "geometry_dim", "teacher_chunk"),
)


def _nearest(value: Any, allowed: tuple[Any, ...]) -> str:
    return suggest(value, [name for name in allowed if name]) if isinstance(value, str) else ""
