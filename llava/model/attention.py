"""Who may attend to whom: packing, branches and padding, for every kernel, in this one place.

may_attend(q, k) = same segment, k not after q, and k lies in the trunk or in q's own branch.
A sliding window of w also asks that q's position is less than w after k's: a token sees itself and the w - 1 positions
before it, as if its segment stood alone and without other asides.

The rule reaches the language model through transformers' attention interface. Our key `llava_packed` is its `sdpa`
until a `PackedLayout` arrives; with one, every segment is attended by itself, so packed samples cost no dense mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

PACKED_ATTENTION = "llava_packed"
PADDING_SEGMENT = -1

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None


def may_attend(
    segment_ids: Int[Tensor, "b s"], branch_ids: Int[Tensor, "b s"], window: int | None = None
) -> Bool[Tensor, "b s s"]:
    """True where the query (row) sees the key (column). Every token sees itself, padding too, so no row is empty."""
    order = torch.arange(segment_ids.shape[1], device=segment_ids.device)
    not_after = order[None, :] <= order[:, None]
    same_segment = segment_ids[:, :, None] == segment_ids[:, None, :]
    visible = (branch_ids[:, None, :] == 0) | (branch_ids[:, None, :] == branch_ids[:, :, None])
    seen = not_after & same_segment & visible
    if window is None:
        return seen
    position = position_ids_of(segment_ids, branch_ids)
    return seen & (position[:, :, None] - position[:, None, :] < window)


def run_starts(*ids: Int[Tensor, "b s"]) -> Int[Tensor, "b s"]:
    """For each token the index where its run of equal ids (of all the given kinds) begins."""
    index = torch.arange(ids[0].shape[1], device=ids[0].device).expand_as(ids[0])
    begins = torch.zeros_like(ids[0], dtype=torch.bool)
    begins[:, 0] = True
    for kind in ids:
        begins[:, 1:] |= kind[:, 1:] != kind[:, :-1]
    return torch.where(begins, index, torch.zeros_like(index)).cummax(dim=1).values


def position_ids_of(segment_ids: Int[Tensor, "b s"], branch_ids: Int[Tensor, "b s"]) -> Int[Tensor, "b s"]:
    """Positions restart in each segment; a branch continues from where it hangs, the trunk goes on without it."""
    in_trunk = (branch_ids == 0).long()
    trunk_before = in_trunk.cumsum(dim=1) - in_trunk
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand_as(segment_ids)
    trunk_position = trunk_before - trunk_before.gather(1, run_starts(segment_ids))
    within_branch = (index - run_starts(segment_ids, branch_ids)) * (1 - in_trunk)
    return (trunk_position + within_branch) * (segment_ids != PADDING_SEGMENT)


def predecessor_index(segment_ids: Int[Tensor, "b s"], branch_ids: Int[Tensor, "b s"]) -> Int[Tensor, "b s"]:
    """Index of the token whose output predicts each token: the last earlier one that it may attend to; -1 = none."""
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand_as(segment_ids)
    trunk_index = torch.where(branch_ids == 0, index, torch.full_like(index, -1))
    last_trunk = F.pad(trunk_index.cummax(dim=1).values, (1, 0), value=-1)[:, :-1]
    continues_branch = (branch_ids != 0) & (run_starts(segment_ids, branch_ids) != index)
    predecessor = torch.where(continues_branch, index - 1, last_trunk)
    valid = (predecessor >= run_starts(segment_ids)) & (segment_ids != PADDING_SEGMENT)
    return torch.where(valid, predecessor, torch.full_like(index, -1))


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Tokens that attend among themselves: columns start..stop of a row; mask [n, n] only where branches exist."""

    row: int
    start: int
    stop: int
    is_padding: bool
    mask: Tensor | None


@dataclass(kw_only=True)
class PackedLayout:
    """Segment boundaries of a batch, made once per forward pass and read by every layer."""

    segments: tuple[Segment, ...]
    num_rows: int
    length: int
    max_length: int
    cu_seqlens: Tensor  # int32 [number of segments + 1], over the rows laid end to end
    segment_ids: Tensor
    branch_ids: Tensor
    _dense: dict[int | None, Tensor] = field(default_factory=dict)  # by window
    _windowed: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)  # by row, start and window

    @property
    def has_branches(self) -> bool:
        return any(segment.mask is not None for segment in self.segments)

    def dense_mask(self, window: int | None = None) -> Bool[Tensor, "b 1 s s"]:
        if window not in self._dense:
            self._dense[window] = may_attend(self.segment_ids, self.branch_ids, window)[:, None]
        return self._dense[window]

    def mask_of(self, segment: Segment, window: int | None = None) -> Tensor | None:
        """[n, n] for a segment's own attention call; None = plain causal, also where the window is never reached."""
        if window is None or segment.stop - segment.start <= window:
            return segment.mask
        key = segment.row, segment.start, window
        if key not in self._windowed:
            rows, columns = slice(segment.row, segment.row + 1), slice(segment.start, segment.stop)
            parts = self.segment_ids[rows, columns], self.branch_ids[rows, columns]
            self._windowed[key] = may_attend(*parts, window)[0]
        return self._windowed[key]


def build_layout(segment_ids: Int[Tensor, "b s"], branch_ids: Int[Tensor, "b s"] | None) -> PackedLayout:
    """One copy to the host per forward pass; masks are made only for segments that have branches."""
    branches = torch.zeros_like(segment_ids) if branch_ids is None else branch_ids
    num_rows, length = segment_ids.shape
    begins = run_starts(segment_ids) == torch.arange(length, device=segment_ids.device)
    starts = begins.flatten().nonzero()[:, 0]
    cu_seqlens = F.pad(starts, (0, 1), value=num_rows * length)
    bounds = cu_seqlens.tolist()
    is_padding = (segment_ids.flatten()[starts] == PADDING_SEGMENT).tolist()
    branch_count = F.pad((branches.flatten() != 0).long().cumsum(0), (1, 0))[cu_seqlens].diff().tolist()
    segments = []
    for begin, end, padding, num_branch_tokens in zip(bounds[:-1], bounds[1:], is_padding, branch_count, strict=True):
        row, start = divmod(begin, length)
        stop = start + end - begin
        parts = segment_ids[row : row + 1, start:stop], branches[row : row + 1, start:stop]
        mask = may_attend(*parts)[0] if num_branch_tokens else None
        segments.append(Segment(row=row, start=start, stop=stop, is_padding=padding, mask=mask))
    return PackedLayout(
        segments=tuple(segments),
        num_rows=num_rows,
        length=length,
        max_length=max(stop - start for start, stop in pairwise(bounds)),
        cu_seqlens=cu_seqlens.int(),
        segment_ids=segment_ids,
        branch_ids=branches,
    )


def _attend_by_segment(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, window: int | None, **kw: Any
) -> Tensor:
    """[B, H, S, D] each, one call per segment; padding yields zeros. Returns [B, S, H, D].

    Parts are made by `split`, whose backward is one concatenation; a slice each would fill a full-size gradient each.
    """
    gqa = query.shape[1] != key.shape[1]
    rows = []
    of_row = zip(*(t.split(1) for t in (query, key, value)), strict=True)
    for (_, segments), qkv in zip(groupby(layout.segments, key=lambda segment: segment.row), of_row, strict=True):
        members = list(segments)
        lengths = [segment.stop - segment.start for segment in members]
        q_parts, k_parts, v_parts = (t.split(lengths, dim=2) for t in qkv)
        parts = []
        for segment, q, k, v in zip(members, q_parts, k_parts, v_parts, strict=True):
            if segment.is_padding:
                parts.append(torch.zeros_like(q))
                continue
            mask = layout.mask_of(segment, window)
            rule: dict[str, Any] = {"is_causal": True} if mask is None else {"attn_mask": mask}
            parts.append(F.scaled_dot_product_attention(q, k, v, enable_gqa=gqa, **rule, **kw))
        rows.append(torch.cat(parts, dim=2))
    return torch.cat(rows).transpose(1, 2).contiguous()


def _attend_varlen(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float | None, window: int | None
) -> Tensor:
    """One variable-length kernel for all segments, on CUDA in half precision. Returns [B, S, H, D]."""
    assert varlen_attn is not None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    q, k, v = (t.transpose(1, 2).flatten(0, 1).contiguous() for t in (query, key, value))
    bounds, longest = layout.cu_seqlens, layout.max_length
    span = (-1 if window is None else window - 1, 0)  # keys before and after the query; -1 = all
    out = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling, window_size=span)
    return out.view(layout.num_rows, layout.length, *out.shape[1:])  # pyright: ignore[reportAttributeAccessIssue]


def attend_by_layout(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Every segment by itself, never with a mask over whole rows: [B, H, S, D] each -> [B, S, H, D]."""
    if query.is_cuda and not layout.has_branches and varlen_attn is not None and query.dtype != torch.float32:
        return _attend_varlen(query, key, value, layout, scaling, window)
    return _attend_by_segment(query, key, value, layout, window, dropout_p=dropout, scale=scaling)


@runtime_checkable
class AttendsItself(Protocol):
    """In the place of a `PackedLayout`: attends in its own way, as where a sequence lies on several ranks."""

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        dropout: float = 0.0,
        scaling: float | None = None,
        window: int | None = None,
    ) -> Tensor:
        """[B, H, S, D] each -> [B, S, H, D]."""
        ...


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_layout: PackedLayout | AttendsItself | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention function of key `llava_packed`: query, key, value [B, H, S, D] -> [B, S, H, D].

    Raises:
        ValueError: for what this kernel cannot compute (soft-capped scores, attention sinks, position biases).
    """
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(
                f"the language model passes {name} to its attention, which '{PACKED_ATTENTION}' does not compute; "
                "load the model with attn_implementation='eager'"
            )
    if packed_layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    rule: dict[str, Any] = {"dropout": dropout, "scaling": scaling}
    if not isinstance(packed_layout, PackedLayout):
        return packed_layout.attend(query, key, value, window=sliding_window, **rule), None
    if query.is_cuda and (packed_layout.has_branches or varlen_attn is None or query.dtype == torch.float32):
        mask = packed_layout.dense_mask(sliding_window)
        return sdpa_attention_forward(module, query, key, value, mask, **rule, **kwargs)
    return attend_by_layout(query, key, value, packed_layout, window=sliding_window, **rule), None


def register_packed_attention() -> None:
    """Adds our key to transformers' tables through its public interface; harmless when called again."""
    AttentionInterface.register(PACKED_ATTENTION, packed_attention_forward)
    AttentionMaskInterface.register(PACKED_ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


register_packed_attention()


def resolve_implementation(name: str | None) -> str:
    """Our key in place of `sdpa` (and by default); any other name is transformers' own."""
    return PACKED_ATTENTION if name in (None, "sdpa") else name


def implementation_for(name: str | None, llm_config: Any) -> str:
    """The kernel of a language model; one that caps its attention scores (Gemma 2) runs `eager` by default.

    Raises:
        ValueError: for "sdpa" and capped scores, which torch's kernel does not have.
    """
    cap = getattr(llm_config, "attn_logit_softcapping", None)
    if cap is None:
        return resolve_implementation(name)
    if name in ("sdpa", PACKED_ATTENTION):
        raise ValueError(
            f"attn_implementation is '{name}', but {llm_config.model_type} caps its attention scores at {cap}, which "
            "that kernel does not compute; use 'eager' (the default here), 'flex_attention' or 'flash_attention_2'"
        )
    return name or "eager"


def layer_windows(llm_config: Any) -> dict[str, int | None]:
    """Kind of attention layer -> how many positions it sees, itself included; None = all before it.

    Raises:
        ValueError: for kinds of layers that read a row as one sequence, which packed or branched rows are not.
    """
    window = getattr(llm_config, "sliding_window", None)
    kinds = getattr(llm_config, "layer_types", None)
    if not kinds:
        return {"every_layer": window}
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if unknown:
        raise ValueError(
            f"packed or branched rows need layers of full or sliding attention, {llm_config.model_type} has "
            f"'{unknown[0]}'; use padded rows"
        )
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(set(kinds))}


def _flex_mask(segment_ids: Tensor, branch_ids: Tensor, window: int | None) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    position = position_ids_of(segment_ids, branch_ids)
    span = segment_ids.shape[1] if window is None else window

    num_rows, length = segment_ids.shape
    return create_block_mask(
        lambda b, h, q, k: (
            (k <= q)
            & (segment_ids[b, q] == segment_ids[b, k])
            & ((branch_ids[b, k] == 0) | (branch_ids[b, k] == branch_ids[b, q]))
            & (position[b, q] - position[b, k] < span)
        ),
        num_rows,
        None,
        length,
        length,
        device=str(segment_ids.device),
    )


def attention_arguments(
    implementation: str,
    dtype: torch.dtype,
    segment_ids: Int[Tensor, "b s"],
    branch_ids: Int[Tensor, "b s"] | None,
    windows: Mapping[str, int | None] | None = None,
) -> dict[str, Any]:
    """Keyword arguments for the language model that make it obey the rule of this module.

    A 4-D `attention_mask` is handed through by transformers as it is; an empty one says "nothing to build". Models of
    several kinds of layers take one mask per kind. Our own and the flash kernels learn the window from each layer.

    Args:
        windows: what `layer_windows` says of the language model; None = no sliding windows.

    Raises:
        ValueError: for branches under a flash attention kernel, which has no general mask.
    """
    has_branches = branch_ids is not None and bool((branch_ids != 0).any())
    if implementation == PACKED_ATTENTION:
        layout = build_layout(segment_ids, branch_ids if has_branches else None)
        return {"packed_layout": layout, "attention_mask": segment_ids.new_empty(0, 0, 0, 0, dtype=torch.bool)}
    if implementation.startswith("flash_attention"):
        if has_branches:
            raise ValueError(
                f"attn_implementation '{implementation}' cannot hide branches (streaming episodes, asides); "
                "load the model with attn_implementation='sdpa' (or 'flex_attention')"
            )
        layout = build_layout(segment_ids, None)
        bounds, longest = layout.cu_seqlens, layout.max_length
        lengths = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
        return {"attention_mask": None, **lengths}
    branches = torch.zeros_like(segment_ids) if branch_ids is None else branch_ids
    windows = windows or {"every_layer": None}
    masks = {kind: _mask(implementation, dtype, segment_ids, branches, window) for kind, window in windows.items()}
    return {"attention_mask": next(iter(masks.values())) if len(masks) == 1 else masks}


def _mask(implementation: str, dtype: torch.dtype, segment_ids: Tensor, branch_ids: Tensor, window: int | None) -> Any:
    if implementation == "flex_attention":
        return _flex_mask(segment_ids, branch_ids, window)
    mask = may_attend(segment_ids, branch_ids, window)[:, None]
    if implementation == "eager":
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    return mask
