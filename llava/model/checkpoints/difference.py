"""Differences between two models: target - base, tensor by tensor, and base + difference = target again.

Both are made in a wider type than that of the weights and rounded once. A difference that is smaller than its weight
(what fine-tuning does) then gives the target back to the bit; a larger one, such as that of a weight which was shrunk
to almost nothing, only if it is stored in the wider type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float64}
BLOCK = 2**22
"""Numbers that are held in the wider type at a time."""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How well a stored difference gives its target back.

    Attributes:
        dtype: type in which the difference is stored.
        num_changed: numbers of the target that come back differently. worst: largest such change.
    """

    dtype: torch.dtype
    num_changed: int = 0
    worst: float = 0.0


def add(difference: Tensor, base: Tensor, dtype: torch.dtype) -> Tensor:
    """base + difference; rows that only the difference has stay as they are, rows that only the base has are left."""
    return _combine(difference, base, 1, dtype)


def subtract(target: Tensor, base: Tensor, dtype: torch.dtype) -> Tensor:
    """target - base; rows that the base has not are those of the target."""
    return _combine(target, base, -1, dtype)


def _combine(first: Tensor, base: Tensor, sign: int, dtype: torch.dtype) -> Tensor:
    work = max((WIDER.get(kind, kind) for kind in (first.dtype, base.dtype)), key=lambda kind: kind.itemsize)
    found = torch.empty(first.shape, dtype=dtype)
    width = _width(first)
    rows, base_rows, out = first.reshape(-1, width), base.reshape(-1, width), found.view(-1, width)
    step = max(1, BLOCK // width)
    for start in range(0, len(rows), step):
        block = rows[start : start + step].to(work, copy=True)
        shared = base_rows[start : start + len(block)]
        block[: len(shared)].add_(shared.to(work), alpha=sign)
        out[start : start + len(block)] = block
    return found


def _width(tensor: Tensor) -> int:
    """Numbers per row of a tensor that is seen as a table."""
    return tensor[0].numel() if tensor.ndim > 1 and len(tensor) else 1


def best_type(target: Tensor, base: Tensor, *, exact: bool) -> Rounding:
    """The target's own type, unless exact is asked for and only the next wider one gives the target back to the bit."""
    own = _rounding(target, base, target.dtype)
    if own.num_changed == 0 or not exact or target.dtype not in WIDER:
        return own
    return _rounding(target, base, WIDER[target.dtype])


def _rounding(target: Tensor, base: Tensor, dtype: torch.dtype) -> Rounding:
    again = add(subtract(target, base, dtype), base, target.dtype)
    changed = again != target
    if not changed.any():
        return Rounding(dtype=dtype)
    worst = (again[changed].double() - target[changed].double()).abs().max().item()
    return Rounding(dtype=dtype, num_changed=int(changed.sum()), worst=worst)


class Sum:
    """base + difference, made when it is indexed with `...`, as transformers' loader indexes a slice of a file."""

    def __init__(self, difference: Any, base: Any, dtype: torch.dtype) -> None:
        self.difference, self.base, self.dtype = difference, base, dtype

    def __getitem__(self, index: Any) -> Tensor:
        assert index is ..., f"a sum is read as a whole, found index {index}"
        return add(self.difference[...], self.base[...], self.dtype)
