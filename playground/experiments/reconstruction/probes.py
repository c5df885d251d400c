"""Linear probes: what can be read off frozen hidden states by one matrix; in closed form and by L-BFGS."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

RIDGE = 1e-2
"""Penalty on the weights, relative to the number of samples; features have variance 1."""


@dataclass(frozen=True)
class Standardised:
    """Features with mean 0 and variance 1 on the samples that fit, and a column of ones."""

    mean: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]

    @classmethod
    def of(cls, features: Float[Tensor, "n d"]) -> Standardised:
        features = features.double()
        return cls(features.mean(dim=0), features.std(dim=0, correction=0).clamp(min=1e-6))

    def __call__(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        scaled = (features.double() - self.mean) / self.scale
        return torch.cat([scaled, torch.ones(len(scaled), 1, dtype=scaled.dtype)], dim=1)


def ridge_predictions(
    features: Float[Tensor, "n d"], values: Float[Tensor, " n"], unseen: Float[Tensor, "m d"], *, penalty: float = RIDGE
) -> Float[Tensor, " m"]:
    """Ridge regression fitted on (features, values), read at unseen features; the constant is not penalised."""
    scale = Standardised.of(features)
    x = scale(features)
    weight_penalty = penalty * len(x) * torch.ones(x.shape[1], dtype=x.dtype)
    weight_penalty[-1] = 0.0
    weights = torch.linalg.solve(x.T @ x + torch.diag(weight_penalty), x.T @ values.double())
    return scale(unseen) @ weights


def logistic_predictions(
    features: Float[Tensor, "n d"], classes: Int[Tensor, " n"], unseen: Float[Tensor, "m d"], *, penalty: float = RIDGE
) -> Int[Tensor, " m"]:
    """Most likely class at unseen features by multinomial logistic regression; convex, so that nothing is drawn."""
    scale = Standardised.of(features)
    x, known = scale(features), classes.unique()
    wanted = torch.searchsorted(known, classes)
    weights = torch.zeros(x.shape[1], len(known), dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weights, wanted) + 0.5 * penalty * (weights[:-1] ** 2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return known[(scale(unseen) @ weights.detach()).argmax(dim=1)]
