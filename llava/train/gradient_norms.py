"""The norm of the gradients of each part of the model, before clipping."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from llava.train.clipping import clip_to
from llava.train.parts import part_of

KEY = "grad_norm_{part}"
"""Name in the log; the squares of all parts add up to that of `grad_norm`."""


def part_norms(model: nn.Module, total: Tensor | float, *, without: Collection[str] = ()) -> dict[str, Tensor]:
    """Per part that has gradients, measured after they were clipped together and told as they were before.

    Every rank must call it; weights may be sharded, whole, or both.

    Args:
        total: norm over all these parts before clipping; the parts are scaled up to it.
        without: parts that were clipped apart.
    """
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and part_of(name) not in without:
            parts.setdefault(part_of(name), []).append(parameter)
    norms = {part: clip_to(weights, float("inf")).float() for part, weights in parts.items()}
    if not norms:
        return {}
    clipped = torch.linalg.vector_norm(torch.stack(list(norms.values())))
    scale = torch.where(clipped > 0, torch.as_tensor(total, device=clipped.device) / clipped, torch.ones_like(clipped))
    return {KEY.format(part=part): norm * scale for part, norm in norms.items()}
