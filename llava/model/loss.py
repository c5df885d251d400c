"""Token losses on supervised rows: plain cross-entropy, and a soft one for time tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llava.constants import IGNORE_INDEX
from llava.model.attention import predecessor_index

ROWS_PER_CHUNK = 4096
"""Rows whose logits are alive at the same time in training; more are recomputed chunk by chunk in the backward pass."""


def supervised_rows(
    labels: Int[Tensor, "b s"], segments: Int[Tensor, "b s"] | None, branches: Int[Tensor, "b s"] | None
) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
    """(flat indices of the rows that predict, their targets); the first token of a segment is never a target."""
    if segments is None:
        index = torch.arange(-1, labels.shape[1] - 1, device=labels.device).expand_as(labels)
    else:
        assert branches is not None
        index = predecessor_index(segments, branches)
    wanted = (labels != IGNORE_INDEX) & (index >= 0)
    first_of_row = torch.arange(labels.shape[0], device=labels.device)[:, None] * labels.shape[1]
    return (first_of_row + index)[wanted], labels[wanted]


def soft_targets(time_targets: Int[Tensor, "n"], time_token_ids: Int[Tensor, "k"], std: float) -> Float[Tensor, "n k"]:
    """Gaussian over the places of the time tokens in their list, centred on each target; rows sum to 1."""
    place = torch.arange(len(time_token_ids), device=time_targets.device)
    target_place = (time_targets[:, None] == time_token_ids[None, :]).int().argmax(dim=1)
    return torch.softmax(-((place[None, :] - target_place[:, None]).float() ** 2) / (2 * std**2), dim=1)


def token_loss_sum(
    logits: Float[Tensor, "n v"],
    targets: Int[Tensor, "n"],
    time_token_ids: Sequence[int] = (),
    soft_ce_std: float = 1.0,
) -> Float[Tensor, ""]:
    """Sum of the cross-entropies of n supervised rows, in fp32; targets that are time tokens are smeared in time."""
    logits = logits.float()
    if len(time_token_ids) == 0:
        return F.cross_entropy(logits, targets, reduction="sum")
    time_ids = torch.as_tensor(time_token_ids, device=targets.device, dtype=targets.dtype)
    is_time: Bool[Tensor, "n"] = torch.isin(targets, time_ids)
    hard = F.cross_entropy(logits[~is_time], targets[~is_time], reduction="sum")
    weights = soft_targets(targets[is_time], time_ids, soft_ce_std)
    return hard - (weights * F.log_softmax(logits[is_time], dim=-1)[:, time_ids]).sum()


def supervised_loss_sum(
    hidden: Float[Tensor, "n d"],
    targets: Int[Tensor, "n"],
    head: Callable[[Tensor], Tensor],
    time_token_ids: Sequence[int] = (),
    soft_ce_std: float = 1.0,
) -> Float[Tensor, ""]:
    """Language head and loss of n supervised rows; at most ROWS_PER_CHUNK rows of logits are alive at a time.

    Works for n = 0 (a sum of nothing that still reaches every weight, so that no rank skips a gradient).
    """

    def chunk_loss(rows: Tensor, wanted: Tensor) -> Tensor:
        return token_loss_sum(head(rows), wanted, time_token_ids, soft_ce_std)

    if len(hidden) <= ROWS_PER_CHUNK:
        return chunk_loss(hidden, targets)
    chunks = zip(hidden.split(ROWS_PER_CHUNK), targets.split(ROWS_PER_CHUNK), strict=True)
    return torch.stack([checkpoint(chunk_loss, *c, use_reentrant=False) for c in chunks]).sum()  # pyright: ignore


def normalise(
    loss_sum: Tensor, num_targets: int | Tensor, num_items_in_batch: int | Tensor | None
) -> Float[Tensor, ""]:
    """Mean over this batch, or sum over the number of supervised tokens of the whole (accumulated, global) batch."""
    count = num_targets if num_items_in_batch is None else num_items_in_batch
    if isinstance(count, Tensor):
        return loss_sum / count.to(loss_sum.device).clamp(min=1)
    return loss_sum / max(count, 1)


def soft_cross_entropy(
    outputs: Float[Tensor, "*b s v"],
    targets: Int[Tensor, "*b s"],
    soft_tokens: Sequence[int] | Int[Tensor, "k"],
    std: float = 1.0,
    ignore_index: int = IGNORE_INDEX,
) -> Float[Tensor, ""]:
    """Mean next-token loss of unshifted logits and labels; labels among `soft_tokens` get a Gaussian target."""
    rows = outputs[..., :-1, :].flatten(0, -2)
    wanted = targets[..., 1:].flatten()
    keep = wanted != ignore_index
    return normalise(
        token_loss_sum(rows[keep], wanted[keep], torch.as_tensor(soft_tokens).tolist(), std), int(keep.sum()), None
    )
