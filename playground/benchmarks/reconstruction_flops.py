"""Multiplications and additions of a training step with and without the next-frame loss, by arithmetic.

A matrix product of [n, a] and [a, b] counts 2nab; a backward pass counts twice its forward pass. Norms, activations and
the optimizer are left out. `test_reconstruction_cost.py` compares with torch's own counter.
"""

from __future__ import annotations

from dataclasses import dataclass

from llava.model.autoregressive_reconstruction.config import ReconstructionConfig
from playground.benchmarks.reconstruction_arms import Shape

FIRST_TEXT = 4
"""Tokens before the first frame."""


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """Of one training step on one sample."""

    tower: int
    language_model: int
    teacher: int
    predictor: int

    @property
    def total(self) -> int:
        return self.tower + self.language_model + self.teacher + self.predictor

    def shares(self) -> dict[str, float]:
        """Beside the step without the loss, in which tower and language model are all there is."""
        base = self.tower + self.language_model
        parts = {"tower": self.tower, "teacher": self.teacher, "predictor": self.predictor, "total": self.total}
        return {name: round(value / base, 4) for name, value in parts.items()}


def step_flops(shape: Shape, arm: str, *, tuned_tower: bool, causal_share: float = 0.5) -> StepFlops:
    """causal_share: of the pairs of tokens that the language model's attention kernel computes; 1 = all."""
    embed, layers = tower_forward(shape)
    tower = 2 * embed + 3 * layers if tuned_tower else embed + layers  # pictures want no gradient
    teacher, predictor = 0, 0
    if arm == "straightforward":
        teacher, predictor = embed + layers, straightforward_step(shape)
    elif arm != "sft":
        config = ReconstructionConfig.read({"preset": arm, "num_heads": shape.heads_of_loss})
        teacher = embed + layers if tuned_tower else 0
        predictor = module_step(shape, config)
    language_model = 3 * language_forward(shape, causal_share)
    return StepFlops(tower=tower, language_model=language_model, teacher=teacher, predictor=predictor)


def tower_forward(shape: Shape) -> tuple[int, int]:
    """(patch embedding, layers) for all frames; the last layer is not run."""
    tokens, width = shape.frames * shape.patches, shape.tower_width
    embed = 2 * tokens * 3 * shape.patch_size**2 * width
    weights = 4 * width**2 + 2 * width * shape.tower_feed_forward
    attention = 4 * width * tokens * shape.patches
    return embed, (shape.tower_layers - 1) * (2 * tokens * weights + attention)


def language_forward(shape: Shape, causal_share: float = 0.5) -> int:
    """Projector, layers, and the head on supervised rows."""
    visual = shape.frames * shape.tokens_per_frame
    projector = 2 * visual * (4 * shape.tower_width * shape.width + shape.width**2)
    key_value = shape.width // shape.heads * shape.key_value_heads
    weights = 2 * shape.width**2 + 2 * shape.width * key_value + 3 * shape.width * shape.feed_forward
    pairs = causal_share * shape.sequence**2
    layers = shape.layers * (2 * shape.sequence * weights + round(4 * shape.width * pairs))
    return projector + layers + 2 * shape.answer * shape.width * shape.vocabulary


def module_step(shape: Shape, config: ReconstructionConfig) -> int:
    """`AutoregressiveReconstructionModule` without its teacher; one clip in the order of time."""
    width = {"language": shape.width, "vision": shape.tower_width}.get(str(config.predictor_dim), config.predictor_dim)
    assert isinstance(width, int)
    queries = shape.frames - 1
    patches = (-(-shape.grid // config.target_pool)) ** 2
    tokens = queries * patches
    ends = [FIRST_TEXT + shape.tokens_per_frame * (t + 1) for t in range(queries)]
    inwards = 2 * tokens * shape.tower_width * width
    fusion = 2 * tokens * 2 * width**2 + 2 * (ends[-1] + 1) * shape.width * 2 * width
    fusion += 4 * width * patches * sum(1 + end for end in ends)
    layers = config.num_layers * 2 * tokens * 12 * width**2
    for span in config.layer_windows:
        layers += 4 * width * patches**2 * sum(min(t + 1, span) for t in range(queries))
    told = 2 * queries * (32 + 33 * config.use_time_gap) * width
    outwards = 2 * tokens * width * shape.tower_width
    return 2 * (inwards + told) + 3 * (fusion + layers + outwards)  # features and times want no gradient


def straightforward_step(shape: Shape, num_layers: int = 3) -> int:
    """`StraightforwardLoss` without its teacher: all patches, language width, all pairs of tokens."""
    width, tokens = shape.width, (shape.frames - 1) * shape.patches
    inwards = 2 * tokens * shape.tower_width * width
    fusion = 2 * (2 * tokens + 2 * shape.sequence) * width**2 + 4 * width * tokens * shape.sequence
    layers = num_layers * (2 * tokens * 16 * width**2 + 8 * width * tokens**2)
    outwards = 2 * tokens * width * shape.tower_width
    return 2 * inwards + 3 * (fusion + layers + outwards)
