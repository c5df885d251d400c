"""Which known backgrounds could this picture show? Small vectors, compared by cosine."""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int32
from numpy import ndarray
from torch.nn import functional as F

from llava.scene.cache.grid import CellGrid
from llava.scene.cache.guard import MAD_TO_STD
from llava.scene.cache.request import BackgroundRequest

Signature = Float32[ndarray, "s"]
OUTLIER = 2.0
MIN_COVERAGE = 0.5
"""Share of a pooled cell that has to be background for it to be compared."""
MIN_COMMON = 0.125
"""Share of the pooled cells that two backgrounds have to have in common."""


def signature(request: BackgroundRequest, ids: Int32[ndarray, "n"] | None, side: int) -> Signature:
    """Luminance of the background, pooled to side x side per frame, less its median, of length 1.

    Cells that are no background count as the median, that is as nothing, and values are cut off at OUTLIER robust
    standard deviations: a new bright object must not outweigh all the rest. A blank picture has the signature 0.

    Args:
        ids: the background; None where it is not known yet, then the whole picture counts.
    """
    grid = request.grid
    known = torch.arange(grid.num_cells) if ids is None else torch.from_numpy(ids).long()
    light = request.cells.float().mean(1).cpu()[known]  # [n]
    light = light - light.median()
    spread = MAD_TO_STD * light.abs().median()
    limit = float(OUTLIER * spread if spread > 0 else light.abs().max())
    filled = torch.zeros(grid.num_cells).index_copy(0, known, light.clamp(-limit, limit))
    pooled = F.adaptive_avg_pool2d(filled.reshape(grid.frames, grid.rows, grid.cols), side).flatten()
    length = float(pooled.norm())
    return (pooled / length if length > 1e-6 else torch.zeros_like(pooled)).numpy()


def coverage(ids: Int32[ndarray, "n"], grid: CellGrid, side: int) -> Signature:
    """Share of each number of a signature that is background, 0 to 1."""
    known = torch.zeros(grid.num_cells).index_fill(0, torch.from_numpy(ids).long(), 1.0)
    return F.adaptive_avg_pool2d(known.reshape(grid.frames, grid.rows, grid.cols), side).flatten().numpy()


def common_similarity(
    first: Signature, first_covered: Signature, second: Signature, second_covered: Signature
) -> float:
    """Correlation of two signatures where both show mostly background; 0 where that is too little to tell.

    Args:
        first_covered, second_covered: their `coverage`.
    """
    common = (first_covered >= MIN_COVERAGE) & (second_covered >= MIN_COVERAGE)
    if common.sum() < max(2, MIN_COMMON * len(common)):
        return 0.0
    one, other = first[common] / first_covered[common], second[common] / second_covered[common]
    one, other = one - one.mean(), other - other.mean()  # each had the median of another set of cells taken off
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / length if length > 1e-6 else 0.0


@runtime_checkable
class SignatureIndex(Protocol):
    """Vectors by key."""

    def add(self, key: str, vector: Signature) -> None: ...

    def discard(self, key: str) -> None: ...

    def nearest(self, vector: Signature, count: int) -> list[tuple[str, float]]:
        """(key, cosine similarity), the most similar first."""
        ...


class NumpyIndex:
    """Compares with every vector: 0.03 ms for a hundred, 0.15 ms for a thousand."""

    def __init__(self) -> None:
        self._vectors: dict[str, Signature] = {}
        self._table: tuple[list[str], Float32[ndarray, "k s"]] | None = None

    def add(self, key: str, vector: Signature) -> None:
        self._vectors[key] = vector
        self._table = None

    def discard(self, key: str) -> None:
        if self._vectors.pop(key, None) is not None:
            self._table = None

    def nearest(self, vector: Signature, count: int) -> list[tuple[str, float]]:
        if not self._vectors:
            return []
        if self._table is None:
            self._table = list(self._vectors), np.stack(list(self._vectors.values()))
        keys, vectors = self._table
        similarity = np.einsum("ks,s->k", vectors, vector)  # no BLAS, whose threads spin on after a product
        order = np.argsort(-similarity, kind="stable")[:count]
        return [(keys[index], float(similarity[index])) for index in order]


class FaissIndex:
    """The same with faiss, for tens of thousands of vectors."""

    def __init__(self) -> None:
        self._faiss = import_faiss()
        self._numbers: dict[str, int] = {}
        self._keys: dict[int, str] = {}
        self._next = 0
        self._index: Any = None

    def add(self, key: str, vector: Signature) -> None:
        self.discard(key)
        if self._index is None:
            self._index = self._faiss.IndexIDMap2(self._faiss.IndexFlatIP(len(vector)))
        number, self._next = self._next, self._next + 1
        self._index.add_with_ids(vector[None], np.array([number], dtype=np.int64))
        self._numbers[key], self._keys[number] = number, key

    def discard(self, key: str) -> None:
        number = self._numbers.pop(key, None)
        if number is not None:
            del self._keys[number]
            self._index.remove_ids(np.array([number], dtype=np.int64))

    def nearest(self, vector: Signature, count: int) -> list[tuple[str, float]]:
        if not self._keys:
            return []
        similarity, numbers = self._index.search(vector[None], min(count, len(self._keys)))
        return [(self._keys[int(n)], float(s)) for n, s in zip(numbers[0], similarity[0], strict=True)]


def import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "similarity index 'faiss' is not installed: pip install faiss-cpu; 'numpy' needs no package"
        ) from error
    return faiss


def make_index(name: Literal["numpy", "faiss"]) -> SignatureIndex:
    return FaissIndex() if name == "faiss" else NumpyIndex()
