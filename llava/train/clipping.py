"""Gradient clipping in two groups: the model that stays, and what only the next-frame loss trains."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from llava.train.parts import part_of

AUXILIARY_PART = "autoregressive"
AUXILIARY_NORM = "grad_norm_autoregressive"
"""Key of the log: norm of the gradients of the weights that only the next-frame loss trains, before clipping."""


def split_by_loss(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights that the main loss trains (too), and those of the next-frame predictor."""
    main, auxiliary = [], []
    for name, parameter in model.named_parameters():
        (auxiliary if part_of(name) == AUXILIARY_PART else main).append(parameter)
    return main, auxiliary


def clip_in_groups(model: nn.Module, max_norm: float) -> tuple[Tensor, Tensor]:
    """Clip both groups of a model to `max_norm`, each by its own norm; answers both norms before clipping.

    With one norm over all weights, a large gradient of the predictor would shrink the language model's step.
    """
    main, auxiliary = split_by_loss(model)
    return clip_to(main, max_norm), clip_to(auxiliary, max_norm)


def clip_to(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients down to `max_norm` over all of them, on every rank; weights may be sharded, whole, or both.

    Args:
        max_norm: infinity measures only.
    """
    by_mesh: dict[object, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            mesh = parameter.grad.device_mesh if isinstance(parameter.grad, DTensor) else None
            by_mesh.setdefault(mesh, []).append(parameter)
    norms = [_norm(weights) for weights in by_mesh.values()]
    if not norms:
        return torch.zeros(())
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    if max_norm != float("inf"):
        for weights in by_mesh.values():
            clip_grads_with_norm_(weights, max_norm, norm)
    return norm


def _norm(parameters: list[nn.Parameter]) -> Tensor:
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
