"""A toy picture of 4 x 4 cells, and an "encoder" whose tokens tell the pixels that they were made from."""

from __future__ import annotations

from typing import Any

import torch

from llava.scene.token_cache import (
    Answer,
    BackgroundRequest,
    BackgroundTokenCache,
    BackgroundValue,
    CacheConfig,
    CacheScope,
)

PATCH = 4
GRID = 4
BACKGROUND = list(range(12))  # the last row shows objects
MIB = 2**20


def picture(seed: int = 0) -> torch.Tensor:
    """[3, 16, 16]"""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, GRID * PATCH, GRID * PATCH), dtype=torch.uint8, generator=generator)


def change(pixels: torch.Tensor, cell: int, by: int = 40) -> torch.Tensor:
    """The picture with one pixel of one cell changed."""
    changed = pixels.clone()
    row, col = divmod(cell, GRID)
    changed[0, row * PATCH + 1, col * PATCH + 2] += by
    return changed


def scope(**fields: Any) -> CacheScope:
    given: dict[str, Any] = {"model_state": "weights 1", "preprocessing": "none", "dtype": torch.float32}
    return CacheScope(**(given | fields))


def request(pixels: torch.Tensor | None = None, **fields: Any) -> BackgroundRequest:
    given: dict[str, Any] = {
        "scope": scope(),
        "pixels": picture() if pixels is None else pixels,
        "background": BACKGROUND,
    }
    given |= {"patch_size": PATCH} | fields
    return BackgroundRequest(**given)


def encode(answer: Answer) -> BackgroundValue:
    """One token per background cell: the sums of its channels' pixels."""
    asked = answer.request
    cells = asked.cells[answer.background_ids].float()
    return BackgroundValue(tokens=cells.reshape(len(cells), 3, asked.grid.cell_pixels**2).sum(2))


def encode_with_kv(answer: Answer) -> BackgroundValue:
    """Two layers of one head each; the prefix has one position more than there are tokens."""
    tokens = encode(answer).tokens
    assert tokens is not None
    keys = torch.cat([torch.zeros(1, 3), tokens])[None, None]  # [1, 1, n + 1, 3]
    return BackgroundValue(tokens=tokens, kv=((keys, keys + 1), (keys + 2, keys + 3)))


def value_bytes(num_cells: int = len(BACKGROUND)) -> int:
    """Bytes of one entry of the toy: tokens, fingerprints, ids."""
    return num_cells * (3 * 4 + 32 + 4)


def cache(**fields: Any) -> BackgroundTokenCache:
    given: dict[str, Any] = {"device_bytes": MIB}
    return BackgroundTokenCache(CacheConfig(**(given | fields)))


def provenance(of: BackgroundTokenCache, asked: BackgroundRequest) -> str:
    """Of a lookup, which lets go at once."""
    with of.lookup(asked) as answer:
        return answer.provenance


def fill(into: BackgroundTokenCache, *asked: BackgroundRequest) -> None:
    for one in asked:
        into.get_or_compute(one, encode_with_kv if one.want_kv else encode).release()
