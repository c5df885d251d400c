"""A room that a camera looks at, 8 x 8 cells of 12 pixels: with noise, marks, objects, and from elsewhere."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch

from llava.scene.token_cache import BackgroundRequest, BackgroundTokenCache, SimilarityConfig
from tests.unit.scene.token_cache_toy import cache, fill, request

SIDE, CELL = 96, 12  # 8 x 8 cells
BACKGROUND = list(range(48))  # six rows; the lowest two show objects
NOISE = 2.0


def scene(seed: int = 0) -> np.ndarray:
    """A room that is larger than the picture: large and small blobs of strong contrast, [160, 160, 3]."""
    random = np.random.default_rng(seed).random((160, 160, 3)).astype(np.float32)
    blobs = [cv2.GaussianBlur(random, (0, 0), width) for width in (2.5, 20)]
    large_and_small = sum((blob - blob.mean()) / blob.std() for blob in blobs)
    return np.clip(large_and_small * 32 + 128, 0, 255)


def view(down: int = 0, right: int = 0, seed: int = 0, noise: float = 0.0, noise_seed: int = 0) -> torch.Tensor:
    """What a camera sees: [3, 96, 96]. The scene shows `down` pixels lower and `right` pixels further right."""
    part = scene(seed)[32 - down : 32 - down + SIDE, 32 - right : 32 - right + SIDE]
    part = part + noise * np.random.default_rng(noise_seed).standard_normal(part.shape)
    return torch.from_numpy(np.clip(np.rint(part), 0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous()


def mark(pixels: torch.Tensor, *cells: int, by: int = 60) -> torch.Tensor:
    """One pixel of each cell becomes brighter or darker, whichever is possible."""
    changed = pixels.clone().int()
    for cell in cells:
        row, col = divmod(cell, SIDE // CELL)
        value = changed[0, row * CELL + 5, col * CELL + 5]
        changed[0, row * CELL + 5, col * CELL + 5] = value + (by if value < 128 else -by)
    return changed.to(torch.uint8)


def ask(pixels: torch.Tensor, **fields: Any) -> BackgroundRequest:
    return request(pixels, **({"patch_size": CELL, "background": None} | fields))


def similar(**fields: Any) -> SimilarityConfig:
    given: dict[str, Any] = {"noise": NOISE}
    return SimilarityConfig(**(given | fields))


def store_of(pixels: torch.Tensor, clock: Any = None, want_kv: bool = False, **fields: Any) -> BackgroundTokenCache:
    store = cache(similarity=similar(**fields))
    if clock is not None:
        assert store._finder._similar is not None
        store._clock = clock
        store._finder._similar._clock = clock
    fill(store, ask(pixels, background=BACKGROUND, want_kv=want_kv, caller_id="arm"))
    return store
