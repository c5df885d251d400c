"""The predictor: all time steps of all clips in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llava.model.autoregressive_reconstruction.attention import ContextAttention, FrameAttention, FrameBlocks
from llava.model.autoregressive_reconstruction.context import LanguageContext


class PredictorLayer(nn.Module):
    """Attention between frames and a feed-forward layer, each on a normalised input and added to the stream."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = FrameAttention(width, num_heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Float[Tensor, "v t p d"], blocks: FrameBlocks) -> Float[Tensor, "v t p d"]:
        tokens = tokens + self.attention(self.attention_norm(tokens), blocks)
        return tokens + self.mlp(self.mlp_norm(tokens))


class ParallelAutoregressivePredictor(nn.Module):
    """Tokens of each frame -> what is added to (or stands for) the features of the frame that follows it.

    Attributes:
        fusion: attention to the language model's states; None = this predictor sees frames only.
    """

    def __init__(
        self,
        *,
        input_dim: int,
        output_dim: int,
        width: int,
        num_tokens: int,
        num_heads: int,
        num_layers: int,
        context_dim: int | None,
        geometry_dim: int | None = None,
        starts_at_zero: bool = True,
    ) -> None:
        super().__init__()
        self.input_projection = nn.Linear(input_dim, width)
        self.place = nn.Parameter(torch.empty(num_tokens, width))
        self.fusion_norm = None if context_dim is None else nn.LayerNorm(width)
        self.fusion = None if context_dim is None else ContextAttention(width, context_dim, num_heads)
        self.layers = nn.ModuleList(PredictorLayer(width, num_heads) for _ in range(num_layers))
        self.output_norm = nn.LayerNorm(width)
        self.output_projection = nn.Linear(width, output_dim)
        self.geometry_projection = None if geometry_dim is None else nn.Linear(width, geometry_dim)
        self._initialise(starts_at_zero)

    def _initialise(self, starts_at_zero: bool) -> None:
        """Outputs of unit variance, smaller where layers add to the stream; zero heads where all begins as a copy."""
        depth = 2 * len(self.layers) + (self.fusion is not None)
        nn.init.normal_(self.place)  # as strong as the features: at 0.02 attention finds no place and averages frames
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                adds_to_stream = name.endswith((".out", "mlp.2"))
                nn.init.trunc_normal_(
                    module.weight, std=module.in_features**-0.5 / (depth**0.5 if adds_to_stream else 1)
                )
                nn.init.zeros_(module.bias)
        heads: list[Any] = [self.output_projection, self.geometry_projection]
        for head in heads if starts_at_zero else []:
            if head is not None:
                nn.init.zeros_(head.weight)

    def forward(
        self,
        inputs: Float[Tensor, "v t p i"],
        conditions: Float[Tensor, "v t d"],
        blocks: Sequence[FrameBlocks],
        context: LanguageContext | None = None,
    ) -> tuple[Float[Tensor, "v t p o"], Float[Tensor, "v t p g"] | None]:
        """(features, geometry) in fp32; blocks: who sees whom, one per layer."""
        tokens = self.input_projection(inputs.to(self.input_projection.weight.dtype))
        tokens = tokens + self.place + conditions[:, :, None]
        if self.fusion is not None:
            assert self.fusion_norm is not None
            tokens = tokens + self.fusion(self.fusion_norm(tokens), context)
        for layer, seen in zip(self.layers, blocks, strict=True):
            tokens = layer(tokens, seen)
        tokens = self.output_norm(tokens)
        geometry = None if self.geometry_projection is None else self.geometry_projection(tokens).float()
        return self.output_projection(tokens).float(), geometry
