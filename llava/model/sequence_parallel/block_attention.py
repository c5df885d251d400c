"""Attention of some queries to some keys, with what is needed to add further keys: the sums are merged exactly.

Products and sums are float32 (float64 for float64), under autocast too. At most MAX_SCORES scores are alive at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MAX_SCORES = 2**25


def attend_block(
    query: Float[Tensor, "h q d"],
    key: Float[Tensor, "k s d"],
    value: Float[Tensor, "k s d"],
    scale: float,
    visible: Bool[Tensor, "q s"] | None = None,
    is_causal: bool = False,
) -> tuple[Float[Tensor, "h q d"], Float[Tensor, "h q"]]:
    """(weighted values, log of the sum of exponentials); 0 and -inf for a query that sees none of the keys.

    Args:
        visible: True = may attend; None = all, or with is_causal (as many queries as keys) none that come later.
    """
    out = query.new_empty(query.shape, dtype=_wide(query))
    log_sum = out.new_empty(query.shape[:2])
    with torch.autocast(query.device.type, enabled=False):
        for rows, keys in _pieces(query, key, is_causal):
            scores = _scores(query[:, rows], key[:, keys], scale, _rule(visible, is_causal, rows, keys, query.device))
            sums = scores.logsumexp(dim=-1)  # [K, G, q]
            weights = torch.exp(scores - _finite(sums)[..., None])
            out[:, rows] = _per_head(_grouped(weights) @ value[:, keys].to(scores.dtype), query.shape[0])
            log_sum[:, rows] = sums.flatten(0, 1)
    return out, log_sum


def attend_block_backward(
    query: Float[Tensor, "h q d"],
    key: Float[Tensor, "k s d"],
    value: Float[Tensor, "k s d"],
    scale: float,
    visible: Bool[Tensor, "q s"] | None,
    is_causal: bool,
    grad_out: Float[Tensor, "h q d"],
    log_sum: Float[Tensor, "h q"],
    grad_dot_out: Float[Tensor, "h q"],
) -> tuple[Float[Tensor, "h q d"], Float[Tensor, "k s d"], Float[Tensor, "k s d"]]:
    """Gradients of query, key and value, from what all blocks gave together.

    Args:
        grad_out, log_sum: of the merged result.
        grad_dot_out: sum over D of grad_out times the merged result.
    """
    wide = _wide(query)
    num_kv = key.shape[0]
    grad_query = query.new_empty(query.shape, dtype=wide)
    grad_key, grad_value = (torch.zeros_like(t, dtype=wide) for t in (key, value))
    with torch.autocast(query.device.type, enabled=False):
        for rows, keys in _pieces(query, key, is_causal):
            scores = _scores(query[:, rows], key[:, keys], scale, _rule(visible, is_causal, rows, keys, query.device))
            weights = torch.exp(scores - _finite(_by_kv(log_sum[:, rows], num_kv))[..., None])
            grad = _grouped(_by_kv(grad_out[:, rows].to(wide), num_kv))  # [K, G*q, D]
            grad_value[:, keys] += _grouped(weights).mT @ grad
            grad_weights = (grad @ value[:, keys].to(wide).mT).view_as(weights)
            grad_scores = weights * (grad_weights - _by_kv(grad_dot_out[:, rows], num_kv)[..., None]) * scale
            grad_query[:, rows] = _per_head(_grouped(grad_scores) @ key[:, keys].to(wide), query.shape[0])
            grad_key[:, keys] += _grouped(grad_scores).mT @ _grouped(_by_kv(query[:, rows].to(wide), num_kv))
    return grad_query, grad_key, grad_value


def merge_(out: Tensor, log_sum: Tensor, more: Tensor, more_log_sum: Tensor) -> None:
    """Adds the keys of another block to out [H, q, D] and log_sum [H, q], in place."""
    total = torch.logaddexp(log_sum, more_log_sum)
    finite = _finite(total)
    out.mul_(torch.exp(log_sum - finite)[..., None]).add_(more * torch.exp(more_log_sum - finite)[..., None])
    log_sum.copy_(total)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _finite(log_sum: Tensor) -> Tensor:
    """-inf (no key was seen) as 0, so that exp(-inf - it) is 0 and not NaN."""
    return log_sum.masked_fill(log_sum == -torch.inf, 0.0)


def _pieces(query: Tensor, key: Tensor, is_causal: bool) -> Iterator[tuple[slice, slice]]:
    """Queries few enough for MAX_SCORES, and the keys that any of them may see."""
    heads, num_queries, _ = query.shape
    step = max(1, MAX_SCORES // max(1, heads * key.shape[1]))
    for first in range(0, num_queries, step):
        last = min(first + step, num_queries)
        yield slice(first, last), slice(0, last if is_causal else key.shape[1])


def _rule(visible: Tensor | None, is_causal: bool, rows: slice, keys: slice, device: torch.device) -> Tensor | None:
    if visible is not None:
        return visible[rows, keys]
    if not is_causal:
        return None
    query_index, key_index = (torch.arange(part.start, part.stop, device=device) for part in (rows, keys))
    return key_index[None, :] <= query_index[:, None]


def _scores(query: Tensor, key: Tensor, scale: float, visible: Tensor | None) -> Float[Tensor, "k g q s"]:
    wide = _wide(query)
    by_kv = _by_kv(query.to(wide), key.shape[0])
    scores = (_grouped(by_kv) @ key.to(wide).mT).unflatten(1, by_kv.shape[1:3]) * scale
    return scores if visible is None else scores.masked_fill(~visible, -torch.inf)


def _by_kv(per_head: Tensor, num_kv_heads: int) -> Tensor:
    """[H, ...] -> [K, G, ...]: the G query heads that read each key/value head."""
    return per_head.unflatten(0, (num_kv_heads, -1))


def _grouped(by_kv: Tensor) -> Tensor:
    """[K, G, q, x] -> [K, G*q, x], so that one product serves all heads of a key."""
    return by_kv.flatten(1, 2)


def _per_head(grouped: Tensor, num_heads: int) -> Tensor:
    return grouped.view(num_heads, -1, grouped.shape[-1])
