"""Attention between frames, block by block: no mask over tokens is ever made.

The tokens of a frame all see the same frames. So each query frame is one attention call on the tokens of the frames
that it sees; where the clips of a batch differ, a mask [clips, 1, 1, keys] that all of its queries share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from llava.model.autoregressive_reconstruction.context import LanguageContext

MAX_HEAD_WIDTH = 256
"""The widest head of the fast attention kernels."""


@dataclass(frozen=True, kw_only=True)
class FrameBlocks:
    """Which frames each query frame sees.

    Attributes:
        keys: per query frame the frames that some clip sees, in ascending order.
        masks: per query frame [V, 1, 1, keys], True = may attend; None where all clips see the same.
    """

    keys: tuple[tuple[int, ...], ...]
    masks: tuple[Bool[Tensor, "v 1 1 _"] | None, ...]

    @property
    def is_local(self) -> bool:
        """Every frame sees itself only."""
        return all(keys == (frame,) for frame, keys in enumerate(self.keys))


def plan_blocks(visible: Bool[Tensor, "v q q"], device: torch.device) -> FrameBlocks:
    """From a mask over frames in host memory."""
    keys, masks = [], []
    for seen in visible.unbind(1):  # [V, frames]
        columns = seen.any(dim=0).nonzero()[:, 0]
        mask = seen[:, columns]
        keys.append(tuple(columns.tolist()))
        masks.append(None if bool(mask.all()) else mask[:, None, None, :].to(device))
    return FrameBlocks(keys=tuple(keys), masks=tuple(masks))


def attend_frames(
    query: Float[Tensor, "v h t p e"],
    key: Float[Tensor, "v h t p e"],
    value: Float[Tensor, "v h t p e"],
    blocks: FrameBlocks,
) -> Float[Tensor, "v h t p e"]:
    """Each frame attends to the tokens of the frames in its block."""
    if blocks.is_local:
        return _attend_within_frames(query, key, value)
    num_patches = query.shape[3]
    rows = []
    for frame, (keys, mask) in enumerate(zip(blocks.keys, blocks.masks, strict=True)):
        k, v = _frames(key, keys).flatten(2, 3), _frames(value, keys).flatten(2, 3)
        token_mask = None if mask is None else mask.repeat_interleave(num_patches, dim=3)
        rows.append(F.scaled_dot_product_attention(query[:, :, frame], k, v, attn_mask=token_mask))
    return torch.stack(rows, dim=2)


def _attend_within_frames(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (query, key, value))  # [V*T, H, P, E]
    out = F.scaled_dot_product_attention(q, k, v)
    return out.unflatten(0, (query.shape[0], query.shape[2])).transpose(1, 2)


def _frames(tokens: Tensor, keys: Sequence[int]) -> Tensor:
    """A view where the frames lie side by side, which is the usual case."""
    if keys[-1] - keys[0] + 1 == len(keys):
        return tokens[:, :, keys[0] : keys[-1] + 1]
    return tokens[:, :, list(keys)]


def attend_context(
    query: Float[Tensor, "v h t p e"],
    key: Float[Tensor, "v h n e"],
    value: Float[Tensor, "v h n e"],
    context: LanguageContext | None,
) -> Float[Tensor, "v h t p e"]:
    """Each frame attends to the first key, which stands for "nothing", and to the n - 1 states as it may see them."""
    rows = []
    for frame in range(query.shape[2]):
        stop = 1 + (0 if context is None else context.stops[frame])
        mask = None if context is None else context.masks[frame]
        token_mask = None if mask is None else F.pad(mask, (1, 0), value=True)[:, None, None, :]
        parts = query[:, :, frame], key[:, :, :stop], value[:, :, :stop]
        rows.append(F.scaled_dot_product_attention(*parts, attn_mask=token_mask))
    return torch.stack(rows, dim=2)


def heads_for(width: int, num_heads: int) -> int:
    """`num_heads`, or as many times more as keep a head at MAX_HEAD_WIDTH or below.

    >>> heads_for(1152, 8), heads_for(4096, 8)
    (8, 16)
    """
    if width % num_heads:
        divisors = [n for n in range(1, width + 1) if width % n == 0]
        near = min(divisors, key=lambda n: abs(n - num_heads))
        raise ValueError(f"num_heads is {num_heads}, which does not divide the predictor's width {width}; use {near}")
    times = next(
        n for n in range(1, width + 1) if (width // num_heads) % n == 0 and width // num_heads // n <= MAX_HEAD_WIDTH
    )
    return num_heads * times


def split_heads(tokens: Float[Tensor, "*b d"], num_heads: int) -> Float[Tensor, "..."]:
    """[V, ..., D] -> [V, H, ..., D / H]."""
    return tokens.unflatten(-1, (num_heads, -1)).movedim(-2, 1)


def join_heads(tokens: Float[Tensor, "v h *r e"]) -> Float[Tensor, "..."]:
    """The inverse of `split_heads`."""
    return tokens.movedim(1, -2).flatten(-2)


class FrameAttention(nn.Module):
    """Self-attention of all tokens of the frames in a block."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = heads_for(width, num_heads)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "v t p d"], blocks: FrameBlocks) -> Float[Tensor, "v t p d"]:
        query, key, value = (split_heads(part, self.num_heads) for part in self.qkv(tokens).chunk(3, dim=-1))
        return self.out(join_heads(attend_frames(query, key, value, blocks)))


class ContextAttention(nn.Module):
    """Attention of the frames' tokens to the language model's states, and to one learned state that says "nothing"."""

    def __init__(self, width: int, context_width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = heads_for(width, num_heads)
        self.norm = nn.LayerNorm(context_width)
        self.nothing = nn.Parameter(torch.zeros(context_width))
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context_width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "v t p d"], context: LanguageContext | None) -> Float[Tensor, "v t p d"]:
        states = self.nothing.expand(len(tokens), 1, -1)
        if context is not None:
            seen = self.norm(context.states.to(self.nothing.dtype))
            states = torch.cat([states, seen], dim=1)
        else:
            states = states + 0.0 * self.norm(states)  # every rank gives every weight a gradient
        key, value = (split_heads(part, self.num_heads) for part in self.key_value(states).chunk(2, dim=-1))
        attended = attend_context(split_heads(self.query(tokens), self.num_heads), key, value, context)
        return self.out(join_heads(attended))
