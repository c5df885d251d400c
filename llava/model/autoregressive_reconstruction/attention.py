"""Attention between frames, block by block: no mask over tokens is ever made.

The tokens of a frame all see the same frames. So frames whose short window moves on with them are one attention call,
as a batch of frames; every other frame is one call on the tokens of the frames that it sees. Where the clips of a batch
differ, a mask [clips, 1, 1, keys] is shared by all queries of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from llava.model.autoregressive_reconstruction.clips import to_device
from llava.model.autoregressive_reconstruction.context import LanguageContext

MAX_HEAD_WIDTH = 256
"""The widest head of the fast attention kernels."""
MAX_JOINED_WINDOW = 4
"""Frames of the longest window whose calls are joined: keys and values are copied as often."""


@dataclass(frozen=True, kw_only=True)
class FrameRun:
    """Query frames first, ..., stop - 1, which one attention call serves.

    Attributes:
        mask: [V, frames, keys], True = may attend; None where all clips see the same.
    """

    first: int
    stop: int
    mask: Bool[Tensor, "v _ _"] | None


@dataclass(frozen=True, kw_only=True)
class FrameBlocks:
    """Which frames each query frame sees.

    Attributes:
        keys: per query frame the frames that some clip sees, in ascending order.
        runs: the query frames in order, as few calls.
    """

    keys: tuple[tuple[int, ...], ...]
    runs: tuple[FrameRun, ...]

    @property
    def is_local(self) -> bool:
        """Every frame sees itself only."""
        return all(keys == (frame,) for frame, keys in enumerate(self.keys))


def plan_blocks(visible: Bool[Tensor, "v q q"], device: torch.device) -> FrameBlocks:
    """From a mask over frames in host memory."""
    keys, masks = [], []
    for seen in visible.unbind(1):  # [V, frames]
        columns = seen.any(dim=0).nonzero()[:, 0]
        keys.append(tuple(columns.tolist()))
        masks.append(seen[:, columns])
    runs = []
    for first, stop in _join_windows(keys):
        mask = torch.stack(masks[first:stop], dim=1)  # [V, frames, keys]
        runs.append(FrameRun(first=first, stop=stop, mask=None if bool(mask.all()) else to_device(mask, device)))
    return FrameBlocks(keys=tuple(keys), runs=tuple(runs))


def _join_windows(keys: Sequence[tuple[int, ...]]) -> list[tuple[int, int]]:
    """Stretches (first, stop) of frames whose keys are a short window that moves on with them; others alone."""
    moves_on = [
        len(seen) <= MAX_JOINED_WINDOW and seen == tuple(range(t - len(seen) + 1, t + 1)) for t, seen in enumerate(keys)
    ]
    runs = [(0, 1)]
    for t in range(1, len(keys)):
        if moves_on[t - 1] and moves_on[t] and len(keys[t - 1]) == len(keys[t]):
            runs[-1] = (runs[-1][0], t + 1)
        else:
            runs.append((t, t + 1))
    return runs


def attend_frames(
    query: Float[Tensor, "v h t p e"],
    key: Float[Tensor, "v h t p e"],
    value: Float[Tensor, "v h t p e"],
    blocks: FrameBlocks,
) -> Float[Tensor, "v h t p e"]:
    """Each frame attends to the tokens of the frames in its block."""
    queries = query.transpose(1, 2).split([run.stop - run.first for run in blocks.runs], dim=1)
    rows = []
    for run, q in zip(blocks.runs, queries, strict=True):  # q: [V, frames, H, P, E]
        k, v = (_window(tokens, blocks.keys[run.first : run.stop]) for tokens in (key, value))
        mask = None
        if run.mask is not None:
            mask = run.mask.flatten(0, 1)[:, None, None].repeat_interleave(query.shape[3], dim=3)
        out = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask=mask)
        rows.append(out.unflatten(0, q.shape[:2]).transpose(2, 3))  # [V, frames, P, H, E], as `join_heads` lays it out
    return torch.cat(rows, dim=1).movedim(-2, 1)


def _window(tokens: Float[Tensor, "v h t p e"], keys: Sequence[tuple[int, ...]]) -> Float[Tensor, "v f h k e"]:
    """Per query frame the tokens of its frames, side by side; a view for one frame that sees neighbours."""
    if len(keys) == 1:
        seen = keys[0]
        lie_together = seen[-1] - seen[0] + 1 == len(seen)
        frames = tokens[:, :, seen[0] : seen[-1] + 1] if lie_together else tokens[:, :, list(seen)]
        return frames.flatten(2, 3)[:, None]
    shifted = [tokens[:, :, frames[0] : frames[-1] + 1].transpose(1, 2) for frames in zip(*keys, strict=True)]
    return shifted[0] if len(shifted) == 1 else torch.cat(shifted, dim=3)


def attend_context(
    query: Float[Tensor, "v h t p e"],
    key: Float[Tensor, "v h n e"],
    value: Float[Tensor, "v h n e"],
    context: LanguageContext | None,
) -> Float[Tensor, "v h t p e"]:
    """Each frame attends to the first key, which stands for "nothing", and to the n - 1 states as it may see them."""
    queries = query.unbind(2)
    stops = [1 + stop for stop in context.stops] if context else [1] * len(queries)
    masks = context.masks if context else [None] * len(queries)
    rows = []
    for q, k, v, mask in zip(queries, _prefixes(key, stops), _prefixes(value, stops), masks, strict=True):
        token_mask = None if mask is None else F.pad(mask, (1, 0), value=True)[:, None, None, :]
        rows.append(F.scaled_dot_product_attention(q, k, v, attn_mask=token_mask).transpose(1, 2))
    return torch.stack(rows, dim=1).movedim(-2, 1)


def _prefixes(tokens: Float[Tensor, "v h n e"], stops: Sequence[int]) -> tuple[Tensor, ...]:
    """The first tokens up to each stop, without a copy."""
    return _Prefixes.apply(tokens, stops)  # pyright: ignore[reportReturnType]


class _Prefixes(torch.autograd.Function):
    """Slices that overlap: their gradients are added in place, where autograd would fill and add whole tensors."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, stops: Sequence[int]) -> tuple[Tensor, ...]:
        ctx.shape, ctx.stops = tokens.shape, stops
        return tuple(tokens[:, :, :stop] for stop in stops)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].new_zeros(ctx.shape)
        for stop, gradient in zip(ctx.stops, gradients, strict=True):
            total[:, :, :stop] += gradient
        return total, None


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
